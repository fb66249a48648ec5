"""TIFF: the numbers of its directories, and strips or tiles that lie inside of the file.

Only fields of whole numbers and fractions are read: no text, which may name a patient. The same structure stands in
the Exif block of JPEG and PNG.

References
----------
TIFF 6.0, sections 2 and 8 (fields), 3 and 15 (strips and tiles), 18 and 19 (extra samples, sample format). BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

SUBFILE, COLUMNS, ROWS, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, DENSITY_X, DENSITY_Y, PLANAR = 274, 277, 282, 283, 284
COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 320, 338, 339
_STRIPS, _STRIP_ROWS, _STRIP_BYTES = 273, 278, 279
_STRIP_FIELDS = (_STRIPS, _STRIP_BYTES)
_TILE_COLUMNS, _TILE_ROWS, _TILES, _TILE_BYTES = 322, 323, 324, 325
_READ = frozenset((
    SUBFILE, COLUMNS, ROWS, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, DENSITY_X, DENSITY_Y, PLANAR,
    COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT, _STRIPS, _STRIP_ROWS, _STRIP_BYTES, _TILE_COLUMNS, _TILE_ROWS, _TILES,
    _TILE_BYTES,
))  # fmt: skip
_TYPES = {1: "B", 3: "H", 4: "I", 5: "II", 16: "Q"}  # BYTE, SHORT, LONG, RATIONAL, LONG8.
_MOST_PAGES = 1024

COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
"""Those that are read, by their number: all of them lossless."""
_MOST = {5: 2731, 8: 1032, 32773: 64, 32946: 1032}  # Bytes that a compressed byte can become.
_TILE = 1 << 24  # Pixels by which a tile may exceed its image.

Directory = Mapping[int, tuple[int, ...]]
"""Field -> its numbers; a fraction is two of them."""


def directories(content: memoryview, most: int = _MOST_PAGES) -> list[Directory]:
    """The fields of each page, in their order.

    Parameters
    ----------
    content : memoryview
        From the byte order mark on.
    most : int
        Pages that are read; what follows them is not looked at.

    Raises
    ------
    ValueError
        Truncated or damaged.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
    if order is None:
        raise ValueError("no byte order mark")
    big = _unpack(content, f"{order}H", 2)[0] == 43
    (position,) = _unpack(content, f"{order}Q" if big else f"{order}I", 8 if big else 4)
    pages: list[Directory] = []
    seen: set[int] = set()
    while position and len(pages) < most:
        if position in seen:
            raise ValueError("directories in a circle: damaged")
        seen.add(position)
        fields, position = _directory(content, position, order, big)
        pages.append(fields)
    if not pages:
        raise ValueError("no directory")
    return pages


def _unpack(content: memoryview, form: str, position: int) -> tuple[int, ...]:
    """Numbers at a place that may lie outside of the file."""
    try:
        return struct.unpack_from(form, content, position)
    except struct.error:
        raise ValueError("a directory or field outside of the file: truncated or damaged") from None


def _directory(content: memoryview, position: int, order: str, big: bool) -> tuple[Directory, int]:
    """Fields of the directory at ``position``, and where the next one is."""
    head, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (count,) = _unpack(content, order + head, position)
    position += struct.calcsize(order + head)
    step = struct.calcsize(order + entry)
    fields: dict[int, tuple[int, ...]] = {}
    for place in range(position, position + min(count, 65536) * step, step):
        tag, kind, number, _ = _unpack(content, order + entry, place)
        if tag not in _READ or kind not in _TYPES or not number:
            continue
        form = f"{order}{number * len(_TYPES[kind])}{_TYPES[kind][0]}"
        at = place + step - struct.calcsize(order + offset)
        if struct.calcsize(form) > struct.calcsize(order + offset):
            (at,) = _unpack(content, order + offset, at)
        fields[tag] = _unpack(content, form, at)
    (following,) = _unpack(content, order + offset, position + count * step)
    return fields, following


def first(page: Directory, field: int, default: int = 0) -> int:
    """The first number of a field."""
    return page.get(field, (default,))[0]


def check(content: memoryview, page: Directory) -> None:
    """Whether the strips or tiles of a page are all there.

    Raises
    ------
    ValueError
        Some are missing, of another length, or lie outside of the file.
    """
    offsets, lengths = (page.get(field, ()) for field in ((_TILES, _TILE_BYTES) if _TILES in page else _STRIP_FIELDS))
    number, needed, last = _parts(page)
    if not len(offsets) == len(lengths) == number:
        raise ValueError(f"{len(offsets)} strips or tiles with {len(lengths)} lengths; its size asks for {number}")
    beyond = max(offset + length for offset, length in zip(offsets, lengths, strict=True))
    if beyond > len(content) or not min(lengths):
        raise ValueError(f"pixels up to byte {beyond} in a file of {len(content)}: truncated or damaged")
    most = _MOST.get(first(page, COMPRESSION, 1))
    for index, length in enumerate(lengths):
        least = last if (index + 1) % (number // _planes(page)) == 0 else needed
        # The last strip of an uncompressed image may be as long as the others.
        if length * (most or 1) < least or (most is None and length > needed):
            raise ValueError(f"{length} bytes in a strip or tile of {least}: truncated or damaged")


def _planes(page: Directory) -> int:
    """How often the image is stored: once, or for each sample of a pixel."""
    return first(page, SAMPLES, 1) if first(page, PLANAR, 1) == 2 else 1


def _parts(page: Directory) -> tuple[int, int, int]:
    """How many strips or tiles the size of a page asks for, and the bytes, uncompressed, of each and of the last."""
    rows, columns, samples, planes = first(page, ROWS), first(page, COLUMNS), first(page, SAMPLES, 1), _planes(page)
    sample = samples // planes * first(page, BITS, 1) // 8
    if _TILES in page:
        height, width = first(page, _TILE_ROWS), first(page, _TILE_COLUMNS)
        if not 0 < height * width <= rows * columns + _TILE:
            raise ValueError(f"tiles of {height} x {width}: damaged")
        return planes * -(-rows // height) * -(-columns // width), height * width * sample, height * width * sample
    height = min(first(page, _STRIP_ROWS, rows), rows)
    if not height:
        raise ValueError("strips without rows")
    strips = -(-rows // height)
    return planes * strips, height * columns * sample, (rows - (strips - 1) * height) * columns * sample


def decode(content: memoryview, page: Directory) -> npt.NDArray[Any]:
    """Samples of the first page as they are stored: (H, W) or (H, W, samples); neither inverted nor looked up."""
    values = np.asarray(imagecodecs.tiff_decode(content, index=0))
    return np.moveaxis(values, 0, -1) if values.ndim == 3 and first(page, PLANAR, 1) == 2 else values


def look_up(indices: npt.NDArray[Any], page: Directory) -> tuple[npt.NDArray[Any], int]:
    """Colours of a palette image, (H, W, 3), and their bits.

    Entries have 16 bits; where all of them are 8 bits spread to 16, they become those 8 again.

    Raises
    ------
    ValueError
        The palette has not one colour for each index.
    """
    entries = np.array(page.get(COLOUR_MAP, ()))
    if len(entries) != 3 * 2 ** first(page, BITS, 1) or entries.max() > 0xFFFF:
        raise ValueError("a colour map of another length than its bits ask for")
    spread = not (entries % 257).any()
    colours = (entries // 257).astype(np.uint8) if spread else entries.astype(np.uint16)
    return colours.reshape(3, -1).T[indices], 8 if spread else 16
