"""JPEG Lossless, first-order prediction (transfer syntax .70), decoded at about the speed at which it can be read.

Of the stock decoders the fastest is silent on damage. This one counts: it knows whether the entropy-coded data ended
with the last pixel, and says so where they did not. It takes the one form that mammography units write (one grey
component, selection value 1, no restarts); for any other, :func:`decode` returns None and a library has to.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mammoray.compiled import compiled

_WINDOW = 14  # Bits looked at together; the table of 2**14 entries stays in the first-level cache.
_signed: Any = np.int64  # A uint64 among signed numbers would make numba compute in floats.
_HEAD = 1 << 16  # Bytes among which the scan has to start.
_SLACK = 8  # Bits after the last pixel that belong to no symbol: the rest of its byte (T.81 F.1.2.3).


@dataclass(frozen=True, slots=True)
class _Scan:
    rows: int
    columns: int
    precision: int
    counts: npt.NDArray[np.uint8]  # Codes of 1 to 16 bits.
    symbols: npt.NDArray[np.uint8]
    start: int


def decode(codestream: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16] | None:
    """Decode one grey image.

    Parameters
    ----------
    codestream : (n,) uint8
        From SOI on.

    Returns
    -------
    (h, w) uint16, or None
        None where the stream has a form that this decoder does not take.

    Raises
    ------
    ValueError
        With a reason, where the data end early or late, or hold a code that their table does not.

    References
    ----------
    ITU-T T.81, annex H (lossless mode), F.2.2 (Huffman decoding); DICOM PS3.5 A.4.2.
    """
    scan = _parse(codestream[:_HEAD].tobytes())
    if scan is None:
        return None
    table, slow = _lookup(scan.counts, scan.symbols), _canonical(scan.counts)
    out = np.empty((scan.rows, scan.columns), np.uint16)
    zeros = _run_of_zeros(scan)
    end, unread, missing = _decode_pixels(
        codestream, scan.start, table, slow, scan.symbols, 1 << (scan.precision - 1), zeros, out
    )
    if missing:
        raise ValueError("the data end before the last pixel: truncated or damaged")
    rest = codestream[end:].tobytes().lstrip(b"\xff")
    if unread >= _SLACK or codestream[end] != 255 or rest[:1] != b"\xd9" or rest[1:].strip(b"\x00\xff"):
        raise ValueError("data are left after the last pixel: damaged")
    return out


def _parse(head: bytes) -> _Scan | None:
    """Frame, table and start of the scan; None for any form but the plain one. T.81 B.2."""
    counts = symbols = frame = None
    position = 2
    while position + 4 <= len(head):
        if head[position : position + 2] == b"\xff\xff":  # T.81 B.1.1.2: any marker may be preceded by fill bytes.
            position += 1
            continue
        marker, length = struct.unpack_from(">HH", head, position)
        segment = head[position + 4 : position + 2 + length]
        if marker == 0xFFC3 and len(segment) == 9 and segment[5] == 1:
            frame = struct.unpack_from(">BHH", segment)
        elif marker == 0xFFC4 and len(segment) >= 17 and counts is None and len(segment) == 17 + sum(segment[1:17]):
            counts, symbols = np.frombuffer(segment[1:17], np.uint8), np.frombuffer(segment[17:], np.uint8)
        elif marker == 0xFFDA:
            plain = len(segment) == 6 and segment[0] == 1 and segment[3] == 1 and segment[5] == 0
            if not plain or frame is None or counts is None or symbols is None or not 2 <= frame[0] <= 16:
                return None
            complete = len(symbols) > 0 and symbols.max() <= 16 and _fits(counts)
            return _Scan(frame[1], frame[2], frame[0], counts, symbols, position + 2 + length) if complete else None
        elif not (0xFFE0 <= marker <= 0xFFEF or marker == 0xFFFE):
            return None  # Restarts, several tables, several scans, or nothing that a JPEG holds here.
        position += 2 + length
    return None


def _fits(counts: npt.NDArray[np.uint8]) -> bool:
    """Whether so many codes of each length can be told apart."""
    return sum(int(n) << (16 - length) for length, n in enumerate(counts, start=1)) <= 1 << 16


def _run_of_zeros(scan: _Scan) -> tuple[int, int, int]:
    """What the window shows in background: (pattern, pixels, bits) of as many codes of "no change" as fit into it."""
    code = place = 0
    for length, count in enumerate(scan.counts, start=1):
        for symbol in scan.symbols[place : place + count]:
            if symbol == 0 and length <= _WINDOW // 2:
                pixels = _WINDOW // length
                pattern = sum(code << (_WINDOW - length * (k + 1)) for k in range(pixels))
                return pattern, pixels, pixels * length
            code += 1
        place += int(count)
        code <<= 1
    return -1, 0, 0


@compiled
def _lookup(counts: npt.NDArray[np.uint8], symbols: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """For every window: ``difference * 64 + bits`` of the first symbol.

    Where the extra bits of the difference do not fit into the window: ``category * 64 + 32 + bits`` of its code; 0
    where the window holds no whole code.
    """
    table = np.zeros(1 << _WINDOW, np.int32)
    code = place = 0
    for length in range(1, _WINDOW + 1):
        for _ in range(counts[length - 1]):
            category = np.int64(symbols[place])
            free = _WINDOW - length
            for rest in range(1 << free):
                k = (code << free) + rest
                if category <= free and category < 16:
                    extra = rest >> (free - category)
                    # T.81 F.2.2.1, EXTEND: the upper half of the range is positive.
                    negative = category > 0 and extra < 1 << (category - 1)
                    difference = extra - (1 << category) + 1 if negative else extra
                    table[k] = difference * 64 + length + category
                else:
                    table[k] = category * 64 + 32 + length
            place += 1
            code += 1
        code <<= 1
    return table


def _canonical(counts: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """First code, number of codes and place of the first symbol of each length (T.81 C.2), for the longest codes."""
    rows, code, place = [], 0, 0
    for count in counts.tolist():
        rows.append((code, count, place))
        code, place = (code + count) << 1, place + count
    return np.array(rows, np.int64)


@compiled
def _long_code(bits: int, slow: npt.NDArray[np.int64], symbols: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Length and symbol of a code longer than the window; length 0 where there is none."""
    for length in range(_WINDOW + 1, 17):
        place = (bits >> (16 - length)) - slow[length - 1, 0]
        if 0 <= place < slow[length - 1, 1]:
            return length, _signed(symbols[slow[length - 1, 2] + place])
    return 0, 0


