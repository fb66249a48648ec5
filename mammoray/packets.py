"""The packets of a JPEG 2000 codestream that low resolutions need: told from their headers, without decoding any data.

A codestream of 4 MB holds an image of 500 pixels in its first 300 kB. Knowing where they end, nothing behind them has
to be read from the disk, copied or looked at. And a header can say that a code block has fewer coding passes than were
written: then its lowest bit planes, which are most of the work and hardly visible, are not decoded.

Only the plain form is followed (one tile, one quality layer, code blocks in one piece); of any other the whole is
taken, which is as right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mammoray.compiled import compiled

_DEEPEST = 16  # Levels of a tag tree: 2**16 code blocks along a side.
_MOST_PLANES = 74  # More zero bit planes than any code block has: the data are no packet header.

Bytes = npt.NDArray[np.uint8]
State = npt.NDArray[np.int64]
"""Of a reader or writer of bits: next byte, bits left in the current byte, the current byte."""


@compiled
def follow(
    data: Bytes,
    start: int,
    size: tuple[int, int],
    block: tuple[int, int],
    precincts: npt.NDArray[np.int64],
    planes: npt.NDArray[np.int64],
    skipped: npt.NDArray[np.int64],
    out: Bytes,
) -> tuple[int, int]:
    """Follow the packets of the first resolutions of a tile, and write them with fewer coding passes.

    Parameters
    ----------
    data : (n,) uint8
        A codestream.
    start : int
        Where its packets begin.
    size : (rows, columns)
        Of the image.
    block : (rows, columns)
        Of a code block, as powers of two.
    precincts : (levels + 1, 2) int64
        Rows and columns of a precinct at each resolution, as powers of two.
    planes : (levels + 1, 4) int64
        Magnitude bit planes of the subbands LL, HL, LH, HH of each resolution (E.1, equation E-2).
    skipped : (kept,) int64
        How many of the lowest of them to leave out at each resolution; as long as there are resolutions to follow.
    out : (m,) uint8
        For the packets that are written; at least as long as the data and a tenth.

    Returns
    -------
    int, int
        Index behind the last packet in ``data``, and in ``out``; -1 where the headers lead beyond the data.

    References
    ----------
    ITU-T T.800, B.6 to B.10.
    """
    reader, writer = np.array([start, 0, 0], np.int64), np.zeros(3, np.int64)
    for resolution in range(len(skipped)):
        down = len(precincts) - 1 - resolution
        h, w = (size[0] + (1 << down) - 1) >> down, (size[1] + (1 << down) - 1) >> down
        rows, columns = precincts[resolution]
        for top in range(0, h, 1 << rows):
            for left in range(0, w, 1 << columns):
                body = 0
                reader[1] = reader[2] = writer[1] = writer[2] = 0
                if _copy(data, reader, out, writer) == 1:
                    for band in range(0 if resolution == 0 else 1, 1 if resolution == 0 else 4):
                        blocks = _blocks(size, band, down, block, (rows, columns), (top, left))
                        length = _code_blocks(
                            data, reader, out, writer, blocks, planes[resolution, band], skipped[resolution]
                        )
                        if length < 0:
                            return -1, -1
                        body += length
                # B.10.1: a byte of ones is followed by a stuffed bit, even where it is the last.
                reader[0] += reader[2] == 255
                if writer[2] == 255:
                    out[writer[0]] = 0
                    writer[0] += 1
                if reader[0] + body > len(data) or writer[0] + body > len(out) - 4096:
                    return -1, -1
                out[writer[0] : writer[0] + body] = data[reader[0] : reader[0] + body]
                reader[0] += body
                writer[0] += body
    return int(reader[0]), int(writer[0])


@compiled
def _blocks(
    size: tuple[int, int],
    band: int,
    down: int,
    block: tuple[int, int],
    precinct: tuple[int, int],
    corner: tuple[int, int],
) -> tuple[int, int]:
    """Rows and columns of code blocks that a precinct has in a subband (0 LL, 1 HL, 2 LH, 3 HH); B.5, B.7."""
    halved = 0 if band == 0 else 1
    depth = down + halved
    counts = [0, 0]
    for axis in range(2):
        high = (band >> (1 - axis)) & 1  # HL is high-pass along the columns, LH along the rows.
        offset = (1 << (depth - 1)) if high else 0
        extent = (size[axis] - offset + (1 << depth) - 1) >> depth
        begin = corner[axis] >> halved
        end = min(extent, begin + (1 << (precinct[axis] - halved)))
        side = min(block[axis], precinct[axis] - halved)
        counts[axis] = max(0, ((end + (1 << side) - 1) >> side) - (begin >> side))
    return counts[0], counts[1]


@compiled
def _code_blocks(
    data: Bytes, reader: State, out: Bytes, writer: State, blocks: tuple[int, int], planes: int, skipped: int
) -> int:
    """Copy what a header says of a subband's code blocks; returns the sum of their lengths. B.10.4 to B.10.7."""
    if blocks[0] == 0 or blocks[1] == 0:
        return 0
    inclusion, zero_planes = _tag_tree(blocks), _tag_tree(blocks)
    total = 0
    for y in range(blocks[0]):
        for x in range(blocks[1]):
            if not _at_most(data, reader, out, writer, inclusion, blocks, y, x, 0):
                continue
            zero = 0
            while not _at_most(data, reader, out, writer, zero_planes, blocks, y, x, zero):
                zero += 1
                if zero > _MOST_PLANES:
                    return -1
            passes = _read_passes(data, reader)
            bits = 3
            while _read(data, reader, 1) == 1:
                bits += 1
            bits += _log2(passes)
            if bits > 32 or reader[0] >= len(data) or writer[0] > len(out) - 4096:
                return -1
            length = _read(data, reader, bits)
            if skipped:
                # D.3: one pass for the first plane, three for each below.
                passes = min(passes, max(1, 3 * (planes - zero - skipped) - 2))
            _write_passes(out, writer, passes)
            bits = max(3, _log2(length) + 1 - _log2(passes))
            for _ in range(bits - 3):
                _write(out, writer, 1, 1)
            _write(out, writer, 0, 1)
            _write(out, writer, length, bits + _log2(passes))
            total += length
    return total


