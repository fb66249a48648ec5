"""JPEG 2000 codestreams: what their headers say, whether they are whole, and the smaller image at their start.

The packets of a codestream usually stand in the order of their resolution. Then those of an image of half the size come
first, and with a header that speaks of that image alone the same bytes are a complete, valid codestream of it: any
decoder, in its strict mode, reads just the wavelet levels that are needed. Nothing is decoded here.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mammoray.packets import follow

_SOC, _CAP, _SIZ, _COD, _QCD, _PLT, _COM, _SOT, _SOD = (
    0xFF4F, 0xFF50, 0xFF51, 0xFF52, 0xFF5C, 0xFF58, 0xFF64, 0xFF90, 0xFF93,
)  # fmt: skip
_EOC = b"\xff\xd9"
_HARMLESS = (_COM, 0xFF55, 0xFF57)  # And TLM, PLM, lengths of parts and packets: no decoder needs them.
_START = b"\xff\x4f\xff\x51"
_MAX_PLANES = 30  # Bit planes that fit into 32 bits beside a sign and a half; 16-bit images have about 20.
_LRCP, _RLCP, _RPCL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Codestream:
    """A codestream, checked to be whole.

    Attributes
    ----------
    data : memoryview
        From SOC to EOC.
    rows, columns, precision : int
        Of its image; ``precision`` in bits.
    signed : bool
        Whether its values are.
    high_throughput : bool
        HTJ2K, ISO/IEC 15444-15.
    reversible : bool
        5/3 wavelet, not 9/7.
    halvings : int
        Wavelet levels.
    levels : int
        How many of them :func:`reduced` can leave off: all, or 0 where the order of the packets does not allow it.
    at_origin : bool
        Whether image and tiles begin at the origin of the reference grid (B.2).
    followed : bool
        Whether its packets can be told apart (:mod:`mammoray.packets`).
    skippable : bool
        Whether bit planes can be left out of them besides.
    """

    data: memoryview
    rows: int
    columns: int
    precision: int
    signed: bool
    high_throughput: bool
    reversible: bool
    halvings: int
    levels: int
    at_origin: bool
    followed: bool
    skippable: bool
    _segments: tuple[tuple[int, bytes], ...]
    _tiles: int


def parse(frame: memoryview) -> Codestream:
    """Read the main header and follow the tile parts to the end.

    Parameters
    ----------
    frame : memoryview
        A bare codestream, or one wrapped in JP2 boxes as some writers do, with what padding follows it.

    Raises
    ------
    ValueError
        With a reason: no codestream, several components, a header that contradicts itself, or a missing end.

    References
    ----------
    ITU-T T.800, annex A (markers), B.12 (progression orders).
    """
    start = bytes(frame[:4096]).find(_START)
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    try:
        segments, tiles = _main_header(frame, start)
        found = dict(segments)
        siz, cod = found[_SIZ], found[_COD]
        columns, rows, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(">8I", siz, 6)
        components, depth = struct.unpack_from(">HB", siz, 38)
        if components != 1:
            raise ValueError(f"{components} components instead of one")
        sound = _is_sound(siz, cod, found[_QCD])
        if sound:
            across, down = (
                -(-(side - start) // tile)
                for side, start, tile in ((columns, tile_left, tile_width), (rows, tile_top, tile_height))
            )
            end, parts, plain = _follow_tile_parts(frame, tiles, across * down)
    except (struct.error, KeyError, IndexError):
        sound = False
    if not sound:
        raise ValueError("the header of the codestream is cut off or damaged")
    origin = (left, top, tile_left, tile_top) == (0, 0, 0, 0)
    whole = tile_width >= columns and tile_height >= rows
    levels = _levels(segments, cod) if origin and plain else 0
    while not whole and (tile_width % (1 << levels) or tile_height % (1 << levels)):
        levels -= 1
    # One tile in one part; one layer, no SOP or EPH markers, code blocks in one piece and not of HTJ2K.
    layers = struct.unpack_from(">H", cod, 6)[0]
    followed = bool(levels and whole and parts == 1 and layers == 1 and not cod[4] & 6 and not cod[12] & 0x45)
    return Codestream(
        data=frame[start:end],
        rows=rows - top,
        columns=columns - left,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        high_throughput=_CAP in found,
        reversible=cod[13] == 1,
        halvings=cod[9],
        levels=levels,
        at_origin=origin,
        followed=followed,
        skippable=followed and cod[13] == 1,
        _segments=tuple(segments),
        _tiles=tiles - start,
    )


def _main_header(frame: memoryview, start: int) -> tuple[list[tuple[int, bytes]], int]:
    """Marker segments of the main header, each with its marker and length, and where the first tile part begins."""
    segments: list[tuple[int, bytes]] = []
    position = start + 2
    while True:
        (marker,) = struct.unpack_from(">H", frame, position)
        if marker == _SOT:
            return segments, position
        (length,) = struct.unpack_from(">H", frame, position + 2)
        if marker < 0xFF00 or length < 2:
            raise ValueError("the header of the codestream is damaged")
        segments.append((marker, bytes(frame[position : position + 2 + length])))
        position += 2 + length


def _is_sound(siz: bytes, cod: bytes, qcd: bytes) -> bool:
    """Whether the values can be those of a grey image: decoders may crash, or never end, on some that cannot.

    References
    ----------
    ITU-T T.800, A.5.1 (SIZ), A.6.1 (COD), A.6.4 (QCD), B.3 (tiles), E.1 (bit planes).
    """
    spans = []
    for far, near, side, tile_near in zip(
        *(struct.unpack_from(">2I", siz, offset) for offset in (6, 14, 22, 30)), strict=True
    ):
        if not tile_near <= near < min(far, tile_near + side):
            return False
        spans.append(-(-(far - tile_near) // side))
    style, levels, blocks = cod[4], cod[9], (cod[10] + 2, cod[11] + 2)
    guard_bits, kind = qcd[4] >> 5, qcd[4] & 31
    steps = qcd[5:] if kind == 0 else qcd[5::2]  # Their upper five bits are an exponent in both forms.
    return (
        spans[0] * spans[1] <= 1 << 16
        and siz[41:43] == b"\1\1"  # No subsampling.
        and siz[40] & 0x7F < 16
        and levels <= 32
        and len(cod) == 14 + (levels + 1 if style & 1 else 0)
        and all(size & 15 and size >> 4 for size in cod[15:])  # Half of a precinct is a subband's.
        and max(blocks) <= 10
        and sum(blocks) <= 12
        and len(steps) == (1 if kind == 1 else 3 * levels + 1)
        and max(steps) >> 3 <= _MAX_PLANES + 1 - guard_bits
    )


def _follow_tile_parts(frame: memoryview, position: int, tiles: int) -> tuple[int, int, bool]:
    """Index behind EOC, which has to stand where the lengths of the tile parts lead to.

    And how many parts there are, and whether the main header holds for all of them. None of the ``tiles``, nor of their
    parts, may be missing.
    """
    plain, seen, wanted = True, Counter[int](), dict[int, int]()
    while True:
        tile, length, part, parts = struct.unpack_from(">HIBB", frame, position + 4)
        plain = plain and _is_plain(frame, position + 12)
        seen[tile] += 1
        wanted[tile] = max(wanted.get(tile, 1), parts, part + 1)
        end = position + length
        if length == 0:  # A.4.2: up to EOC. Only zeros or ones, to an even length, may follow it.
            end = position + len(bytes(frame[position:]).rstrip(b"\x00\xff")) - len(_EOC)
        following = bytes(frame[end : end + 2])
        if following == _EOC:
            break
        if following != struct.pack(">H", _SOT) or length < 14:
            raise ValueError("no end of codestream where its lengths lead to: truncated or damaged")
        position = end
    if dict(seen) != wanted or len(seen) != tiles:
        raise ValueError("parts of the codestream are missing: truncated or damaged")
    return end + 2, sum(seen.values()), plain


def _is_plain(frame: memoryview, position: int) -> bool:
    """Whether a tile part's header sets nothing of its own: only packet lengths and comments before its data."""
    while True:
        marker, length = struct.unpack_from(">HH", frame, position)
        if marker not in (_PLT, _COM):
            return bool(marker == _SOD)
        position += 2 + length


