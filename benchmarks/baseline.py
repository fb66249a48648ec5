"""What people do today, and how far another decode is from it.

``pydicom.dcmread(path).pixel_array``, the VOI window, the inversion of MONOCHROME1, an area resize.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import pixels
from skimage.metrics import structural_similarity

from mammoray.decode import Decoded

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Error:
    """Difference from the baseline over the breast."""

    mean: float
    """Mean absolute difference, as a share of the range."""
    ssim: float
    """Structural similarity (Wang et al. 2004: Gaussian of 1.5 pixels), its mean over the breast."""


def windowed(path: Path, plugin: str = "") -> FloatImage:
    """Decode in full: (h, w) from 0, black, to 1, dense; with the decoder that pydicom chooses, or ``plugin``."""
    dataset = pydicom.dcmread(path)
    if plugin:
        dataset.pixel_array_options(decoding_plugin=plugin)
    stored = dataset.pixel_array
    if "ModalityLUTSequence" in dataset or (dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)) != (
        1,
        0,
    ):
        stored = pixels.apply_modality_lut(stored, dataset)
    shown = pixels.apply_voi_lut(stored, dataset)
    low, high = _range(dataset)
    grey = (shown.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return 1 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Values that pydicom's windowing makes black and white."""
    if "VOILUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    ends = np.array([0, 2**bits - 1]) - signed * 2 ** (bits - 1)
    low, high = pixels.apply_modality_lut(ends.astype(np.int32), dataset)
    return float(low), float(high)


def shrink(grey: FloatImage, box: tuple[slice, slice], size: tuple[int, int]) -> FloatImage:
    """Area resize of ``box`` to ``size`` (rows, columns); linear where that enlarges."""
    cut = np.ascontiguousarray(grey[box])
    how = cv2.INTER_AREA if size[0] <= cut.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, size[::-1], interpolation=how), np.float32)


def frame_of(decoded: Decoded) -> tuple[tuple[slice, slice], tuple[int, int], tuple[slice, slice]]:
    """Box in the stored image, size that it was brought to, and where that lies in the decoded frame."""
    g = decoded.geometry
    rows, columns = round(g.height * g.scale_y), round(g.width * g.scale_x)
    box = (slice(g.top, g.top + g.height), slice(g.left, g.left + g.width))
    return box, (rows, columns), (slice(g.pad_top, g.pad_top + rows), slice(g.pad_left, g.pad_left + columns))


def breast(grey: FloatImage) -> npt.NDArray[np.bool_]:
    """The largest bright region of a windowed image, by a share of Otsu's threshold that keeps the fat."""
    grey8 = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    otsu, _ = cv2.threshold(grey8, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    bright = cv2.morphologyEx((grey8 > max(8, otsu * 0.5)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    _, regions, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
    return np.asarray(regions == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))) if len(stats) > 1 else grey >= 0


def error(decoded: Decoded, grey: FloatImage) -> Error:
    """How far a decoded image is from ``grey``, the whole windowed image, of which the same box is resized by area."""
    box, size, place = frame_of(decoded)
    wanted = np.clip(shrink(grey, box, size), 0, 1)
    scale = float(np.iinfo(decoded.pixels.dtype).max)
    return compare(decoded.pixels[place].astype(np.float32) / scale, wanted)


def compare(found: FloatImage, wanted: FloatImage) -> Error:
    """Difference of two images of 0 to 1 over the breast of the second."""
    mask = breast(wanted)
    similar: Any = structural_similarity(
        wanted, found, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    return Error(float(np.abs(found - wanted)[mask].mean()), float(similar[mask].mean()))
