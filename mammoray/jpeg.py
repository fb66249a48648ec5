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

# Data for a decoder that asks for more than there are. Few of them may all end in a black that is clipped to black:
# of 9,795 streams that were cut and closed 64 bytes let 37 pass, and 2,048 none.
_MORE = b"\xa5\x5a\xc9\x36" * 512
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # Neither a stuffed byte, nor a restart, nor fill; T.81 B.1.1.
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_START = re.compile(rb"\xff\xd8\xff")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOF_WORDS = frozenset(0xFF00 | marker for marker in _SOF) | {0xFFF7}  # The last is that of JPEG-LS.
_EOI, _SOS, _DRI, _APP0, _APP1 = 0xD9, 0xDA, 0xDD, 0xE0, 0xE1
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
    density, exif, interval = (0, 0), None, 0
    frame: _Frame | None = None
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
            frame = _Frame.read(marker, segment, frame)
        elif marker == _DRI:
            interval = int.from_bytes(segment[:2], "big")
        elif marker == _SOS and frame is not None:
            scans.append(segment)
            _check_restarts(content, position, interval, frame.units(segment))
        elif marker == _APP0 and bytes(segment[:5]) == b"JFIF\0" and len(segment) >= 12:
            density = struct.unpack_from(">HH", segment, 8)
        elif marker == _APP1 and bytes(segment[:6]) == b"Exif\0\0" and exif is None:
            exif = segment[6:]
    if frame is None or not scans:
        raise ValueError("no JPEG frame header, or no scan")
    rows, columns, progressive = frame.rows, frame.columns, frame.process == _PROGRESSIVE
    # A block of 64 pixels has two codes of a bit or more (T.81 F.1.2), or in a first progressive scan one (G.1.2.1).
    if position * (512 if progressive else 256) < rows * columns:
        raise ValueError(f"{position} bytes: too few for {rows} x {columns} pixels")
    if progressive and not _refined(scans, len(frame.sampling)):
        raise ValueError("a progressive image without its last scans: truncated")
    return Stream(
        rows=rows, columns=columns, precision=frame.precision, components=len(frame.sampling), density=density,
        exif=exif, end=position - 2, more=_START.search(content, position) is not None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame header, T.81 B.2.2; ``sampling``: factors across and down of each component, by its name."""

    process: int
    precision: int
    rows: int
    columns: int
    sampling: dict[int, tuple[int, int]]

    @staticmethod
    def read(marker: int, segment: memoryview, before: _Frame | None) -> _Frame:
        if before is not None or marker not in _DCT:
            raise ValueError("several frames in one image" if before else "a JPEG that is not by Huffman-coded DCT")
        number = segment[5] if len(segment) > 5 else 0
        sampling = {name: (both >> 4, both & 15) for name, both in zip(segment[6::3], segment[7::3], strict=False)}
        if not number or len(sampling) != number or not all(map(all, sampling.values())):
            raise ValueError("a damaged frame header")
        precision, rows, columns = struct.unpack_from(">BHH", segment)
        return _Frame(marker, precision, rows, columns, sampling)

    def units(self, scan: memoryview) -> int:
        """Minimum coded units of a scan: blocks of one component, or groups of blocks of several; T.81 A.2."""
        names = scan[1 : 1 + 2 * scan[0] : 2] if len(scan) else b""
        if not names or not set(names) <= set(self.sampling):
            raise ValueError("a damaged scan header")
        across = max(factors[0] for factors in self.sampling.values())
        down = max(factors[1] for factors in self.sampling.values())
        if len(names) > 1:
            return -(-self.columns // (8 * across)) * -(-self.rows // (8 * down))
        own = self.sampling[names[0]]
        return -(-self.columns * own[0] // (8 * across)) * -(-self.rows * own[1] // (8 * down))


def _check_restarts(content: memoryview, position: int, interval: int, units: int) -> None:
    """A decoder fills what is missing up to a restart marker, or where such markers are missing."""
    if not interval:
        return
    found = _MARKER.search(content, position)
    markers = sum(1 for _ in _RESTART.finditer(content, position, found.start() if found else len(content)))
    if markers != (expected := -(-units // interval) - 1):
        raise ValueError(f"{markers} restart markers instead of {expected}: truncated or damaged")


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