def _levels(segments: list[tuple[int, bytes]], cod: bytes) -> int:
    """How many wavelet levels can be left off by :func:`reduced`: all of them or none."""
    style, order, layers, levels = cod[4], cod[5], struct.unpack_from(">H", cod, 6)[0], cod[9]
    plain = {marker for marker, _ in segments} <= {_SIZ, _COD, _QCD, _CAP, *_HARMLESS}
    # Position-first orders are by resolution too where a precinct is as large as it can be, and so the only one.
    by_resolution = order in (_RLCP, _RPCL) or (order == _LRCP and layers == 1) or (order > _RPCL and not style & 1)
    return levels if plain and by_resolution and levels <= 32 else 0


def reduced(stream: Codestream, level: int, skipped: int = 0, room: int = 0) -> bytes:
    """A codestream of the image halved ``level`` times (each side rounded up): the LL band of that wavelet level.

    Parameters
    ----------
    level : int
        0 to ``stream.levels``.
    skipped : int
        Lowest bit planes that its decoder shall leave out, of the finest two resolutions; one plane less of the next
        two, and so on. What is left out is below ``2**skipped`` in each coefficient, and mostly averages out. Without
        effect where ``stream.skippable`` is not.
    room : int
        Bits to add to the precision of a reversible codestream, whose values the precision only shifts: unsigned ones
        come out ``2**(precision + room - 1) - 2**(precision - 1)`` higher, and a decoder neither clips nor wraps
        those that lie beyond the range.

    References
    ----------
    ITU-T T.800, B.5: the resolutions of an image are those of its LL band, and one more; G.1: the level shift.
    """
    if level == room == 0 and not (skipped and stream.skippable):
        return bytes(stream.data)
    main = b"".join(_shortened(marker, segment, level, room) for marker, segment in stream._segments)
    return b"".join((struct.pack(">H", _SOC), main, *_needed(stream, level, skipped)))


