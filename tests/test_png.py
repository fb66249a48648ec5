from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from mammoray import png
from tests import raster_files
from tests.raster_files import chunk

PIXELS = np.random.default_rng(0).integers(0, 65536, (40, 33)).astype(np.uint16)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZE = struct.pack(">IIBBBBB", 33, 40, 16, 0, 0, 0, 0)
DATA = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS))


def file(*chunks: tuple[bytes, bytes]) -> memoryview:
    return memoryview(SIGNATURE + b"".join(chunk(*each) for each in chunks))


def test_the_chunks_say_what_was_written() -> None:
    extra = [
        chunk(b"pHYs", struct.pack(">IIB", 5, 6, 1)),
        chunk(b"eXIf", raster_files.exif(3)),
        chunk(b"tEXt", b"a\0b"),
    ]
    found = png.parse(memoryview(raster_files.png(PIXELS, extra=extra)))
    assert (found.rows, found.columns, found.samples, found.frames, found.density) == (40, 33, 1, 1, (5, 6))
    assert found.exif is not None and bytes(found.exif) == raster_files.exif(3)
    assert np.array_equal(png.decode(file((b"IHDR", SIZE), (b"IDAT", DATA), (b"IEND", b""))), PIXELS)


BAD = {
    "nothing": ([], "no last chunk"),
    "no header": ([(b"IDAT", DATA), (b"IEND", b"")], "header .IHDR. that is missing"),
    "two headers": ([(b"IHDR", SIZE), (b"IHDR", SIZE), (b"IEND", b"")], "stands twice"),
    "no end": ([(b"IHDR", SIZE), (b"IDAT", DATA)], "no last chunk"),
    "no pixels": ([(b"IHDR", SIZE), (b"IEND", b"")], "0 bytes of pixels"),
    "odd depth": ([(b"IHDR", SIZE[:8] + b"\x07" + SIZE[9:]), (b"IDAT", DATA), (b"IEND", b"")], "PNG does not know"),
    "odd filter": ([(b"IHDR", SIZE[:11] + b"\x01" + SIZE[12:]), (b"IDAT", DATA), (b"IEND", b"")], "PNG does not know"),
    "no palette": ([(b"IHDR", SIZE[:8] + b"\x08\x03" + SIZE[10:]), (b"IDAT", DATA), (b"IEND", b"")], "no palette"),
    "unknown critical": ([(b"IHDR", SIZE), (b"ABCD", b""), (b"IEND", b"")], "critical chunk"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_chunks_that_make_no_image_are_told(case: str) -> None:
    chunks, found = BAD[case]
    with pytest.raises(ValueError, match=found):
        png.parse(file(*chunks))


def test_every_flipped_bit_up_to_the_end_is_noticed() -> None:
    content = raster_files.png(PIXELS[:8, :8])
    for place in range(len(SIGNATURE), len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"\w"):
                png.parse(memoryview(bytes(damaged)))


@pytest.mark.parametrize("cut", [0, 1, len(DATA) // 2, len(DATA) - 5, len(DATA) - 1])
def test_pixels_that_end_early_in_a_whole_file_are_an_error(cut: int) -> None:
    content = file((b"IHDR", SIZE), (b"IDAT", DATA[:cut]), (b"IEND", b""))
    with pytest.raises((ValueError, RuntimeError), match=r"too few|Not enough image data|Read Error"):
        png.parse(content)
        png.decode(content)
