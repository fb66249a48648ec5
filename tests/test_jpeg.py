from __future__ import annotations

import re
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow

from mammoray import encoders, jpeg
from tests import raster_files
from tests.raster_files import Image

FORMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 5},
    "colour": {"mode": "RGB"},
    "colour, optimised": {"mode": "RGB", "optimize": True},
    "half the colour, restarts": {"mode": "RGB", "subsampling": 2, "restart_marker_blocks": 3},
    "half the colour, progressive": {"mode": "RGB", "subsampling": 2, "progressive": True, "restart_marker_blocks": 3},
}


def half_black(shape: tuple[int, int] = (131, 90)) -> Image:
    """Noise above black: the end of the data says next to nothing."""
    image = np.random.default_rng(shape).integers(0, 256, shape).astype(np.uint8)
    image[shape[0] // 2 :] = 0
    return image


@pytest.mark.parametrize("form", FORMS)
def test_the_markers_say_what_pillow_says(form: str) -> None:
    content = raster_files.jpeg(half_black(), dpi=(300, 200), **FORMS[form])
    stream = jpeg.parse(memoryview(content + b"behind"))
    assert (stream.rows, stream.columns, stream.precision) == (131, 90, 8)
    assert stream.components == (3 if "mode" in FORMS[form] else 1)
    assert stream.density == (300, 200)
    assert content[stream.end :] == b"\xff\xd9"
    assert not stream.more and stream.exif is None


@pytest.mark.parametrize("form", FORMS)
def test_no_stream_that_was_cut_and_closed_is_another_image(form: str) -> None:
    content = raster_files.jpeg(half_black(), **FORMS[form])
    whole, start = imagecodecs.jpeg8_decode(content), content.index(b"\xff\xda") + 14
    accepted = 0
    cuts = {
        *np.random.default_rng(3).integers(start, len(content) - 2, 200).tolist(),
        *range(len(content) - 60, len(content) - 2),
    }
    for cut in cuts:
        closed = memoryview(content[:cut] + b"\xff\xd9")
        try:
            values = jpeg.decode(closed, jpeg.parse(closed).end)
        except (ValueError, imagecodecs.Jpeg8Error):
            continue
        assert np.array_equal(values, whole)
        accepted += 1
    assert accepted < 5


@pytest.mark.parametrize("form", FORMS)
def test_no_stream_without_its_end_marker_is_an_image(form: str) -> None:
    content = raster_files.jpeg(half_black(), **FORMS[form])
    for cut in range(2, len(content) - 1, 5):
        with pytest.raises(ValueError, match=r"truncated|too few|no JPEG frame header|damaged"):
            jpeg.parse(memoryview(content[:cut]))


def test_a_missing_restart_interval_is_noticed() -> None:
    content = raster_files.jpeg(half_black(), restart_marker_rows=1)
    first, second = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", content)][:2]
    with pytest.raises(ValueError, match="15 restart markers instead of 16"):
        jpeg.parse(memoryview(content[:first] + content[second:]))


def test_a_progressive_image_without_a_scan_in_the_middle_is_refused() -> None:
    content = raster_files.jpeg(half_black(), progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda\x00\x08", content)]
    assert len(scans) > 3
    with pytest.raises(ValueError, match="without its last scans"):
        jpeg.parse(memoryview(content[: scans[-2]] + content[scans[-1] :]))


def test_lossless_and_arithmetic_streams_are_not_by_dct() -> None:
    pixels = half_black().astype(np.uint16)
    with pytest.raises(ValueError, match="not by Huffman-coded DCT"):
        jpeg.parse(memoryview(encoders.jpeg_lossless(pixels, 8)))
    arithmetic = raster_files.jpeg(half_black()).replace(b"\xff\xc0", b"\xff\xc9", 1)
    with pytest.raises(ValueError, match="not by Huffman-coded DCT"):
        jpeg.parse(memoryview(arithmetic))


def test_the_exif_block_is_found() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    stream = jpeg.parse(memoryview(raster_files.jpeg(half_black(), exif=exif)))
    assert stream.exif is not None and bytes(stream.exif[:2]) in (b"II", b"MM")