@compiled
def _refill(data: npt.NDArray[np.uint8], window: np.uint64, n: int, position: int) -> tuple[np.uint64, int, int, int]:
    """Fill the window with bytes, zeros past the end or a marker; also returns how many bits were made up."""
    made_up = 0
    while n <= 56:
        byte = np.uint64(0)
        if position >= len(data):
            made_up += 8
        elif data[position] != 255:
            byte = np.uint64(data[position])
            position += 1
        elif position + 1 < len(data) and data[position + 1] == 0:  # T.81 F.1.2.3: a stuffed zero.
            byte = np.uint64(255)
            position += 2
        else:
            made_up += 8  # A marker.
        window = (window << np.uint64(8)) | byte
        n += 8
    return window, n, position, made_up


@compiled
def _decode_pixels(
    data: npt.NDArray[np.uint8],
    position: int,
    table: npt.NDArray[np.int32],
    slow: npt.NDArray[np.int64],
    symbols: npt.NDArray[np.uint8],
    first: int,
    zeros: tuple[int, int, int],
    out: npt.NDArray[np.uint16],
) -> tuple[int, int, bool]:
    """Fill ``out``; returns where the data end, how many bits were not needed, and whether some were missing."""
    h, w = out.shape
    pattern, run, run_bits = zeros
    past = 0  # Bits made up past the end.
    window, n = np.uint64(0), 0  # The next n bits of the stream.
    above = first
    for i in range(h):
        row = out[i]
        value = above  # T.81 H.1.2.1: the first of a row is predicted from above, all others from the left.
        j = 0
        while j < w:
            if n < 32:  # The longest symbol: a code of 16 bits and 15 extra ones.
                window, n, position, made_up = _refill(data, window, n, position)
                past += made_up
            k = _signed((window >> np.uint64(n - 14)) & np.uint64(0x3FFF))
            if k == pattern and j + run <= w:
                row[j : j + run] = value
                j += run
                n -= run_bits
                continue
            entry = _signed(table[k])
            bits = entry & 31
            if entry & 32 == 0 and entry != 0:
                n -= bits
                difference = entry >> 6
            else:
                category = entry >> 6
                if entry == 0:
                    bits, category = _long_code(
                        _signed((window >> np.uint64(n - 16)) & np.uint64(0xFFFF)), slow, symbols
                    )
                    if bits == 0:
                        return position, 0, True  # No such code: the data before were damaged.
                n -= bits
                if category == 16:  # T.81 H.1.2.2: no extra bits.
                    difference = 32768
                elif category == 0:
                    difference = 0
                else:
                    n -= category
                    extra = _signed((window >> np.uint64(n)) & np.uint64((1 << category) - 1))
                    difference = extra if extra >= 1 << (category - 1) else extra - (1 << category) + 1
            value = (value + difference) & 0xFFFF
            row[j] = value
            j += 1
        above = _signed(row[0])
    return position, n - past, n < past
