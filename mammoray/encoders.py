"""Pixels to codestreams: what stands inside of Pixel Data in the transfer syntaxes that readers meet.

The encoders of :mod:`mammoray.machines`, and :func:`jpeg2000` for the arrangements of a JPEG 2000 codestream that a
reader has to cope with. The same pixels and options give the same bytes.

Shapes: ``H, W`` the image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from pydicom import uid
from pydicom.pixels.encoders.base import get_encoder

Image = npt.NDArray[Any]

JPEG_QUALITY = 95
"""Of 100, for the lossy JPEG processes."""
NEAR = 2
"""Largest error of near-lossless JPEG-LS and about that of lossy HTJ2K, in stored values."""
PSNR = 60
"""Of irreversible JPEG 2000, in dB of the range of the bits stored."""
_SIZ, _COD, _SOT, _PLT, _SOD, _EOC = 0xFF51, 0xFF52, 0xFF90, 0xFF58, 0xFF93, 0xFFD9  # ITU-T T.800 table A.2


def jpeg(pixels: Image, bits: int) -> bytes:
    """JPEG by DCT: baseline (SOF0) for 8 bits or fewer, extended (SOF1, precision 12) for up to 12."""
    if bits > 12 or pixels.dtype.kind != "u":
        raise ValueError(f"JPEG by DCT holds unsigned values of up to 12 bits, not {bits} bits of {pixels.dtype}")
    dtype, precision = (np.uint8, 8) if bits <= 8 else (np.uint16, 12)
    return bytes(imagecodecs.jpeg8_encode(pixels.astype(dtype), level=JPEG_QUALITY, bitspersample=precision))


def jpeg_baseline(pixels: Image, bits: int) -> bytes:
    """:func:`jpeg` of 8 bits or fewer."""
    if bits > 8:
        raise ValueError(f"JPEG baseline holds 8 bits, not {bits}")
    return jpeg(pixels, bits)


def jpeg_lossless(pixels: Image, bits: int, *, predictor: int = 1) -> bytes:
    """JPEG Lossless (SOF3) of precision ``bits`` with selection value ``predictor``, 1 to 7."""
    return bytes(imagecodecs.jpeg8_encode(_bare(pixels, bits), lossless=True, predictor=predictor, bitspersample=bits))


def jpeg_ls(pixels: Image, bits: int, *, near: int = 0) -> bytes:
    """JPEG-LS with an error of up to ``near``; the precision is that of the bits allocated."""
    if (
        near and pixels.dtype.kind != "u"
    ):  # An error at the wrap of the two's complement would be one of the whole range.
        raise ValueError("near-lossless JPEG-LS holds unsigned values only")
    return bytes(imagecodecs.jpegls_encode(_bare(pixels, bits) if pixels.dtype.kind == "i" else pixels, level=near))


def rle(pixels: Image, bits: int) -> bytes:
    """DICOM RLE, PS3.5 annex G."""
    rows, columns = pixels.shape
    allocated = 8 * pixels.itemsize  # Given 8 bits stored of 16, pydicom would leave out the upper byte.
    # By its own plugin: GDCM, which it prefers where it is installed, writes other bytes and crashes on odd sizes.
    encoded: bytes = get_encoder(uid.RLELossless).encode(
        pixels, rows=rows, columns=columns, samples_per_pixel=1, bits_allocated=allocated, bits_stored=allocated,
        number_of_frames=1, pixel_representation=int(pixels.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
    )  # fmt: skip
    return encoded


def htj2k(pixels: Image, bits: int, *, reversible: bool = True, lengths: bool = False) -> bytes:
    """High-throughput JPEG 2000 in RPCL order; ``lengths`` writes TLM markers, which syntax .202 asks for.

    The precision of the codestream is that of the bits allocated.
    """
    step = 0.0 if reversible else NEAR / 2 ** (8 * pixels.itemsize)
    return bytes(imagecodecs.htj2k_encode(pixels, level=step, reversible=reversible, tlm=lengths or None))


def jpeg2000_plain(pixels: Image, bits: int, *, reversible: bool = True) -> bytes:
    """A bare JPEG 2000 codestream of precision ``bits``: one tile, one layer, 5/3 or, by :data:`PSNR`, 9/7 wavelet."""
    quality = 0 if reversible else PSNR
    narrow = pixels.astype(f"{pixels.dtype.kind}1") if bits <= 8 else pixels  # of wider types it writes 16 bits
    return bytes(
        imagecodecs.jpeg2k_encode(
            narrow, level=quality, reversible=reversible, codecformat="j2k", bitspersample=bits, numthreads=1
        )
    )


def jpeg2000(
    pixels: Image,
    bits: int,
    *,
    progression: str = "LRCP",
    levels: int = 5,
    tiles: tuple[int, int] | None = None,
    layers: Sequence[float] = (),
    precincts: tuple[int, int] | None = None,
    parts: int = 1,
    lengths: bool = False,
    wrapped: bool = False,
) -> bytes:
    """Encode losslessly as a JPEG 2000 codestream of precision ``bits``, arranged as asked.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W) stored values, signed or unsigned.
    bits : int
        Bits stored.
    progression : str
        LRCP, RLCP, RPCL, PCRL or CPRL.
    levels : int
        Decomposition levels, 0 or more; at most 5 for tiles of 32 pixels.
    tiles : tuple of int, optional
        Rows and columns of a tile. Default: one tile.
    layers : sequence of float
        Compression ratios of the quality layers before the last, lossless one, falling.
    precincts : tuple of int, optional
        Rows and columns of a precinct, powers of two. Default: one precinct a resolution.
    parts : int
        Tile parts per tile; the packets are dealt to them evenly, in their order.
    lengths : bool
        Whether each tile part begins with a PLT marker segment.
    wrapped : bool
        True: a JP2 file. DICOM wants the bare codestream, but files with the wrapper exist.

    References
    ----------
    ITU-T T.800 annexes A (codestream) and I (JP2); DICOM PS3.5 A.4.4.

    Examples
    --------
    >>> stream = jpeg2000(np.arange(64 * 48, dtype=np.uint16).reshape(64, 48), 12, tiles=(32, 32), levels=2)
    >>> bool((imagecodecs.jpeg2k_decode(stream) == np.arange(64 * 48).reshape(64, 48)).all())
    True
    """
    height, width = pixels.shape
    rows, columns = tiles or (height, width)
    corners = [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]
    options = {
        "progression": progression, "num_resolutions": levels + 1, "tile_size": (columns, rows), "plt": True,
        "no_jp2": True, **({"quality_layers": [*layers, 0]} if layers else {}),
        **({"precinct_size": precincts[::-1]} if precincts else {}),
    }  # fmt: skip
    # OpenJPEG by way of Pillow has all of these options, but one precision, 16 bits unsigned. In a reversible
    # codestream the precision says no more than which level shift to add (T.800 G.1), so it can be corrected after.
    shifted = (pixels.astype(np.int32) + 2**15 - (0 if pixels.dtype.kind == "i" else 2 ** (bits - 1))).astype(np.uint16)
    # Tile by tile: of 16-bit pixels, Pillow writes all tiles but those at the left border wrong.
    streams = [_one_tile(shifted[y : y + rows, x : x + columns], (x, y), options) for y, x in corners]
    header = _with_size(streams[0][0], (height, width), (rows, columns), bits, pixels.dtype.kind == "i")
    body = b"".join(_tile_parts(i, stream, parts, lengths) for i, (_, stream) in enumerate(streams))
    codestream = header + body + struct.pack(">H", _EOC)
    return _jp2(codestream, height, width, bits, pixels.dtype.kind == "i") if wrapped else codestream


def _bare(pixels: Image, bits: int) -> Image:
    """Without a sign, two's complement of ``bits`` (PS3.5 8.1.1), in the narrowest type: for codecs without a sign."""
    bare: Image = pixels.astype(np.int32) & (2**bits - 1)
    return bare.astype(np.uint8 if bits <= 8 else np.uint16)


