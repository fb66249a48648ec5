"""PNG and TIFF files in all the arrangements that a reader meets, more than the libraries at hand can write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

Image = npt.NDArray[Any]
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps, of each pass of an interlaced PNG; PNG 8.2."""


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    pixels: Image, colour: int | None = None, *, bits: int = 0, interlaced: bool = False, extra: Sequence[bytes] = ()
) -> bytes:
    """A PNG of (H, W) or (H, W, 2 to 4) samples of ``bits`` bits; ``extra`` are chunks before the pixels."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if colour is None else colour
    bits = bits or 8 * pixels.itemsize
    size = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, int(interlaced))
    passes = [pixels[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [pixels]
    data = zlib.compress(b"".join(_scanlines(part, bits) for part in passes if part.size))
    half = len(data) // 2
    chunks = [chunk(b"IHDR", size), *extra, chunk(b"IDAT", data[:half]), chunk(b"IDAT", data[half:])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def _scanlines(pixels: Image, bits: int) -> bytes:
    if bits < 8:
        planes = (pixels[..., None] >> np.arange(bits)[::-1]) & 1
        lines = np.packbits(planes.reshape(len(pixels), -1).astype(np.uint8), axis=1)
    else:
        lines = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(len(pixels), -1)
    return b"".join(b"\0" + line.tobytes() for line in lines)


def tiff(
    pixels: Image, *, order: Literal["<", ">"] = "<", big: bool = False, photometric: int = 1, compression: int = 1,
    strip: int = 0, tile: int = 0, planar: int = 1, pages: int = 1, tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:  # fmt: skip
    """A TIFF, or BigTIFF, of ``pages`` copies of (H, W) or (H, W, samples) pixels in strips or square tiles."""
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    planes = [pixels[..., k] for k in range(samples)] if planar == 2 and samples > 1 else [pixels]
    parts = [part for plane in planes for part in _parts(plane, strip or len(pixels), tile)]
    pack = {
        1: bytes, 5: imagecodecs.lzw_encode, 8: zlib.compress, 32946: zlib.compress,
        32773: lambda line: b"".join(map(imagecodecs.packbits_encode, _rows(line, parts[0]))),
    }[compression]  # fmt: skip
    data = [bytes(pack(part.astype(part.dtype.newbyteorder(order)).tobytes())) for part in parts]
    head = order_mark(order) + (struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8))
    fields: dict[int, Sequence[int]] = {
        256: [pixels.shape[1]], 257: [pixels.shape[0]], 258: [8 * pixels.itemsize] * samples, 259: [compression],
        262: [photometric], 277: [samples], 284: [planar],
    }  # fmt: skip
    fields |= {322: [tile], 323: [tile]} if tile else {278: [strip or len(pixels)]}
    fields |= {339: [1] * samples}
    given = dict(tags or {})  # Also where they contradict the pixels.
    where, lengths = (324, 325) if tile else (273, 279)
    out = bytearray(head)
    for page in range(pages):
        offsets = np.cumsum([0, *map(len, data)])[:-1]
        entries = fields | {where: [0] * len(data), lengths: [len(part) for part in data]} | given
        start = len(out) + _directory_size(entries, order, big)
        entries[where] = given.get(where, [int(start + offset) for offset in offsets])
        after = start + sum(map(len, data))
        out += _directory(entries, len(out), order, big, after if page + 1 < pages else 0) + b"".join(data)
    return bytes(out)


def order_mark(order: str) -> bytes:
    """The first bytes of a TIFF."""
    return b"II" if order == "<" else b"MM"


def _rows(part: bytes, like: Image) -> list[bytes]:
    """PackBits packs each row for itself."""
    step = like[0].nbytes
    return [part[k : k + step] for k in range(0, len(part), step)]


def _parts(plane: Image, strip: int, tile: int) -> list[Image]:
    height, width = (tile, tile) if tile else (strip, plane.shape[1])
    parts = []
    for y in range(0, plane.shape[0], height):
        for x in range(0, plane.shape[1], width):
            part = plane[y : y + height, x : x + width]
            short = [(0, height - part.shape[0]), (0, width - part.shape[1])] + [(0, 0)] * (part.ndim - 2)
            parts.append(np.pad(part, short) if tile else part)
    return parts


def _directory_size(fields: Mapping[int, Sequence[int]], order: str, big: bool) -> int:
    return len(_directory(fields, 0, order, big, 0))


def _directory(fields: Mapping[int, Sequence[int]], at: int, order: str, big: bool, following: int) -> bytes:
    """Entries in the order of their tags, all numbers as LONG (fractions, 282 and 283, as RATIONAL)."""
    head, entry, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    size = struct.calcsize(order + entry) + room
    end = at + struct.calcsize(order + head) + len(fields) * size + room
    entries, values = b"", b""
    for tag, numbers in sorted(fields.items()):
        rational = tag in (282, 283)
        value = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(order + entry, tag, 5 if rational else 4, len(numbers) // (2 if rational else 1))
        if len(value) > room:
            entries += struct.pack(f"{order}Q" if big else f"{order}I", end + len(values))
            values += value
        else:
            entries += value.ljust(room, b"\0")
    return (
        struct.pack(order + head, len(fields))
        + entries
        + struct.pack(f"{order}Q" if big else f"{order}I", following)
        + values
    )


def exif(orientation: int) -> bytes:
    """The TIFF structure of an Exif block that states an orientation."""
    entry = struct.pack(">HHIHH", 274, 3, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


def jpeg(pixels: Image, mode: str | None = None, **options: Any) -> bytes:
    """A JPEG by Pillow: ``progressive``, ``subsampling``, ``exif`` and ``dpi`` are its options."""
    image = Pillow.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()
