"""Synthetic data sets in the layout and the DICOM encodings of the real ones: ``mammoray synth``, the demo, all tests.

Everything follows from the seed: identifiers, tables, pixels, and so the bytes of every file. No date, no name, no
random UID enters. How a file is encoded goes with its machine, and machines are dealt independently of density.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder

from mammoray.config import SynthConfig, digest
from mammoray.errors import ConfigError, RunFolderError
from mammoray.phantom import FloatImage, Tone, anatomy, expose, render

VERSION = 1
"""Counts up whenever the same seed and settings begin to give other files."""
MARK = "synth.json"
"""Written last: a folder without it is not a complete data set."""
COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
"""Columns of RSNA's train.csv, in its order."""
CLASS_SHARE = {"A": 0.2, "B": 0.3, "C": 0.3, "D": 0.2}
"""Flatter than any real set (RSNA: 10, 43, 42, 5 %), so that small sets hold all classes."""
PIXELS_PER_PROCESS = 20_000_000
"""A process more for every so many pixels: about two seconds of work, as a process takes one to start."""
_AGE = {"A": 60.0, "B": 60.0, "C": 54.8, "D": 50.4}


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
    """Bits in use, of 16 allocated."""
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


def _jpeg2000(pixels: npt.NDArray[Any], bits: int) -> bytes:
    return bytes(
        imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k", bitspersample=bits, numthreads=1)
    )