def _one_tile(tile: Image, corner: tuple[int, int], options: dict[str, Any]) -> tuple[bytes, bytes]:
    """Main header, and the tile part with its packets, of a tile whose upper left corner (x, y) is ``corner``."""
    buffer = BytesIO()
    Pillow.fromarray(tile).save(buffer, "JPEG2000", offset=corner, tile_offset=corner, **options)
    stream = buffer.getvalue()
    place = 2
    while struct.unpack_from(">H", stream, place)[0] != _SOT:
        place += 2 + struct.unpack_from(">H", stream, place + 2)[0]
    length = struct.unpack_from(">I", stream, place + 6)[0]
    return stream[:place], stream[place : place + length]


def _with_size(header: bytes, image: tuple[int, int], tile: tuple[int, int], bits: int, signed: bool) -> bytes:
    """Main header with another SIZ (T.800 A.5.1): extent of image and tiles, their origin at 0, and the precision."""
    sizes = struct.pack(">8I", image[1], image[0], 0, 0, tile[1], tile[0], 0, 0)
    precision = (bits - 1) | (0x80 if signed else 0)
    return header[:8] + sizes + header[40:42] + bytes([precision]) + header[43:]


def _tile_parts(index: int, tile: bytes, parts: int, lengths: bool) -> bytes:
    """One tile's packets as ``parts`` tile parts (T.800 A.4.2), with PLT (A.7.3) where ``lengths``."""
    packets = _packets(tile)
    bounds = [len(packets) * k // parts for k in range(parts + 1)]
    written = b""
    for k in range(parts):
        mine = packets[bounds[k] : bounds[k + 1]]
        content = (_plt(mine) if lengths else b"") + struct.pack(">H", _SOD) + b"".join(mine)
        written += struct.pack(">HHHIBB", _SOT, 10, index, 12 + len(content), k, parts) + content
    return written


def _packets(tile: bytes) -> list[bytes]:
    """The packets of a tile part, cut where its PLT segments say."""
    place, sizes, size = 12, [], 0
    while (marker := struct.unpack_from(">H", tile, place)[0]) != _SOD:
        end = place + 2 + struct.unpack_from(">H", tile, place + 2)[0]
        for byte in tile[place + 5 : end] if marker == _PLT else b"":
            size = size << 7 | byte & 0x7F
            if byte < 0x80:
                sizes.append(size)
                size = 0
        place = end
    ends = np.cumsum([place + 2, *sizes]).tolist()
    return [tile[a:b] for a, b in pairwise(ends)]


def _plt(packets: Sequence[bytes]) -> bytes:
    groups = [[len(p) >> shift & 0x7F for shift in (28, 21, 14, 7, 0)] for p in packets]
    numbers = b""
    for group in groups:
        first = next((i for i, value in enumerate(group) if value), 4)
        numbers += bytes([*(value | 0x80 for value in group[first:-1]), group[-1]])
    return struct.pack(">HHB", _PLT, 3 + len(numbers), 0) + numbers


def _jp2(codestream: bytes, height: int, width: int, bits: int, signed: bool) -> bytes:
    """A JP2 file of one grey component, T.800 annex I."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    header = box(b"ihdr", struct.pack(">IIHBBBB", height, width, 1, (bits - 1) | (0x80 if signed else 0), 7, 0, 0))
    colour = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))  # enumerated: greyscale
    kind = box(b"ftyp", b"jp2 \x00\x00\x00\x00jp2 ")
    return box(b"jP  ", b"\r\n\x87\n") + kind + box(b"jp2h", header + colour) + box(b"jp2c", codestream)
