"""JPEG by DCT: what a stream says of itself, and a decode that notices where its data end early.

Decoders fill the rest of a truncated image and say nothing. So the end marker is looked for, all refinements of a
progressive image have to be there, and data before the end marker must be needed for nothing.

References
----------
ITU-T T.81 (JPEG): annex B for the markers, annex G for progressive scans. JFIF 1.02 for the density of pixels.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

_MORE = b"\x5a\xa5\x36\xc9" * 16  # Data for a decoder that asks for more than there are.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # Neither a stuffed byte, nor a restart, nor fill; T.81 B.1.1.
_START = re.compile(rb"\xff\xd8\xff")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOF_WORDS = frozenset(0xFF00 | marker for marker in _SOF) | {0xFFF7}  # The last is that of JPEG-LS.
_EOI, _SOS, _APP0, _APP1 = 0xD9, 0xDA, 0xE0, 0xE1
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # Markers without a length; T.81 B.1.1.4.
_DCT = frozenset((0xC0, 0xC1, 0xC2))
_PROGRESSIVE = 0xC2


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """What the markers say.

    Attributes
    ----------
    rows, columns : int
    precision : int
        Bits of a sample.
    components : int
        1 is grey.
    density : (int, int)
        Pixels per length across and down, by JFIF; (0, 0) where it says nothing.
    exif : memoryview or None
        The TIFF structure of an Exif block.
    end : int
        Index of the end marker.
    more : bool
        Whether another image follows, as in a multi-picture file.
    """

    rows: int
    columns: int
    precision: int
    components: int
    density: tuple[int, int]
    exif: memoryview | None
    end: int
    more: bool


def parse(content: memoryview) -> Stream:
    """Walk all markers of a JPEG file.

    Parameters
    ----------
    content : memoryview
        From the start marker on.

    Raises
    ------
    ValueError
        Truncated, damaged, not by DCT, or so short that it cannot hold its image.
    """
    density, exif = (0, 0), None
    frame: tuple[int, ...] | None = None
    scans: list[memoryview] = []
    position = 2
    while True:
        marker, position = _next_marker(content, position)
        if marker == _EOI:
            break
        if marker in _BARE:
            continue
        segment = _segment(content, position)
        position += len(segment) + 2
        if marker in _SOF:
            frame = _frame(marker, segment, frame)
        elif marker == _SOS:
            scans.append(segment)
        elif marker == _APP0 and bytes(segment[:5]) == b"JFIF\0" and len(segment) >= 12:
            density = struct.unpack_from(">HH", segment, 8)
        elif marker == _APP1 and bytes(segment[:6]) == b"Exif\0\0" and exif is None:
            exif = segment[6:]
    if frame is None or not scans:
        raise ValueError("no JPEG frame header, or no scan")
    process, precision, rows, columns, components = frame
    # A block of 64 pixels has two codes of a bit or more (T.81 F.1.2), or in a first progressive scan one (G.1.2.1).
    if position * (512 if process == _PROGRESSIVE else 256) < rows * columns:
        raise ValueError(f"{position} bytes: too few for {rows} x {columns} pixels")
    if process == _PROGRESSIVE and not _refined(scans, components):
        raise ValueError("a progressive image without its last scans: truncated")
    return Stream(
        rows=rows, columns=columns, precision=precision, components=components, density=density, exif=exif,
        end=position - 2, more=_START.search(content, position) is not None,
    )  # fmt: skip


def _next_marker(content: memoryview, position: int) -> tuple[int, int]:
    """The next marker, and the index behind it."""
    found = _MARKER.search(content, position)
    if found is None:
        raise ValueError("no end marker: it is truncated")
    return content[found.end() - 1], found.end()


def _segment(content: memoryview, position: int) -> memoryview:
    """What stands in a marker segment, behind its length."""
    length = int.from_bytes(content[position : position + 2], "big")
    if length < 2 or position + length > len(content):
        raise ValueError("a segment that leads out of the file: truncated or damaged")
    return content[position + 2 : position + length]


def _frame(marker: int, segment: memoryview, before: tuple[int, ...] | None) -> tuple[int, ...]:
    """Process, precision, rows, columns, components; T.81 B.2.2."""
    if before is not None or marker not in _DCT:
        raise ValueError("several frames in one image" if before else "a JPEG that is not by Huffman-coded DCT")
    if len(segment) < 6:
        raise ValueError("a frame header that is too short")
    return (marker, *struct.unpack_from(">BHHB", segment))


def _refined(scans: list[memoryview], components: int) -> bool:
    """Whether every coefficient of every component was sent down to its last bit; T.81 G.1.1.1."""
    left = np.full((256, 64), 1)
    seen: list[int] = []
    for scan in scans:
        number = scan[0] if len(scan) else 0
        if len(scan) < 4 + 2 * number:
            return False
        first, last, bits = scan[1 + 2 * number : 4 + 2 * number]
        for component in scan[1 : 1 + 2 * number : 2]:
            seen.append(component)
            left[component, first : last + 1] = bits & 15
    return len(set(seen)) == components and not left[seen].any()


def size(frame: memoryview) -> tuple[int, int]:
    """Rows and columns of a JPEG or JPEG-LS frame header; T.81 B.2.2, T.87 C.2.2.

    Raises
    ------
    ValueError
        There is none.
    """
    position = 2
    while position + 9 <= len(frame):
        if bytes(frame[position : position + 2]) == b"\xff\xff":  # T.81 B.1.1.2: fill bytes.
            position += 1
            continue
        marker, length, _, rows, columns = struct.unpack_from(">HHBHH", frame, position)
        if marker in _SOF_WORDS:
            return rows, columns
        position += 2 + length
    raise ValueError("no JPEG frame header")


def end(frame: memoryview) -> int:
    """Index of the end marker, which some writers fill with zeros or ones to an even length.

    Raises
    ------
    ValueError
        There is none.
    """
    last = bytes(frame[-64:]).rstrip(b"\x00\xff")
    if not last.endswith(b"\xff\xd9"):
        raise ValueError("no end marker: it is truncated")
    return max(0, len(frame) - 64) + len(last) - 2


def decode(frame: memoryview, end: int) -> npt.NDArray[Any]:
    """All samples, (H, W) or (H, W, components), uint8 or uint16.

    Parameters
    ----------
    frame : memoryview
    end : int
        Index of its end marker.

    Raises
    ------
    ValueError
        The data end before the last pixel.
    """
    values = np.asarray(imagecodecs.jpeg8_decode(frame))
    # libjpeg-turbo fills the rest of a truncated image and says nothing. It skips what is left after the last pixel, so
    # that more data before the end marker change the image only where some were missing.
    more = b"".join((frame[:end], _MORE, frame[end:]))
    if not np.array_equal(values, imagecodecs.jpeg8_decode(more)):
        raise ValueError("the data end before the last pixel: truncated or damaged")
    return values
