"""How pixels stand in a DICOM file, and the machines that make them: the DICOM side of :mod:`mammoray.synth`.

Machines are those of the real data sets by name, share and encoding. The same arguments give the same bytes; no date,
no name and no random UID enters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from mammoray import encoders
from mammoray.phantom import FloatImage, Tone


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A VOI window with its alternatives; the first is the one that a viewer shows.

    References
    ----------
    DICOM PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT).
    """

    function: str = "LINEAR"
    """VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID."""
    centers: tuple[float, ...] = (2048,)
    """Window Center, in stored values."""
    widths: tuple[float, ...] = (4096,)
    """Window Width, in stored values."""

    def invert(self, shown: FloatImage) -> FloatImage:
        """Return stored values, not yet rounded, that the first window maps to ``shown`` (0 to 1)."""
        center, width = self.centers[0], self.widths[0]
        if self.function == "SIGMOID":
            clipped = np.clip(shown, 1e-4, 1 - 1e-4)
            stored: npt.NDArray[Any] = center - width / 4 * np.log(1 / clipped - 1)
        elif self.function == "LINEAR_EXACT":
            stored = center + (shown - 0.5) * width
        else:
            stored = center - 0.5 + (shown - 0.5) * (width - 1)
        return np.asarray(stored, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How pixels stand in a DICOM file."""

    transfer_syntax: str = uid.JPEG2000Lossless
    """UID of one of :data:`CODECS`."""
    photometric: str = "MONOCHROME2"
    """MONOCHROME2: high values are bright; MONOCHROME1: low ones are."""
    bits_stored: int = 12
    """Bits in use."""
    bits_allocated: int = 16
    """Bits of a stored pixel, 8 or 16."""
    pixel_vr: str | None = None
    """VR of Pixel Data in explicit syntaxes. None: OB for 8 bits allocated, otherwise OW. PS3.5 A.4 wants OB for every
    codestream; both are found."""
    window: Window | None = field(default_factory=Window)
    """None: no VOI attributes at all."""
    padding: int | None = None
    """Pixel Padding Value; None: not in the header."""
    modality: bool = True
    """False leaves Modality out, as some RSNA files do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One mammography unit, or film scanner."""

    share: float
    """Relative frequency among the patients of its site."""
    encoding: Encoding
    tone: Tone


def _sigmoid(center: int, width: int) -> Window:
    shift = width // 10
    centers, widths = (center, center - shift, center + shift), (width, width - shift, width + shift)
    return Window(function="SIGMOID", centers=centers, widths=widths)


_J2K, _JLL, _RAW = uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.ExplicitVRLittleEndian
_TWO = Window(centers=(2000, 1800), widths=(2600, 2200))
_FULL12 = Encoding(padding=0)
_HOLOGIC = Encoding(photometric="MONOCHROME1", bits_stored=16, window=_sigmoid(32000, 28000), padding=65535)

SITES: dict[int, dict[str, Machine]] = {
    1: {
        "49": Machine(share=0.34, encoding=Encoding(transfer_syntax=_JLL, window=_TWO), tone=Tone(gamma=1.1, knee=0.3)),
        "93": Machine(share=0.15, encoding=_HOLOGIC, tone=Tone(gamma=0.9, sharpen=0.8, noise=0.008)),
        "216": Machine(
            share=0.15,
            encoding=Encoding(photometric="MONOCHROME1", bits_stored=14, window=_sigmoid(8000, 7000)),
            tone=Tone(gamma=1.0, sharpen=0.5, noise=0.012),
        ),
        "210": Machine(
            share=0.12,
            encoding=Encoding(padding=0, modality=False),
            tone=Tone(gamma=1.2, knee=0.5, noise=0.014, marker=0.9),
        ),
        "170": Machine(
            share=0.10,
            encoding=Encoding(transfer_syntax=_RAW, bits_stored=10, window=Window(centers=(512,), widths=(960,))),
            tone=Tone(gamma=0.85, noise=0.018, air=0.015, line=0.2),
        ),
        "190": Machine(
            share=0.08,
            encoding=Encoding(
                transfer_syntax=_JLL, photometric="MONOCHROME1", bits_stored=14,
                window=Window(centers=(8192,), widths=(14000,)), padding=16383,
            ),
            tone=Tone(gamma=1.3, noise=0.01, line=0.3),
        ),
        "197": Machine(
            share=0.06,
            encoding=Encoding(transfer_syntax=_RAW, bits_stored=16, window=None, modality=False),
            tone=Tone(gamma=1.0, knee=0.2, noise=0.02, air=0.03, marker=0.3),
        ),
    },
    2: {
        "48": Machine(share=0.345, encoding=_FULL12, tone=Tone(gamma=1.15, knee=0.2)),
        "29": Machine(share=0.33, encoding=_HOLOGIC, tone=Tone(gamma=0.95, sharpen=0.7, line=0.05)),
        "21": Machine(share=0.325, encoding=_FULL12, tone=Tone(gamma=1.0, knee=0.4, noise=0.012)),
    },
}  # fmt: skip
"""Machines of RSNA's two sites by machine_id; the shares of site 1 are flattened (machine 49 really has 80 %)."""
FILM: dict[str, Machine] = {
    "scanner1": Machine(
        share=0.5,
        encoding=Encoding(transfer_syntax=_RAW, window=None),
        tone=Tone(gamma=1.1, knee=0.5, noise=0.02, air=0.05, line=0.3, marker=0.9),
    ),
    "scanner2": Machine(
        share=0.3,
        encoding=Encoding(photometric="MONOCHROME1", window=Window(centers=(2048,), widths=(3600,))),
        tone=Tone(gamma=1.3, noise=0.025, air=0.08, line=0.2, marker=0.9),
    ),
    "scanner3": Machine(
        share=0.2,
        encoding=Encoding(transfer_syntax=_JLL, bits_stored=16, window=Window(centers=(30000,), widths=(50000,))),
        tone=Tone(gamma=0.9, knee=0.3, noise=0.02, air=0.06, line=0.4, marker=0.9),
    ),
}
"""Scanners of the IRMA layout: film has base and fog, grain, labels and bright borders."""


CODECS: dict[str, Callable[[npt.NDArray[Any], int], bytes] | None] = {
    uid.JPEG2000Lossless: encoders.jpeg2000_plain,
    uid.JPEG2000: partial(encoders.jpeg2000_plain, reversible=False),
    uid.JPEGLosslessSV1: encoders.jpeg_lossless,
    uid.JPEGLSLossless: encoders.jpeg_ls,
    uid.RLELossless: encoders.rle,
    uid.ExplicitVRLittleEndian: None,
    uid.ImplicitVRLittleEndian: None,
    uid.ExplicitVRBigEndian: None,
    uid.DeflatedExplicitVRLittleEndian: None,
    uid.JPEGBaseline8Bit: encoders.jpeg_baseline,
    uid.JPEGExtended12Bit: encoders.jpeg,
    uid.JPEGLossless: partial(encoders.jpeg_lossless, predictor=4),
    uid.JPEGLSNearLossless: partial(encoders.jpeg_ls, near=encoders.NEAR),
}
"""Transfer syntaxes that :func:`make_dicom` writes, from (pixels, bits stored); None: not a codestream."""
if hasattr(imagecodecs, "htj2k_encode"):  # The newest imagecodecs for Python 3.10 has no HTJ2K.
    CODECS[uid.HTJ2KLossless] = encoders.htj2k
    CODECS[uid.HTJ2KLosslessRPCL] = partial(encoders.htj2k, lengths=True)
    CODECS[uid.HTJ2K] = partial(encoders.htj2k, reversible=False)
LOSSY: dict[str, str] = {
    uid.JPEGBaseline8Bit: "ISO_10918_1",
    uid.JPEGExtended12Bit: "ISO_10918_1",
    uid.JPEGLSNearLossless: "ISO_14495_1",
    uid.JPEG2000: "ISO_15444_1",
    uid.HTJ2K: "ISO_15444_15",
}
"""Those of :data:`CODECS` that lose something, and their Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1)."""
# DICOM PS3.16 CID 4014 (views) as SNOMED CT codes; AT is an MLO view with a modifier of CID 4015.
_VIEW_CODE = {
    "CC": ("399162004", "cranio-caudal"),
    "MLO": ("399368009", "medio-lateral oblique"),
    "ML": ("399260004", "medio-lateral"),
    "LM": ("399352003", "latero-medial"),
    "LMO": ("399099002", "latero-medial oblique"),
}


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def make_dicom(
    pixels: npt.NDArray[Any],
    encoding: Encoding | None = None,
    *,
    laterality: str = "L",
    view: str = "CC",
    patient_id: str = "1",
    key: Sequence[object] = (0,),
    attributes: Mapping[str, Any] | None = None,
    codestream: bytes | None = None,
) -> bytes:
    """Encode one image as a Digital Mammography X-Ray Image, For Presentation: the factory of all DICOM files in tests.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W) stored values, unsigned (or signed, which sets Pixel Representation 1); they are written as they are.
    encoding : Encoding, optional
        Transfer syntax, photometric interpretation, bits, window, padding. Default: ``Encoding()``.
    laterality, view, patient_id : str
        Header values.
    key : sequence
        What the UIDs are derived from; the last element tells images of a study apart.
    attributes : mapping of str to Any, optional
        DICOM keywords to set, last of all, to a value, or with None to leave out: for tests of odd headers.
    codestream : bytes, optional
        What Pixel Data hold instead of ``pixels`` as the syntax's own encoder writes them, for tests of odd
        codestreams; any compressed transfer syntax will do then.

    Returns
    -------
    bytes
        A DICOM file with preamble; the same arguments give the same bytes.

    Raises
    ------
    ValueError
        Where a pixel does not fit into ``encoding.bits_stored`` bits, or the transfer syntax is not in :data:`CODECS`
        or cannot hold such pixels.

    References
    ----------
    DICOM PS3.3 A.26 (the IOD), C.8.11.7 (mammography image), C.7.6.3 (image pixel); PS3.5 A.4 (encapsulation).

    Examples
    --------
    >>> data = make_dicom(np.zeros((64, 48), np.uint16), Encoding(bits_stored=10), attributes={"Modality": None})
    >>> data[128:132]
    b'DICM'
    """
    encoding = encoding or Encoding()
    if codestream is None and encoding.transfer_syntax not in CODECS:
        raise ValueError(f"transfer syntax {encoding.transfer_syntax} is none of {', '.join(CODECS)}")
    stored = _as_allocated(pixels, encoding)
    dataset = _header(encoding, laterality, view, patient_id, key, pixels.shape)
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    codec = CODECS.get(encoding.transfer_syntax)
    vr = encoding.pixel_vr or ("OB" if encoding.bits_allocated == 8 else "OW")
    if codestream is None and codec is not None:
        codestream = codec(stored, encoding.bits_stored)
    if codestream is not None:
        dataset.PixelData = encapsulate([codestream])
        if encoding.transfer_syntax in LOSSY:
            dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", stored.nbytes // len(codestream)
            dataset.LossyImageCompressionMethod = LOSSY[encoding.transfer_syntax]
    else:
        dataset.PixelData = _native(stored, encoding.transfer_syntax == uid.ExplicitVRBigEndian, vr)
    dataset["PixelData"].VR = vr
    for keyword, value in (attributes or {}).items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _native(stored: npt.NDArray[Any], big_endian: bool, vr: str) -> bytes:
    """Pixel Data that are no codestream, of an even length; PS3.5 8.1.1 and A.3."""
    value = stored.astype(stored.dtype.newbyteorder(">" if big_endian else "<")).tobytes() + b"\0" * (stored.nbytes % 2)
    if big_endian and vr == "OW" and stored.itemsize == 1:  # Two pixels share a word.
        return np.frombuffer(value, ">u2").astype("<u2").tobytes()
    return value


def _as_allocated(pixels: npt.NDArray[Any], encoding: Encoding) -> npt.NDArray[Any]:
    """Contiguous pixels in the type that the bits allocated ask for, once they are known to fit."""
    bits, signed = encoding.bits_stored, pixels.dtype.kind == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if not (low <= int(pixels.min()) and int(pixels.max()) <= high <= 2**encoding.bits_allocated - 1):
        found = f"{pixels.min()} to {pixels.max()}"
        raise ValueError(f"{found} does not fit into {bits} bits, of {encoding.bits_allocated} allocated")
    return np.ascontiguousarray(pixels, np.dtype(f"{pixels.dtype.kind}{encoding.bits_allocated // 8}"))


def _uid(*parts: object) -> str:
    return str(uid.generate_uid(entropy_srcs=["mammoray", *map(str, parts)]))


def _header(
    encoding: Encoding, laterality: str, view: str, patient_id: str, key: Sequence[object], shape: tuple[int, ...]
) -> Dataset:
    """All of the header but the pixels; type 2 attributes that would need a person or a date are empty."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(encoding.transfer_syntax)
    ds.SOPClassUID = uid.DigitalMammographyXRayImageStorageForPresentation
    ds.SOPInstanceUID = _uid(*key)
    ds.StudyInstanceUID = _uid("study", *key[:-1])
    ds.SeriesInstanceUID = _uid("series", *key)
    ds.PatientID, ds.PatientIdentityRemoved = patient_id, "YES"
    ds.DeidentificationMethod = "synthetic image of no person"
    ds.Manufacturer, ds.ImageComments = "mammoray synthetic", "synthetic, not a patient"
    for empty in (
        "PatientName", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "DetectorType",
        "ReferringPhysicianName", "SeriesNumber", "AcquisitionContextSequence", "ContentDate", "ContentTime",
    ):  # fmt: skip
        setattr(ds, empty, [] if empty.endswith("Sequence") else "")
    ds.PatientSex, ds.InstanceNumber, ds.PresentationIntentType = "F", 1, "FOR PRESENTATION"
    if encoding.modality:
        ds.Modality = "MG"
    ds.ImageType = ["DERIVED", "PRIMARY", "", ""]
    ds.BodyPartExamined, ds.ImageLaterality, ds.ViewPosition = "BREAST", laterality, view
    ds.OrganExposed, ds.PositionerType, ds.BreastImplantPresent = "BREAST", "MAMMOGRAPHIC", "NO"
    ds.AnatomicRegionSequence = [_code("76752008", "Breast")]
    item = _code(*_VIEW_CODE.get(view, _VIEW_CODE["MLO"]))
    item.ViewModifierCodeSequence = [_code("399011000", "Axillary Tail")] if view == "AT" else []
    ds.ViewCodeSequence = [item]
    # PS3.3 C.7.6.1.1.1: where the rows and the columns lead to; the chest wall is at the left of a left breast.
    medial = "R" if laterality == "L" else "L"
    ds.PatientOrientation = ["A" if laterality == "L" else "P", medial if view == "CC" else "F" + medial]
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.QualityControlImage = "NO", "00", "NO"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "IDENTITY" if encoding.photometric == "MONOCHROME2" else "INVERSE"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, encoding.photometric
    ds.Rows, ds.Columns = shape
    ds.ImagerPixelSpacing = [round(240 / shape[0], 4)] * 2  # mm; a detector is about 240 mm high
    ds.BitsAllocated, ds.BitsStored = encoding.bits_allocated, encoding.bits_stored
    ds.HighBit = encoding.bits_stored - 1
    if encoding.padding is not None:
        ds.PixelPaddingValue = encoding.padding
    if encoding.window is not None:
        ds.WindowCenter, ds.WindowWidth = list(encoding.window.centers), list(encoding.window.widths)
        ds.WindowCenterWidthExplanation = ["NORMAL", "HARDER", "SOFTER"][: len(encoding.window.centers)]
        ds.VOILUTFunction = encoding.window.function
    return ds


def quantise(shown: FloatImage, encoding: Encoding) -> npt.NDArray[np.uint16]:
    """Return the stored values that a viewer shows as ``shown`` (0 to 1); 0 becomes the padding or blackest value."""
    top = 2**encoding.bits_stored - 1
    dark_is_high = encoding.photometric == "MONOCHROME1"  # the inversion comes after the VOI window: PS3.3 C.7.6.3.1.2
    value = 1 - shown if dark_is_high else shown
    stored = np.rint(encoding.window.invert(value) if encoding.window else value * top)
    black = encoding.padding if encoding.padding is not None else top * dark_is_high
    return np.where(shown == 0, black, np.clip(stored, 0, top)).astype(np.uint16)
