"""Where the low resolutions of a JPEG 2000 codestream end: the headers of its packets, read without decoding any data.

A codestream of 4 MB holds an image of 500 pixels in its first 300 kB. Knowing where they end, nothing behind them has
to be read from the disk, copied or looked at. Only the plain form is followed (one tile, one quality layer); of any
other the whole is taken, which is as right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mammoray.compiled import compiled

_DEEPEST = 16  # Levels of a tag tree: 2**16 code blocks along a side.


@compiled
def end_of_resolutions(
    data: npt.NDArray[np.uint8],
    start: int,
    size: tuple[int, int],
    levels: int,
    kept: int,
    block: tuple[int, int],
    precincts: npt.NDArray[np.int64],
) -> int:
    """Follow the packets of the first resolutions of a tile.

    Parameters
    ----------
    data : (n,) uint8
        A codestream.
    start : int
        Where its packets begin.
    size : (rows, columns)
        Of the image.
    levels, kept : int
        Wavelet levels, and how many resolutions to follow, from 1 to ``levels + 1``.
    block : (rows, columns)
        Of a code block, as powers of two.
    precincts : (levels + 1, 2) int64
        Rows and columns of a precinct at each resolution, as powers of two.

    Returns
    -------
    int
        Index behind the last packet, or -1 where the headers lead beyond the data.

    References
    ----------
    ITU-T T.800, B.6 to B.10.
    """
    reader = np.array([start, 0, 0], np.int64)
    for resolution in range(kept):
        down = levels - resolution
        h, w = (size[0] + (1 << down) - 1) >> down, (size[1] + (1 << down) - 1) >> down
        rows, columns = precincts[resolution]
        for top in range(0, h, 1 << rows):
            for left in range(0, w, 1 << columns):
                length = _packet(data, reader, size, resolution, down, block, (rows, columns), (top, left))
                if length < 0 or reader[0] + length > len(data):
                    return -1
                reader[0] += length
    return int(reader[0])


@compiled
def _packet(
    data: npt.NDArray[np.uint8],
    reader: npt.NDArray[np.int64],
    size: tuple[int, int],
    resolution: int,
    down: int,
    block: tuple[int, int],
    precinct: tuple[int, int],
    corner: tuple[int, int],
) -> int:
    """Read a packet's header; returns the bytes of its body. B.10."""
    reader[1] = reader[2] = 0
    body = 0
    if _bits(data, reader, 1) == 1:
        first, last = (0, 0) if resolution == 0 else (1, 3)
        for band in range(first, last + 1):
            blocks = _blocks(size, band, down, block, precinct, corner)
            if blocks[0] and blocks[1]:
                length = _code_blocks(data, reader, blocks)
                if length < 0:
                    return -1
                body += length
    if reader[2] == 255:  # B.10.1: a byte of ones is followed by a stuffed bit, even where it is the last.
        reader[0] += 1
    return body


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
def _code_blocks(data: npt.NDArray[np.uint8], reader: npt.NDArray[np.int64], blocks: tuple[int, int]) -> int:
    """Read what a header says of a subband's code blocks; returns the sum of their lengths. B.10.4 to B.10.7."""
    inclusion, planes = _tag_tree(blocks), _tag_tree(blocks)
    total = 0
    for y in range(blocks[0]):
        for x in range(blocks[1]):
            if not _at_most(data, reader, inclusion, blocks, y, x, 0):
                continue
            plane = 0
            while not _at_most(data, reader, planes, blocks, y, x, plane):
                plane += 1
                if plane > 74:  # More than any code block has: the data are not a packet header.
                    return -1
            passes = _passes(data, reader)
            bits = 3
            while _bits(data, reader, 1) == 1:
                bits += 1
            while passes > 1:
                passes >>= 1
                bits += 1
            if bits > 32 or reader[0] >= len(data):
                return -1
            total += _bits(data, reader, bits)
    return total


@compiled
def _passes(data: npt.NDArray[np.uint8], reader: npt.NDArray[np.int64]) -> int:
    """Number of coding passes; table B.4."""
    if _bits(data, reader, 1) == 0:
        return 1
    if _bits(data, reader, 1) == 0:
        return 2
    more = _bits(data, reader, 2)
    if more < 3:
        return 3 + more
    more = _bits(data, reader, 5)
    if more < 31:
        return 6 + more
    return 37 + _bits(data, reader, 7)


@compiled
def _bits(data: npt.NDArray[np.uint8], reader: npt.NDArray[np.int64], count: int) -> int:
    """The next bits; reader: next byte, unread bits of the current byte, current byte."""
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
    data: npt.NDArray[np.uint8],
    reader: npt.NDArray[np.int64],
    tree: npt.NDArray[np.int64],
    blocks: tuple[int, int],
    y: int,
    x: int,
    limit: int,
) -> Any:
    """Whether the value of a leaf is at most ``limit``, reading the bits that tell."""
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
            if _bits(data, reader, 1) == 1:
                node[1] = 1
            else:
                node[0] += 1
        bound = node[0]
    return tree[path[0], 1] == 1 and tree[path[0], 0] <= limit