def _rle(pixels: npt.NDArray[Any], bits: int) -> bytes:
    rows, columns = pixels.shape
    encoded: bytes = get_encoder(uid.RLELossless).encode(
        pixels, rows=rows, columns=columns, samples_per_pixel=1, bits_allocated=16, bits_stored=bits,
        number_of_frames=1, pixel_representation=int(pixels.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    return encoded


CODECS: dict[str, Callable[[npt.NDArray[Any], int], bytes] | None] = {
    uid.JPEG2000Lossless: _jpeg2000,
    uid.JPEG2000: _jpeg2000,
    uid.JPEGLosslessSV1: lambda p, bits: bytes(
        imagecodecs.jpeg8_encode(p, lossless=True, predictor=1, bitspersample=bits)
    ),
    uid.JPEGLSLossless: lambda p, bits: bytes(imagecodecs.jpegls_encode(p)),
    uid.HTJ2KLossless: lambda p, bits: bytes(imagecodecs.htj2k_encode(p, level=0, reversible=True)),
    uid.RLELossless: _rle,
    uid.ExplicitVRLittleEndian: None,
    uid.ImplicitVRLittleEndian: None,
}
"""Transfer syntaxes that :func:`make_dicom` writes, all of them lossless; None: not compressed."""
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
) -> bytes:
    """Encode one image as a Digital Mammography X-Ray Image, For Presentation: the factory of all DICOM files in tests.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W) stored values, uint16 (or int16, which sets Pixel Representation 1); they are written as they are.
    encoding : Encoding, optional
        Transfer syntax, photometric interpretation, bits, window, padding. Default: ``Encoding()``.
    laterality, view, patient_id : str
        Header values.
    key : sequence
        What the UIDs are derived from; the last element tells images of a study apart.
    attributes : mapping of str to Any, optional
        DICOM keywords to set, last of all, to a value, or with None to leave out: for tests of odd headers.

    Returns
    -------
    bytes
        A DICOM file with preamble; the same arguments give the same bytes.

    Raises
    ------
    ValueError
        Where a pixel does not fit into ``encoding.bits_stored`` bits, or the transfer syntax is not in :data:`CODECS`.

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
    if encoding.transfer_syntax not in CODECS:
        raise ValueError(f"transfer syntax {encoding.transfer_syntax} is none of {', '.join(CODECS)}")
    if int(pixels.max()) >> encoding.bits_stored:
        raise ValueError(f"pixel {int(pixels.max())} does not fit into {encoding.bits_stored} bits")
    dataset = _header(encoding, laterality, view, patient_id, key, pixels.shape)
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    codec = CODECS[encoding.transfer_syntax]
    if codec is None:
        dataset.PixelData = pixels.astype("<u2" if pixels.dtype.kind == "u" else "<i2").tobytes()
    else:
        dataset.PixelData = encapsulate([codec(np.ascontiguousarray(pixels), encoding.bits_stored)])
    dataset["PixelData"].VR = "OW"
    for keyword, value in (attributes or {}).items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


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
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, encoding.bits_stored, encoding.bits_stored - 1
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthSummary:
    """What :func:`write` wrote, or found already written."""

    csv: Path
    """The table: train.csv or classificacao.csv."""
    root: Path
    """The folder of the images: what ``--dicom-root`` takes."""
    images: int
    patients: int
    per_class: dict[str, int]
    """Patients of each class A to D; with ``unlabelled`` and, in the IRMA layout, the excluded class ``5``."""
    per_syntax: dict[str, int]
    """Images of each transfer syntax, by UID."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Patient:
    """Everything about a patient that depends on the others: identifiers and what is dealt by quota."""

    index: int
    folder: str
    density: str
    site: int
    machine: str
    image_ids: tuple[int, ...]
    aged: bool
    excluded: bool


def quota(total: int, shares: Mapping[str, float], least: int = 0) -> list[str]:
    """``total`` names in the proportions of ``shares`` by largest remainder, each at least ``least`` times.

    Examples
    --------
    >>> "".join(quota(24, CLASS_SHARE, least=5))
    'AAAAABBBBBBBCCCCCCCDDDDD'
    """
    least = min(least, total // len(shares))
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    count = {name: max(int(value), least) for name, value in exact.items()}
    while sum(count.values()) != total:
        step = 1 if sum(count.values()) < total else -1
        movable = [name for name in count if step > 0 or count[name] > least]
        count[max(movable, key=lambda name: step * (exact[name] - count[name]))] += step
    return [name for name in count for _ in range(count[name])]


def _plan(config: SynthConfig, seed: int) -> list[_Patient]:
    rng = np.random.default_rng([seed, 0])
    n, film = config.patients, config.layout == "irma"
    excluded = n // 20 if film else 0
    elsewhere = 0 if film else round(n * config.unlabelled)
    labelled = n - excluded - elsewhere

    def shuffled(names: list[str]) -> list[str]:
        return [names[i] for i in rng.permutation(len(names))]

    classes = shuffled(quota(labelled, CLASS_SHARE, least=5))
    classes += shuffled(quota(n - labelled, CLASS_SHARE))
    home = {name: m.share for name, m in (FILM if film else SITES[1]).items()}
    machines = shuffled(quota(n - elsewhere, home, least=1))
    machines += shuffled(quota(elsewhere, {name: m.share for name, m in SITES[2].items()}, least=1))
    folders = rng.choice(200_000 if film else 65_535, n, replace=False) + 1
    images = rng.choice(2**31 - 1, (n, 8), replace=False)
    ageless = set(rng.choice(n, n // 25, replace=False).tolist())
    return [
        _Patient(
            index=i,
            folder=f"{folders[i]:06d}" if film else str(folders[i]),
            density=classes[i],
            site=1 if i < n - elsewhere else 2,
            machine=machines[i],
            image_ids=tuple(int(v) for v in images[i]),
            aged=i not in ageless,
            excluded=film and i >= labelled,
        )
        for i in range(n)
    ]


def _views(patient: _Patient, rng: np.random.Generator) -> list[tuple[str, str]]:
    if patient.excluded:  # "non-standard incidence"
        return [(laterality, view) for laterality in "LR" for view in ("ML", "LM")]
    views = [(laterality, view) for laterality in "LR" for view in ("CC", "MLO")]
    more = int(rng.integers(1, 3)) if rng.random() < (0.25 if patient.site == 1 else 0.1) else 0
    kinds = rng.choice(["CC", "MLO", "AT", "LM", "ML", "LMO"], more, p=[0.35, 0.35, 0.12, 0.08, 0.08, 0.02])
    return views + [(str(rng.choice(["L", "R"])), str(kind)) for kind in kinds]


def _age(density: str, rng: np.random.Generator) -> float:
    return float(np.clip(round(rng.normal(_AGE[density], 9)), 26, 89))


def _findings(site: int, rng: np.random.Generator) -> dict[str, object]:
    """Draw a breast's columns: invasive implies cancer; cancer implies biopsy and, at site 1, BIRADS 0."""
    cancer = rng.random() < 0.04
    birads = rng.choice(["", "0.0", "1.0", "2.0"], p=[0.11, 0.24, 0.57, 0.08])
    birads = "" if site == 2 else "0.0" if cancer else str(birads)
    recalled = birads == "0.0" and not cancer
    return {
        "cancer": int(cancer),
        "biopsy": int(cancer or (recalled and rng.random() < 0.2)),
        "invasive": int(cancer and rng.random() < 0.7),
        "BIRADS": birads,
        "difficult_negative_case": recalled or (site == 2 and not cancer and rng.random() < 0.005),
    }


def _write_patient(root: Path, patient: _Patient, config: SynthConfig, seed: int) -> list[dict[str, object]]:
    """Write a patient's files; returns a row per image, with the columns of the CSV and the transfer syntax."""
    rng = np.random.default_rng([seed, 1, patient.index])
    film = config.layout == "irma"
    machine = (FILM if film else SITES[patient.site])[patient.machine]
    woman = anatomy(patient.density, rng, implant=not film and patient.site == 1 and rng.random() < 0.03)
    age = _age(patient.density, rng)
    findings = {laterality: _findings(patient.site, rng) for laterality in "LR"}
    rows: list[dict[str, object]] = []
    (root / patient.folder).mkdir(parents=True)
    for k, (laterality, view) in enumerate(_views(patient, rng)):
        name = f"IM{k + 1:04d}" if film else str(patient.image_ids[k])
        rng_image = np.random.default_rng([seed, 2, patient.index, k])
        phantom = render(woman, laterality, view, (config.height, config.width), rng_image)
        data = make_dicom(
            quantise(expose(phantom, machine.tone, f"{laterality} {view}", rng_image), machine.encoding),
            machine.encoding,
            laterality=laterality,
            view=view,
            patient_id=patient.folder,
            key=(digest(config), seed, patient.index, k),
            attributes={"BreastImplantPresent": "YES"} if woman.implant else None,
        )
        (root / patient.folder / f"{name}.dcm").write_bytes(data)
        rows.append(
            {
                "site_id": patient.site,
                "patient_id": patient.folder,
                "image_id": name,
                "laterality": laterality,
                "view": view,
                "age": age if patient.aged else "",
                "implant": int(woman.implant),
                "density": "" if patient.site == 2 else patient.density,
                "machine_id": patient.machine,
                "syntax": str(machine.encoding.transfer_syntax),
                **findings[laterality],
            }
        )
    return rows


def write(outdir: Path, config: SynthConfig, seed: int) -> SynthSummary:
    """Write a data set, or return the summary of the same one where it is already there.

    The files depend on ``config`` and ``seed`` only, not on the number of processes. ``synth.json`` is written last.

    Parameters
    ----------
    outdir : Path
        A folder that does not exist, is empty, or holds exactly this data set.
    config : SynthConfig
        Size and layout.
    seed : int
        0 or more.

    Raises
    ------
    ConfigError
        For a negative seed, or ``unlabelled`` in the IRMA layout, which has one site only.
    RunFolderError
        Where ``outdir`` holds anything else, or cannot be written.
    """
    if seed < 0:
        raise ConfigError("--seed", "0 or more", str(seed), "Change --seed.")
    if config.layout == "irma" and config.unlabelled:
        raise ConfigError(
            "--unlabelled with --layout irma", "0, as every exam there is classified", str(config.unlabelled),
            "Leave out one of them.",
        )  # fmt: skip
    same = {"version": VERSION, "seed": seed, "config": asdict(config)}
    present = _present(outdir, same)
    if present is not None:
        return present
    folder = "train_images" if config.layout == "rsna" else "archive"
    try:
        (outdir / folder).mkdir(parents=True, exist_ok=True)
        plan = _plan(config, seed)
        by_patient = _run(outdir / folder, plan, config, seed)
        rows = [row for _, rows in sorted(zip((int(p.folder) for p in plan), by_patient, strict=True)) for row in rows]
        table = _write_rsna(outdir, rows) if config.layout == "rsna" else _write_irma(outdir, plan)
        counted = {
            "csv": table.name,
            "root": folder,
            "images": len(rows),
            "patients": len(plan),
            "per_class": dict(sorted(Counter(_class(p) for p in plan).items())),
            "per_syntax": dict(sorted(Counter(str(row["syntax"]) for row in rows).items())),
        }
        draft = outdir / (MARK + ".partial")
        draft.write_text(json.dumps({**same, "summary": counted}, indent=1) + "\n", encoding="utf-8")
        draft.replace(outdir / MARK)
    except OSError as error:
        raise RunFolderError(str(outdir), "a writable folder", str(error), "Choose another folder.") from error
    return _summary(outdir, counted)


def _class(patient: _Patient) -> str:
    return "5" if patient.excluded else "unlabelled" if patient.site == 2 else patient.density


def _summary(outdir: Path, counted: dict[str, Any]) -> SynthSummary:
    return SynthSummary(**{**counted, "csv": outdir / counted["csv"], "root": outdir / counted["root"]})


def _present(outdir: Path, same: dict[str, Any]) -> SynthSummary | None:
    """Return the summary of the same data set in ``outdir``, None where nothing is; raise for anything else."""
    if not outdir.exists() or (outdir.is_dir() and not any(outdir.iterdir())):
        return None
    expected = "no folder, an empty one, or the same synthetic data set"
    remedy = "Choose another folder, or delete this one if nothing in it is needed."
    try:
        mark = json.loads((outdir / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"other files, or an unfinished data set (no readable {MARK})"
        raise RunFolderError(str(outdir), expected, found, remedy) from error
    mark = mark if isinstance(mark, dict) else {}
    if {name: mark.get(name) for name in same} != same:
        found = "a data set of other settings: " + ", ".join(f"{name} {mark.get(name)}" for name in same)
        raise RunFolderError(str(outdir), expected, found, remedy)
    summary = _summary(outdir, mark["summary"])
    images = sum(1 for _ in summary.root.rglob("*.dcm"))
    if images != summary.images or not summary.csv.is_file():
        raise RunFolderError(str(outdir), f"{summary.images} images and {summary.csv.name}", f"{images} images", remedy)
    return summary


def _run(root: Path, plan: list[_Patient], config: SynthConfig, seed: int) -> list[list[dict[str, object]]]:
    """Rows of every patient, in the plan's order, written by as many processes as are worth their start."""
    pixels = 4 * len(plan) * config.height * config.width
    processes = min(os.cpu_count() or 1, len(plan), 1 + pixels // PIXELS_PER_PROCESS)
    work = partial(_write_patient, root, config=config, seed=seed)
    if processes == 1:
        return [work(patient) for patient in plan]
    # Spawned, not forked: the caller may hold the threads of Ray, torch or OpenCV.
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        return list(pool.map(work, plan, chunksize=2))


def _write_rsna(outdir: Path, rows: list[dict[str, object]]) -> Path:
    return _table(outdir / "train.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


def _write_irma(outdir: Path, plan: list[_Patient]) -> Path:
    lines = [[p.folder, 5 if p.excluded else "ABCD".index(p.density) + 1] for p in sorted(plan, key=lambda p: p.folder)]
    return _table(outdir / "classificacao.csv", ("AccessionNumber", "Classification"), lines)


def _table(path: Path, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
    return path
