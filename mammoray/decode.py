"""One DICOM file to one grey image, ``(H, W)``, dense tissue bright and background 0.

The order of the steps is DICOM's (PS3.3 C.7.6.3, C.11.1, C.11.2), with the resize put before the grey-scale steps,
which are then done on few pixels: stored values -> padding -> crop -> resize -> modality LUT -> VOI -> MONOCHROME1
inversion -> mirror -> pad to the frame. Nothing is guessed: what cannot be decoded as the header says raises
:class:`DecodeError`.

Shapes: ``H, W`` the decoded image, ``h, w`` the stored one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import encaps, pixels
from pydicom.errors import InvalidDicomError

from mammoray.config import DecodeConfig
from mammoray.errors import DecodeError

DECODER_VERSION = 1
"""Part of the cache key: raise it whenever the same file and settings would give other pixels."""

_MAX_PIXELS = 2**28  # 16,384 x 16,384, three times the largest detector; a damaged header can claim 2**32.
_THUMBNAIL = 256  # Long side on which the breast is looked for, in pixels.
_EOI = b"\xff\xd9"

Image = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How an output pixel maps back to the stored image.

    Attributes
    ----------
    top, left, height, width : int
        The crop, in stored pixels.
    mirrored : bool
        Whether the crop was mirrored left to right.
    scale_y, scale_x : float
        Output pixels per stored pixel.
    pad_top, pad_left : int
        Position of the resized crop in the output frame, in output pixels.
    """

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    scale_y: float
    scale_x: float
    pad_top: int
    pad_left: int

    def to_source(self, row: float, column: float) -> tuple[float, float]:
        """Stored (row, column) of an output position; pixel centres are at whole numbers."""
        y = (row - self.pad_top + 0.5) / self.scale_y - 0.5
        x = (column - self.pad_left + 0.5) / self.scale_x - 0.5
        return self.top + y, self.left + (self.width - 1 - x if self.mirrored else x)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A decoded image: ``pixels`` is (H, W), uint8 or uint16 by ``DecodeConfig.depth``."""

    pixels: Image
    geometry: Geometry
    transfer_syntax: str


def decode(source: Path | bytes, config: DecodeConfig, name: str | None = None) -> Decoded:
    """Decode one mammogram.

    Parameters
    ----------
    source : Path or bytes
        A DICOM file, or its content.
    config : DecodeConfig
        Size, window, crop, orientation, resize and depth.
    name : str, optional
        How errors call the file.

    Raises
    ------
    DecodeError
        Not a DICOM, no image, colour, several frames, a size that cannot be, pixels that contradict the header, a
        truncated or damaged codestream, or an image without content.
    OSError
        The file cannot be read at all.
    """
    name = name or (str(source) if isinstance(source, Path) else "bytes")
    content = source.read_bytes() if isinstance(source, Path) else source
    with _pydicom_silent():
        try:
            return _decode(content, config, name)
        except DecodeError:
            raise
        except Exception as error:
            # pydicom parses an element when it is asked for, and damage shows then. Only the kind of the error is
            # told: the text of pydicom's errors quotes header values.
            found = f"{type(error).__name__} while reading it"
            raise DecodeError(
                name, "a header that can be read", found, "Copy the file again from its source."
            ) from None


@contextlib.contextmanager
def _pydicom_silent() -> Iterator[None]:
    """Keep pydicom from warning and logging: it quotes header values that it finds odd, a patient's name among them."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _decode(content: bytes, config: DecodeConfig, name: str) -> Decoded:
    dataset = _read(content, name)
    _drop_empty(dataset)
    _check_header(dataset, name)
    stored = _stored_values(dataset, name)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    stored, padding = _take_out_padding(stored, dataset, inverted)
    top, left, height, width, mirrored = _locate_breast(stored, inverted, config)
    box = np.s_[top : top + height, left : left + width]
    small, scale_y, scale_x = _resize(stored[box], config)
    grey = _to_grey(small, dataset, config, name)
    if padding is not None:
        grey *= 1.0 - _resize(padding[box], config)[0]
    grey = grey[:, ::-1] if mirrored else grey
    pad_top = (config.height - grey.shape[0]) // 2
    # The chest wall stays at the left edge: padding goes to the nipple's side.
    pad_left = 0 if config.orient == "left" else (config.width - grey.shape[1]) // 2
    frame = np.zeros((config.height, config.width), dtype=np.uint8 if config.depth == 8 else np.uint16)
    frame[pad_top : pad_top + grey.shape[0], pad_left : pad_left + grey.shape[1]] = np.rint(
        grey * (2**config.depth - 1)
    )
    geometry = Geometry(
        top=top,
        left=left,
        height=height,
        width=width,
        mirrored=mirrored,
        scale_y=scale_y,
        scale_x=scale_x,
        pad_top=pad_top,
        pad_left=pad_left,
    )
    return Decoded(pixels=frame, geometry=geometry, transfer_syntax=str(dataset.file_meta.TransferSyntaxUID))


_COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_OPTIONAL = (
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelAspectRatio",
)  # fmt: skip


def _drop_empty(dataset: pydicom.FileDataset) -> None:
    """Take out optional elements without a value, which anonymisers leave behind: they say no more than absent ones."""
    for keyword in _OPTIONAL:
        if keyword in dataset and dataset[keyword].is_empty:
            del dataset[keyword]


def _read(content: bytes, name: str) -> pydicom.FileDataset:
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        if "TransferSyntaxUID" not in dataset.file_meta:
            raise InvalidDicomError("no Transfer Syntax UID (0002,0010)")
        return dataset
    except InvalidDicomError as error:
        raise DecodeError(
            name, "a DICOM file", str(error).split(". ")[0], "Check that the file is a DICOM, and whole."
        ) from None
    except Exception as error:
        raise DecodeError(
            name, "a DICOM file", f"{type(error).__name__} while parsing", "Copy the file again from its source."
        ) from None


def _check_header(dataset: pydicom.FileDataset, name: str) -> None:
    if "PixelData" not in dataset:
        raise DecodeError(
            f"{name}: Pixel Data (7FE0,0010)", "an image", "no such element", "Leave the file out of the CSV."
        )
    rows, columns = _integer(dataset, "Rows", name), _integer(dataset, "Columns", name)
    if not 0 < rows * columns <= _MAX_PIXELS:
        raise DecodeError(
            f"{name}: Rows x Columns",
            f"1 to {_MAX_PIXELS} pixels",
            f"{rows} x {columns}",
            "The header is damaged; copy it again.",
        )
    if (samples := _integer(dataset, "SamplesPerPixel", name, 1)) != 1:
        raise DecodeError(
            f"{name}: Samples per Pixel (0028,0002)", "1 (grey)", str(samples), "Leave colour images out of the CSV."
        )
    if (frames := _integer(dataset, "NumberOfFrames", name, 1)) != 1:
        raise DecodeError(
            f"{name}: Number of Frames (0028,0008)", "1", str(frames), "Extract the frame that is wanted."
        )
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = photometric if photometric in _COLOUR else "another"
        where = f"{name}: Photometric Interpretation (0028,0004)"
        raise DecodeError(where, "MONOCHROME1 or MONOCHROME2", found, "Leave the file out of the CSV.")
    aspect = [int(side) for side in dataset.get("PixelAspectRatio", (1, 1))]
    if aspect[0] != aspect[1]:
        where = f"{name}: Pixel Aspect Ratio (0028,0034)"
        raise DecodeError(where, "square pixels", f"{aspect[0]}:{aspect[1]}", "Resample the image to square pixels.")
    allocated, bits = _integer(dataset, "BitsAllocated", name), _integer(dataset, "BitsStored", name)
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        raise DecodeError(
            f"{name}: Bits Allocated / Stored",
            "8 or 16, and no more stored",
            f"{allocated} / {bits}",
            "The header is damaged.",
        )