@compiled
def _log2(value: int) -> int:
    result = 0
    while value > 1:
        value >>= 1
        result += 1
    return result


@compiled
def _read_passes(data: Bytes, reader: State) -> int:
    """Number of coding passes; table B.4."""
    for bits, first in ((1, 1), (1, 2)):
        if _read(data, reader, bits) == 0:
            return first
    for bits, first in ((2, 3), (5, 6)):
        more = _read(data, reader, bits)
        if more < (1 << bits) - 1:
            return first + more
    return 37 + _read(data, reader, 7)


@compiled
def _write_passes(out: Bytes, writer: State, passes: int) -> None:
    if passes <= 2:
        _write(out, writer, 2 * passes - 2, passes)
    elif passes <= 5:
        _write(out, writer, 0b1100 + passes - 3, 4)
    elif passes <= 36:
        _write(out, writer, (0b1111 << 5) + passes - 6, 9)
    else:
        _write(out, writer, (0b111111111 << 7) + passes - 37, 16)


@compiled
def _read(data: Bytes, reader: State, count: int) -> int:
    value = 0
    for _ in range(count):
        if reader[1] == 0:
            reader[1] = 7 if reader[2] == 255 else 8  # B.10.1: the stuffed bit.
            reader[2] = data[reader[0]] if reader[0] < len(data) else 0
            reader[0] += 1
        reader[1] -= 1
        value = value << 1 | (reader[2] >> reader[1]) & 1
    return value


@compiled
def _write(out: Bytes, writer: State, value: int, count: int) -> None:
    for k in range(count - 1, -1, -1):
        if writer[1] == 0:
            writer[1] = 7 if writer[2] == 255 else 8
            writer[2] = 0
            writer[0] += 1
        writer[1] -= 1
        writer[2] |= ((value >> k) & 1) << writer[1]
        out[writer[0] - 1] = writer[2]


@compiled
def _copy(data: Bytes, reader: State, out: Bytes, writer: State) -> int:
    bit = _read(data, reader, 1)
    _write(out, writer, bit, 1)
    return bit


@compiled
def _tag_tree(blocks: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Lower bound, and whether it is the value, of every node, level by level from the leaves; B.10.2."""
    h, w = blocks
    nodes = h * w
    while h > 1 or w > 1:
        h, w = (h + 1) >> 1, (w + 1) >> 1
        nodes += h * w
    return np.zeros((nodes, 2), np.int64)


@compiled
def _at_most(
    data: Bytes,
    reader: State,
    out: Bytes,
    writer: State,
    tree: npt.NDArray[np.int64],
    blocks: tuple[int, int],
    y: int,
    x: int,
    limit: int,
) -> bool:
    """Whether the value of a leaf is at most ``limit``, copying the bits that tell."""
    path = np.empty(_DEEPEST + 1, np.int64)
    h, w = blocks
    depth = base = 0
    while True:
        path[depth] = base + y * w + x
        if h == 1 and w == 1:
            break
        base += h * w
        h, w, y, x = (h + 1) >> 1, (w + 1) >> 1, y >> 1, x >> 1
        depth += 1
    bound = 0
    for k in range(depth, -1, -1):
        node = tree[path[k]]
        node[0] = max(node[0], bound)
        while node[0] <= limit and node[1] == 0:
            if _copy(data, reader, out, writer) == 1:
                node[1] = 1
            else:
                node[0] += 1
        bound = node[0]
    return bool(tree[path[0], 1] == 1 and tree[path[0], 0] <= limit)
