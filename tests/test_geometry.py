"""Where the pixels of a decoded image stand in the stored one: a blob has to be where the geometry says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import uid

from mammoray import machines
from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.machines import Encoding
from mammoray.plain import replace

SHAPE = (407, 311)
SYNTAXES = [uid.JPEG2000Lossless, uid.JPEG2000, uid.ExplicitVRLittleEndian, uid.JPEGLSLossless]
BLOBS = [(120.3, 60.8), (203.0, 61.4), (250.6, 130.7), (290.2, 77.5)]
CONFIG = DecodeConfig(window="none", depth=16, crop="none", orient="none", background="keep")
WINDOWS = {  # Settings, and whether the image is mirrored by them.
    "whole": (CONFIG, False),
    "mirrored by its header": (replace(CONFIG, orient="laterality"), True),
    "breast": (replace(CONFIG, crop="breast", orient="content"), False),
    "breast, mirrored": (replace(CONFIG, crop="breast", orient="content"), True),
    "stretched": (replace(CONFIG, crop="breast", orient="content", resize="stretch"), False),
}


def image(blob: tuple[float, float] | None, sigma: float, mirrored: bool) -> npt.NDArray[np.uint16]:
    """A breast at the left (or the right), and in it a Gaussian blob at (row, column) of the image not mirrored."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inside = ((y - 200) / 170) ** 2 + (x / 240) ** 2 < 1
    values = np.where(inside, 12000.0, 0)
    if blob is not None:
        values += 20000 * np.exp(-((y - blob[0]) ** 2 + (x - blob[1]) ** 2) / (2 * sigma**2))
    return np.rint(values[:, ::-1] if mirrored else values).astype(np.uint16)


def decoded(syntax: str, blob: tuple[float, float] | None, sigma: float, config: DecodeConfig, right: bool) -> Decoded:
    encoding = Encoding(transfer_syntax=syntax, bits_stored=16, window=None)
    content = machines.make_dicom(image(blob, sigma, right), encoding, laterality="R" if right else "L")
    return decode(content, config)


def centroid(difference: npt.NDArray[Any]) -> tuple[float, float]:
    """(row, column) of a blob, by the part of it that stands out of rounding and of lossy coding."""
    weight = np.where(difference > 0.05 * difference.max(), difference, 0).astype(float)
    rows, columns = np.indices(weight.shape)
    return float((rows * weight).sum() / weight.sum()), float((columns * weight).sum() / weight.sum())


# What a lossy codec leaves of the skin decides over a thumbnail's pixel of the box: it goes without the crop.
CASES = [(s, w) for s in SYNTAXES for w, (config, _) in WINDOWS.items() if s != uid.JPEG2000 or config.crop == "none"]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(("syntax", "window"), CASES)
def test_output_pixels_are_where_the_geometry_says(syntax: str, level: int, window: str) -> None:
    config, right = WINDOWS[window]
    divisor = 1.37 * 2**level
    config = replace(config, height=int(SHAPE[0] / divisor), width=max(32, int(SHAPE[1] / divisor)))
    sigma = 1.6 * divisor
    empty = decoded(syntax, None, sigma, config, right)
    assert empty.geometry.mirrored == right
    assert window == "stretched" or empty.geometry.level in (level - 1, level)
    for blob in BLOBS:
        found = decoded(syntax, blob, sigma, config, right)
        assert found.geometry == empty.geometry
        row, column = centroid(found.pixels.astype(int) - empty.pixels)
        y, x = found.geometry.to_source(row, column)
        x = SHAPE[1] - 1 - x if right else x
        assert abs(y - blob[0]) * found.geometry.scale_y < 0.1
        assert abs(x - blob[1]) * found.geometry.scale_x < 0.1