def _needed(stream: Codestream, level: int, skipped: int) -> tuple[bytes | memoryview, ...]:
    """The tile parts, without the packets behind those that level ``level`` needs where these can be told."""
    everything = (stream.data[stream._tiles :],)
    if not stream.followed:
        return everything
    start = stream._tiles + 12
    while stream.data[start : start + 2] != struct.pack(">H", _SOD):  # Packet lengths and comments.
        start += 2 + struct.unpack_from(">H", stream.data, start + 2)[0]
    found = dict(stream._segments)
    cod, resolutions = found[_COD], stream.halvings + 1
    kept = resolutions - level
    skip = np.maximum(skipped - (kept - 1 - np.arange(kept)) // 2, 0) * (np.arange(kept) > 0) * stream.skippable
    precincts = (
        [(size >> 4, size & 15) for size in cod[14 : 14 + resolutions]] if cod[4] & 1 else [(15, 15)] * resolutions
    )
    out = np.empty(len(stream.data) * 11 // 10 + 8192, np.uint8)
    end, written = follow(
        np.frombuffer(stream.data, np.uint8),
        start + 2,
        (stream.rows, stream.columns),
        (cod[11] + 2, cod[10] + 2),
        np.array(precincts),
        _bit_planes(found[_QCD], resolutions),
        skip,
        out,
    )
    if end < 0:
        return everything
    packets = out[:written].tobytes() if skip.any() else stream.data[start + 2 : end]
    part = bytearray(stream.data[stream._tiles : stream._tiles + 12])
    struct.pack_into(">I", part, 6, len(part) + 2 + len(packets))
    return bytes(part), struct.pack(">H", _SOD), packets, _EOC


def _bit_planes(qcd: bytes, resolutions: int) -> npt.NDArray[np.int64]:
    """Magnitude bit planes of each resolution's LL, HL, LH, HH (equation E-2), where the wavelet is reversible."""
    planes = np.zeros((resolutions, 4), np.int64)
    if qcd[4] & 31 == 0 and len(qcd) >= 5 + 3 * resolutions - 2:
        exponents = [byte >> 3 for byte in qcd[5 : 5 + 3 * resolutions - 2]]
        planes[0, 0] = exponents[0]
        planes[1:, 1:] = np.reshape(exponents[1:], (-1, 3))
        planes += (qcd[4] >> 5) - 1
    return planes


def _shortened(marker: int, segment: bytes, level: int, room: int) -> bytes:
    """A marker segment as it stands in the main header of the smaller image."""
    changed = bytearray(segment)
    if marker in _HARMLESS:
        return b""
    if marker == _SIZ:
        sizes = struct.unpack_from(">4I", segment, 6), struct.unpack_from(">2I", segment, 22)
        for offset, values in zip((6, 22), sizes, strict=True):
            struct.pack_into(f">{len(values)}I", changed, offset, *(-(-value >> level) for value in values))
        changed[40] += room
    elif marker == _COD:
        changed[9] -= level
        del changed[14 + (changed[9] + 1 if segment[4] & 1 else 0) :]  # Sizes of precincts, coarsest first.
    elif marker == _QCD and segment[4] & 31 != 1:  # 1: a single step, from which all others are derived.
        subbands = (len(segment) - 5) // (1 if segment[4] & 31 == 0 else 2)
        del changed[5 + (subbands - 3 * level) * (1 if segment[4] & 31 == 0 else 2) :]
    struct.pack_into(">H", changed, 2, len(changed) - 2)
    return bytes(changed)
