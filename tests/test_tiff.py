from __future__ import annotations

import struct

import numpy as np
import pytest

from mammoray import tiff
from tests import raster_files

PIXELS = np.random.default_rng(0).integers(0, 65536, (50, 33)).astype(np.uint16)


def checked(content: bytes) -> None:
    tiff.check(memoryview(content), tiff.directories(memoryview(content))[0])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_the_directory_says_what_was_written(order: str, big: bool) -> None:
    tags = {274: [6], 282: [300, 7], 320: list(range(768)), 315: [0x444F4521] * 4}
    content = memoryview(
        raster_files.tiff(PIXELS, order="<" if order == "<" else ">", big=big, strip=8, tags=tags, pages=3)
    )
    pages = tiff.directories(content)
    assert len(pages) == 3
    assert [tiff.first(pages[0], field) for field in (tiff.COLUMNS, tiff.ROWS, tiff.BITS)] == [33, 50, 16]
    assert tiff.first(pages[0], tiff.ORIENTATION) == 6
    assert pages[0][tiff.DENSITY_X] == (300, 7)
    assert pages[0][tiff.COLOUR_MAP] == tuple(range(768))
    assert 315 not in pages[0], "fields that are not needed are not read: this one may name a person"
    assert tiff.directories(content, 1) == pages[:1]
    assert np.array_equal(tiff.decode(content, pages[0]), PIXELS)


BAD: dict[str, tuple[dict[int, list[int]], str]] = {
    "no strips": ({273: []}, "0 strips or tiles"),
    "another number of strips": ({273: [200] * 3}, "3 strips or tiles with 7 lengths; its size asks for 7"),
    "more rows": ({257: [90]}, "7 lengths; its size asks for 12"),
    "outside of the file": ({273: [10**6] * 7}, r"pixels up to byte 1000528 in a file of \d+"),
    "an empty strip": ({279: [0] * 7}, "pixels up to byte"),
    "short strips": ({279: [500, *[528] * 5, 132]}, "500 bytes in a strip or tile of 528"),
    "long strips": ({279: [529, *[528] * 5, 132]}, "529 bytes in a strip or tile of 528"),
    "narrower rows": ({256: [32]}, "528 bytes in a strip or tile of 512"),
    "no rows": ({278: [0]}, "strips without rows"),
    "huge tiles": ({322: [2**20], 323: [2**20], 324: [200], 325: [10]}, "tiles of 1048576 x 1048576"),
    "few bytes for many pixels": ({259: [32773], 279: [8] * 7}, "8 bytes in a strip or tile of 528"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_strips_and_tiles_that_cannot_be_are_told(case: str) -> None:
    tags, found = BAD[case]
    checked(raster_files.tiff(PIXELS, strip=8))
    with pytest.raises(ValueError, match=found):
        checked(raster_files.tiff(PIXELS, strip=8, tags=tags))


def test_the_last_strip_may_be_as_long_as_the_others() -> None:
    content = bytearray(raster_files.tiff(PIXELS, strip=8))
    lengths = struct.pack("<7I", *[528] * 6, 132)
    place = content.index(lengths)
    struct.pack_into("<I", content, place + 24, 528)
    checked(bytes(content) + bytes(396))


def test_directories_in_a_circle_and_outside_of_the_file_are_damage() -> None:
    content = bytearray(raster_files.tiff(PIXELS))
    end = 8 + 2 + 12 * struct.unpack_from("<H", content, 8)[0]
    struct.pack_into("<I", content, end, 8)
    with pytest.raises(ValueError, match="circle"):
        tiff.directories(memoryview(bytes(content)))
    struct.pack_into("<I", content, end, 2**31)
    with pytest.raises(ValueError, match="outside of the file"):
        tiff.directories(memoryview(bytes(content)))
    for start in (b"", b"II*\0", b"II*\0\0\0\0\0", b"XX*\0\x08\0\0\0"):
        with pytest.raises(ValueError, match=r"directory|byte order"):
            tiff.directories(memoryview(start))
