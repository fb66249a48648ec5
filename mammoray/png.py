"""PNG: what the chunks of a file say, each held against its checksum.

References
----------
W3C, Portable Network Graphics (third edition): 5 for the chunks, 11 for their fields.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # Of each colour type; 11.2.1.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MOST = 1032  # Bytes that a byte of deflated data can become.


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """What the chunks say.

    Attributes
    ----------
    rows, columns : int
    samples : int
        Of a pixel as it is stored: 1 for grey and for a palette, 2 to 4 with colour or alpha.
    frames : int
        More than one is an animation.
    density : (int, int)
        Pixels per length across and down; (0, 0) where pHYs is missing.
    exif : memoryview or None
        The TIFF structure of an Exif block.
    """

    rows: int
    columns: int
    samples: int
    frames: int
    density: tuple[int, int]
    exif: memoryview | None


def parse(content: memoryview) -> File:
    """Walk all chunks, up to IEND.

    Raises
    ------
    ValueError
        Truncated, a wrong checksum, or chunks that make no image.
    """
    header, frames, density, exif = None, 1, (0, 0), None
    data, palette = 0, False
    for kind, chunk in _chunks(content):
        if (header is None) != (kind == b"IHDR"):
            raise ValueError("a header (IHDR) that is missing or stands twice")
        if kind == b"IHDR":
            header = _header(chunk)
        elif kind == b"IDAT":
            data += len(chunk)
        elif kind == b"PLTE":
            palette = True
        elif kind == b"acTL" and len(chunk) == 8:
            frames = int.from_bytes(chunk[:4], "big")
        elif kind == b"pHYs" and len(chunk) == 9:
            density = struct.unpack_from(">II", chunk)
        elif kind == b"eXIf":
            exif = chunk
        elif kind not in _CRITICAL and not kind[0] & 32:  # 5.4: only what begins with a small letter may be left out.
            raise ValueError("a critical chunk that is unknown")
    if header is None:
        raise ValueError("no header (IHDR)")
    columns, rows, depth, colour = header
    if colour == 3 and not palette:
        raise ValueError("no palette (PLTE)")
    if data * _MOST < rows * (columns * _SAMPLES[colour] * depth // 8):
        raise ValueError(f"{data} bytes of pixels (IDAT): too few for {rows} x {columns}")
    return File(rows=rows, columns=columns, samples=_SAMPLES[colour], frames=frames, density=density, exif=exif)


def _chunks(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each chunk, the last being IEND; 5.3."""
    position = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(content):
            raise ValueError("no last chunk (IEND): it is truncated")
        length = int.from_bytes(content[position : position + 4], "big")
        stop = position + 8 + length
        if stop + 4 > len(content):
            raise ValueError("a chunk that leads out of the file: truncated or damaged")
        kind = bytes(content[position + 4 : position + 8])
        if zlib.crc32(content[position + 4 : stop]) != int.from_bytes(content[stop : stop + 4], "big"):
            raise ValueError("a wrong checksum (CRC): damaged")
        yield kind, content[position + 8 : stop]
        position = stop + 4


def _header(chunk: memoryview) -> tuple[int, int, int, int]:
    """Columns, rows, bits of a sample, colour type; 11.2.1."""
    if len(chunk) != 13:
        raise ValueError("a header (IHDR) of another length than 13")
    columns, rows, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", chunk)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlaced > 1:
        raise ValueError("a header (IHDR) with values that PNG does not know")
    return columns, rows, depth, colour


def decode(content: memoryview) -> npt.NDArray[Any]:
    """All samples, (H, W) or (H, W, 2 to 4), uint8 or uint16; palettes looked up, 1 to 4 bits spread to 8.

    Alpha is last. libpng is the quickest of the decoders at hand, keeps 16 bits of colour images, which Pillow does
    not, and refuses pixels that end early. Gamma and colour profiles are not applied: the stored numbers count.
    """
    return np.asarray(imagecodecs.png_decode(content))