def _integer(dataset: pydicom.FileDataset, keyword: str, name: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DecodeError(
            f"{name}: {keyword}", "an integer", "nothing" if value is None else "no integer", "The header is damaged."
        ) from None


class _TruncatedError(Exception):
    """The codestream has no end marker."""


def _jpeg(codestream: bytes) -> Image:
    # libjpeg-turbo fills the rest of a truncated image with grey and says nothing.
    if not codestream.rstrip(b"\x00").endswith(_EOI):
        raise _TruncatedError
    return np.asarray(imagecodecs.jpeg8_decode(codestream))


def _jpeg2000(codestream: bytes) -> Image:
    return np.asarray(imagecodecs.jpeg2k_decode(codestream, numthreads=1))


def _htj2k(codestream: bytes) -> Image:
    return np.asarray(imagecodecs.htj2k_decode(codestream))


def _jpegls(codestream: bytes) -> Image:
    return np.asarray(imagecodecs.jpegls_decode(codestream))


_CODECS: dict[str, Callable[[bytes], Image]] = {
    "1.2.840.10008.1.2.4.50": _jpeg,
    "1.2.840.10008.1.2.4.51": _jpeg,
    "1.2.840.10008.1.2.4.57": _jpeg,
    "1.2.840.10008.1.2.4.70": _jpeg,
    "1.2.840.10008.1.2.4.80": _jpegls,
    "1.2.840.10008.1.2.4.81": _jpegls,
    "1.2.840.10008.1.2.4.90": _jpeg2000,
    "1.2.840.10008.1.2.4.91": _jpeg2000,
    "1.2.840.10008.1.2.4.201": _htj2k,
    "1.2.840.10008.1.2.4.202": _htj2k,
    "1.2.840.10008.1.2.4.203": _htj2k,
}


def _stored_values(dataset: pydicom.FileDataset, name: str) -> Image:
    """Stored values, (h, w), checked against the header. Syntaxes without an own codec go to pydicom's decoders."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    try:
        if syntax in _CODECS:
            codestream = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
            stored = _CODECS[syntax](codestream)
        else:
            stored = pixels.pixel_array(dataset, raw=True)
    except Exception as error:
        # Every codec has its own errors. Only the kind is told: the text of pydicom's errors quotes header values.
        found = "no end marker: it is truncated" if isinstance(error, _TruncatedError) else type(error).__name__
        where, remedy = f"{name}: Pixel Data (7FE0,0010)", "Copy the file again from its source."
        raise DecodeError(where, f"an image in transfer syntax {syntax}", found, remedy) from None
    if stored.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise DecodeError(
            f"{name}: Pixel Data (7FE0,0010)",
            f"{dataset.Rows} x {dataset.Columns} as the header says",
            f"{stored.shape}",
            "The file is damaged; copy it again.",
        )
    return _check_values(_sign(stored, dataset), dataset, name)


def _sign(stored: Image, dataset: pydicom.FileDataset) -> Image:
    if int(dataset.get("PixelRepresentation", 0)) == 0:
        return stored
    # PS3.5 8.1.1: two's complement of BitsStored bits; codecs that know no sign hand over the bare bits.
    bits = stored.dtype.itemsize * 8
    signed = stored.view(np.dtype(f"int{bits}"))
    shift = bits - int(dataset.BitsStored)
    return (signed << shift) >> shift


def _check_values(stored: Image, dataset: pydicom.FileDataset, name: str) -> Image:
    low, high = int(stored.min()), int(stored.max())
    if low == high:
        raise DecodeError(
            f"{name}: Pixel Data (7FE0,0010)",
            "an image",
            f"the value {low} in every pixel",
            "Leave the file out of the CSV.",
        )
    if high >= 2 ** int(dataset.BitsStored):
        # Also the sign of a damaged lossless JPEG: an error in its differences runs through the rest of the image.
        raise DecodeError(
            f"{name}: Pixel Data (7FE0,0010)",
            f"values below 2**{dataset.BitsStored} (Bits Stored)",
            str(high),
            "The file is damaged; copy it again.",
        )
    return stored


def _take_out_padding(stored: Image, dataset: pydicom.FileDataset, inverted: bool) -> tuple[Image, Image | None]:
    """Stored values with padding pixels (PS3.3 C.7.5.1.1.2) levelled to the darkest tissue, and where they were.

    Levelled, they do not drag their neighbours to the end of the range when the image is reduced; they are made black
    after the window, by their share of each output pixel.
    """
    padding = dataset.get("PixelPaddingValue")
    if not isinstance(padding, int):
        return stored, None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((padding, limit if isinstance(limit, int) else padding))
    is_padding = (stored >= low) & (stored <= high)
    if not is_padding.any() or is_padding.all():
        return stored, None
    inside = stored[~is_padding]
    return np.where(is_padding, inside.max() if inverted else inside.min(), stored), is_padding


def _locate_breast(stored: Image, inverted: bool, config: DecodeConfig) -> tuple[int, int, int, int, bool]:
    """Crop (top, left, height, width) in stored pixels, and whether to mirror it."""
    h, w = stored.shape
    if config.crop == "none" and config.orient == "none":
        return 0, 0, h, w, False
    factor = max(1, -(-max(h, w) // _THUMBNAIL))
    size = (max(1, w // factor), max(1, h // factor))
    mask = breast_mask(cv2.resize(stored.astype(np.float32), size, interpolation=cv2.INTER_AREA), inverted)
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, y1, x0, x1 = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
    box = mask[y0:y1, x0:x1]
    third = max(1, box.shape[1] // 3)
    # The breast is tallest at the chest wall, whatever the header says about its side.
    mirrored = config.orient == "left" and bool(box[:, -third:].sum() > box[:, :third].sum())
    if config.crop == "none":
        return 0, 0, h, w, mirrored
    top, bottom = y0 * h // size[1], -(-y1 * h // size[1])
    left, right = x0 * w // size[0], -(-x1 * w // size[0])
    return top, left, bottom - top, right - left, mirrored


def breast_mask(thumbnail: Image, inverted: bool) -> npt.NDArray[np.bool_]:
    """Where the breast is: the largest bright region of a small image.

    Parameters
    ----------
    thumbnail : (h, w) float32
        Stored values, reduced.
    inverted : bool
        True for MONOCHROME1.

    Returns
    -------
    (h, w) bool
        Never empty: the whole image where nothing stands out.
    """
    low, high = np.percentile(thumbnail, (0.5, 99.5))
    grey = np.clip((thumbnail - low) / max(high - low, 1e-6), 0, 1)
    grey8 = np.rint((1 - grey if inverted else grey) * 255).astype(np.uint8)
    # Otsu divides glandular from fatty tissue when the breast fills the image; a share of it keeps the fat.
    otsu, _ = cv2.threshold(grey8, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    foreground = (grey8 > max(8, otsu * 0.35)).astype(np.uint8)
    # Opening cuts labels and scanner edges off the breast where they touch it.
    foreground = cv2.morphologyEx(foreground, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, regions, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=4)
    if count < 2:
        return np.ones(thumbnail.shape, dtype=np.bool_)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(regions == largest)


def _resize(crop: Image, config: DecodeConfig) -> tuple[Image, float, float]:
    """Resized crop, (<=H, <=W) float32, and the scales along y and x, in output pixels per stored pixel."""
    h, w = crop.shape
    if config.resize == "stretch":
        out_h, out_w = config.height, config.width
    else:
        scale = min(config.height / h, config.width / w)
        out_h, out_w = max(1, round(h * scale)), max(1, round(w * scale))
    shrinks = out_h <= h and out_w <= w
    small = cv2.resize(
        np.ascontiguousarray(crop, dtype=np.float32),
        (out_w, out_h),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return small, out_h / h, out_w / w


def _to_grey(small: Image, dataset: pydicom.FileDataset, config: DecodeConfig, name: str) -> npt.NDArray[np.float64]:
    """Modality LUT, window and inversion on the resized stored values: float64 in 0 to 1, bright is dense."""
    try:
        low, high, values = _window(small, dataset, config)
    except Exception as error:
        # A malformed LUT or window fails in many ways inside pydicom.
        where, found = f"{name}: modality or VOI LUT", type(error).__name__
        raise DecodeError(where, "a valid window or LUT", found, "Use --window percentile.") from None
    grey = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    if grey.min() == grey.max():
        where = f"{name}: VOI window"
        raise DecodeError(where, "a window that shows something", "one grey everywhere", "Use --window percentile.")
    return 1.0 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _window(
    small: Image, dataset: pydicom.FileDataset, config: DecodeConfig
) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Black and white values and the image between them, after the modality LUT (PS3.3 C.11.1) in every mode."""
    modality = np.asarray(pixels.apply_modality_lut(np.rint(small).astype(np.int32), dataset), dtype=np.float64)
    if config.window == "percentile":
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        tissue = modality[breast_mask(modality.astype(np.float32), inverted)]
        low, high = np.percentile(tissue, (0.5, 99.0) if inverted else (1.0, 99.5))
        return float(low), float(high), modality
    ends = _full_range(dataset)
    if config.window == "none":
        return float(ends.min()), float(ends.max()), modality
    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        indices = np.rint(modality).astype(np.int32)
        return 0.0, float(2**bits - 1), np.asarray(pixels.apply_voi(indices, dataset, index=0), dtype=np.float64)
    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        return float(ends.min()), float(ends.max()), modality
    # pydicom's windowing returns values in the modality range of the stored bits, PS3.3 C.11.2.1.2.
    shown = np.asarray(pixels.apply_windowing(modality, dataset, index=0), dtype=np.float64)
    return float(ends.min()), float(ends.max()), shown


def _full_range(dataset: pydicom.FileDataset) -> npt.NDArray[np.float64]:
    """The two ends of the modality range of the stored bits."""
    if "ModalityLUTSequence" in dataset:
        return np.array([0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1])
    bits = int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], dtype=np.int32)
    return np.asarray(pixels.apply_modality_lut(ends, dataset), dtype=np.float64)
