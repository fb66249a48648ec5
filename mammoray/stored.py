"""Stored values of a frame, whole or reduced, by the fastest decoder that is known for its transfer syntax.

An image is handed out at a level ``r`` of the 5/3 wavelet pyramid (:mod:`mammoray.wavelet`): each side is halved ``r``
times. JPEG 2000 and HTJ2K decode just that level; other frames are decoded whole, once, and brought down by the same
filter. Which decoder stands for which syntax was chosen by ``benchmarks/decode.py``.

Nothing is silent: sizes are compared with the header before memory is taken, ends of codestreams are looked for, and
values are held against Bits Stored.
"""

from __future__ import annotations

import functools
import io
import itertools
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image as PillowImage
from pydicom import uid as uids

from mammoray import codestream, jpeg, ljpeg, raster
from mammoray.errors import DecodeError
from mammoray.header import Header
from mammoray.wavelet import low_pass

Image = npt.NDArray[Any]
_Found = TypeVar("_Found")
_ROOM = 2  # Bits: the 5/3 low-pass of 0s and 1s lies between -1 and 2 at every level.
_OVERSHOOT = 1 / 3  # Share of samples; noise of the two ends of the range alone reaches it.
LOSSY = (
    uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLSNearLossless, uids.JPEG2000, uids.HTJ2K,
)  # fmt: skip


class Pyramid:
    """The levels of one frame, decoded when they are asked for.

    Parameters
    ----------
    header : Header
    decode : callable
        ``decode(r, skipped)`` gives level ``r``, from 0 to ``deepest``, without ``skipped`` bit planes if that can be.
    deepest : int
        Levels that the codestream itself can leave off.
    """

    def __init__(self, header: Header, decode: Callable[[int, int], Image], deepest: int) -> None:
        self._header, self._decode, self._deepest = header, decode, deepest
        self._levels: dict[int, Image] = {}

    def level(self, r: int, skipped: int = 0) -> Image:
        """Stored values at level ``r``: (ceil(rows / 2**r), ceil(columns / 2**r)), integers.

        Beside sharp edges those of a reduced level lie a little beyond the header's range.

        Parameters
        ----------
        r : int
        skipped : int
            Lowest bit planes of the wavelet coefficients that need not be decoded (:func:`codestream.reduced`).

        Raises
        ------
        DecodeError
            Damaged, truncated, contradicting the header, or one value everywhere.
        """
        if r not in self._levels:
            # Not from a finer level that was decoded: of that, a decoder may have clipped the overshoot.
            if r <= self._deepest:
                self._levels[r] = self._checked(self._decode(r, skipped), r)
            else:
                self._levels[r] = low_pass(self.level(r - 1, skipped))
        return self._levels[r]

    def unchecked(self) -> Image:
        """Level 0 with whatever values the frame holds, which :meth:`level` would refuse beyond Bits Stored."""
        return self._sized(self._decode(0, 0), 0)

    def _sized(self, values: Image, r: int) -> Image:
        header = self._header
        shape = (-(-header.rows >> r), -(-header.columns >> r))
        if values.shape != shape:
            expected, found = f"{shape[0]} x {shape[1]} at level {r}, by the header", f"{values.shape}"
            raise header.error("Pixel Data (7FE0,0010)", expected, found)
        return values

    def _checked(self, values: Image, r: int) -> Image:
        header = self._header
        values = self._sized(values, r)
        lowest, highest = int(values.min()), int(values.max())
        if lowest == highest:
            found = f"the value {lowest} in every pixel"
            where = "pixels" if header.transfer_syntax in raster.MEDIA_TYPES.values() else "Pixel Data (7FE0,0010)"
            raise header.error(where, "an image", found, "Leave the file out of the CSV.")
        if header.transfer_syntax in LOSSY:  # Rounding of a lossy codec may lead a little out of the range.
            return np.clip(values, header.lowest, header.highest)
        # The low-pass of sharp edges overshoots, in few places and by less than the range; a lossless frame must not.
        room = header.highest - header.lowest if r else 0
        beyond = 0.0
        if lowest < header.lowest or highest > header.highest:
            beyond = float(np.mean((values < header.lowest) | (values > header.highest)))
        if lowest < header.lowest - room or highest > header.highest + room or beyond > (_OVERSHOOT if r else 0):
            # Also the sign of damage in a lossless JPEG: an error in a difference runs through the rest of the image.
            found = f"{lowest} to {highest}"
            expected = f"values from {header.lowest} to {header.highest} (Bits Stored {header.bits_stored})"
            raise header.error("Pixel Data (7FE0,0010)", expected, found)
        return values


def open_frame(header: Header) -> Pyramid:
    """The pyramid of a header's frame.

    Raises
    ------
    DecodeError
        No codestream of the header's size, or a truncated one. Damage inside shows when a level is asked for.
    """
    opener = _OPENERS.get(header.transfer_syntax, _open_by_pydicom)
    decode, deepest = _told(header, opener, header)
    return Pyramid(header, lambda r, skipped: _signed(_told(header, decode, r, skipped), header), deepest)


def _told(header: Header, work: Callable[..., Any], *args: Any) -> Any:
    """Call a codec; what it raises becomes this file's error. Only own texts are told: others may quote the header."""
    try:
        return work(*args)
    except (DecodeError, MemoryError, ImportError):
        raise  # The last two say nothing about the file.
    except Exception as error:
        found = str(error) if type(error) is _DamagedError else f"{type(error).__name__} in its decoder"
        name = uids.UID(header.transfer_syntax).name
        raise header.error("Pixel Data (7FE0,0010)", f"an image in {name}", found) from None


class _DamagedError(Exception):
    """An own finding about a codestream."""


def _own(work: Callable[..., _Found], *args: Any) -> _Found:
    """Call a module of mammoray's, whose ValueErrors are findings that may be told."""
    try:
        return work(*args)
    except ValueError as error:
        raise _DamagedError(str(error)) from None


def _signed(values: Image, header: Header) -> Image:
    """Two's complement of Bits Stored bits (PS3.5 8.1.1); codecs that know no sign hand over the bare bits."""
    if not header.signed or values.dtype.kind == "i":
        return values
    bits = values.dtype.itemsize * 8
    shift = bits - header.bits_stored
    extended = (values.view(np.dtype(f"int{bits}")) << shift) >> shift
    # The bits above are zeros or copies of the sign; anything else does not fit into Bits Stored.
    above = values >> header.bits_stored if shift else values[:0]
    if above.any() and not np.array_equal(extended.view(values.dtype), values):
        expected, found = f"signed values of {header.bits_stored} bits", "other bits above them"
        raise header.error("Pixel Data (7FE0,0010)", expected, found)
    return extended


_Opened = tuple[Callable[[int, int], Image], int]


def _open_uncompressed(header: Header) -> _Opened:
    order = ">" if header.transfer_syntax == uids.ExplicitVRBigEndian else "<"
    values = np.frombuffer(header.frame, f"{order}u{header.bits_allocated // 8}").reshape(header.rows, header.columns)
    return lambda r, skipped: np.ascontiguousarray(values, values.dtype.newbyteorder("=")), 0


def _open_rle(header: Header) -> _Opened:
    dtype = np.dtype(f"<u{header.bits_allocated // 8}")
    segments, *offsets = struct.unpack_from("<16I", header.frame)
    if segments != dtype.itemsize:
        raise _DamagedError(f"{segments} segments instead of {dtype.itemsize}")
    # PS3.5 G.5. The decoder reads wherever an offset leads it.
    ends = [*offsets[:segments], len(header.frame)]
    if ends[0] != 64 or any(start >= end for start, end in itertools.pairwise(ends)):
        raise _DamagedError("segments out of order: truncated or damaged")

    def decode(r: int, skipped: int) -> Image:
        values = np.frombuffer(imagecodecs.dicomrle_decode(header.frame, dtype), dtype)
        if values.size != header.rows * header.columns:
            raise _DamagedError(f"{values.size} values instead of {header.rows * header.columns}: truncated or damaged")
        return values.reshape(header.rows, header.columns)

    return decode, 0


def _open_jpeg2000(header: Header) -> _Opened:
    stream = _own(codestream.parse, header.frame)
    _same_size(header, stream.rows, stream.columns)
    if stream.high_throughput:
        whole: Callable[[Any], Image] = _htj2k
    else:
        whole = functools.partial(imagecodecs.jpeg2k_decode, numthreads=1)
    if stream.levels and stream.signed == header.signed:
        return functools.partial(_by_header, stream, whole), stream.levels
    if stream.at_origin and not stream.signed and not header.signed and not stream.high_throughput:
        return functools.partial(_by_pillow, stream), stream.halvings
    # The levels of an image with an offset stand elsewhere; and a low-pass of values whose sign is yet to be read from
    # their bits would mix the two ends of the range.
    return lambda r, skipped: np.asarray(whole(stream.data)), 0


_HOOK = threading.Lock()


def _htj2k(data: bytes | memoryview) -> Image:
    """Decode HTJ2K; imagecodecs prints what OpenJPH says of damage, and returns the image with the rest missing."""
    said: list[object] = []

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if "htj2k" in str(unraisable.object):
            said.append(unraisable.exc_type)
        else:
            before(unraisable)

    with _HOOK:  # The hook is the whole process's.
        before, sys.unraisablehook = sys.unraisablehook, hook
        try:
            values = np.asarray(imagecodecs.htj2k_decode(data))
        finally:
            sys.unraisablehook = before
    if said:
        raise _DamagedError("damaged data")
    return values


def _by_header(stream: codestream.Codestream, whole: Callable[[Any], Image], r: int, skipped: int) -> Image:
    """Level ``r``, which a codestream with a header of that level alone is all of."""
    if not stream.reversible:
        return np.asarray(whole(codestream.reduced(stream, r)))
    # A low-pass reaches beyond the range, as damage does: OpenJPH would wrap such values, and OpenJPEG clip them.
    values = np.asarray(whole(codestream.reduced(stream, r, skipped, _ROOM)))
    shift = 0 if stream.signed else ((1 << _ROOM) - 1) << (stream.precision - 1)
    return np.asarray(np.subtract(values, shift, dtype=np.int32, casting="unsafe"))


def _same_size(header: Header, rows: int, columns: int) -> None:
    if (rows, columns) != (header.rows, header.columns):
        raise _DamagedError(f"{rows} x {columns} pixels; the header says {header.rows} x {header.columns}")


def _by_pillow(stream: codestream.Codestream, r: int, skipped: int) -> Image:
    """Level ``r`` of a codestream whose packets stand in another order: Pillow lets OpenJPEG skip them.

    Its own ``reduce`` rounds sizes half up where JPEG 2000 rounds up, and fails on every second odd size; so size and
    tile are set here. It widens 9 to 15 bits to 16.
    """
    image: Any = PillowImage.open(io.BytesIO(stream.data))
    size = (-(-stream.columns >> r), -(-stream.rows >> r))
    tile = image.tile[0]
    image._size = size
    image.tile = [tile._replace(extents=(0, 0, *size), args=(tile.args[0], r, *tile.args[2:]))]
    try:
        values = np.asarray(image)
    except OSError:
        raise _DamagedError("damaged data") from None
    return values >> ((8 if stream.precision <= 8 else 16) - stream.precision)


def _open_jpeg(header: Header) -> _Opened:
    """.50 and .51, and .57 and .70 in a form that :mod:`mammoray.ljpeg` does not take."""
    _same_size(header, *_own(jpeg.size, header.frame))
    _long_enough(header, 256)  # A block of 64 pixels has two codes of a bit or more; T.81 F.1.2.
    end = _own(jpeg.end, header.frame)
    return lambda r, skipped: _own(jpeg.decode, header.frame, end), 0


def _open_jpeg_lossless(header: Header) -> _Opened:
    _same_size(header, *_own(jpeg.size, header.frame))
    _long_enough(header, 8)  # A pixel has a code of a bit or more; T.81 H.1.2.2.

    def decode(r: int, skipped: int) -> Image:
        values = _own(ljpeg.decode, np.frombuffer(header.frame, np.uint8))
        return _open_jpeg(header)[0](0, 0) if values is None else values

    return decode, 0


def _open_jpegls(header: Header) -> _Opened:
    _same_size(header, *_own(jpeg.size, header.frame))
    _own(jpeg.end, header.frame)
    return lambda r, skipped: np.asarray(imagecodecs.jpegls_decode(header.frame)), 0


def _long_enough(header: Header, pixels_of_a_byte: int) -> None:
    """Few bytes that claim a huge image are refused before memory is taken for it."""
    if len(header.frame) * pixels_of_a_byte < header.rows * header.columns:
        raise _DamagedError(f"{len(header.frame)} bytes: too few for the image")


def _open_by_pydicom(header: Header) -> _Opened:
    """What has no decoder here goes to those of pydicom."""
    dataset = pydicom.Dataset(header.dataset)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax = uids.UID(header.transfer_syntax)
    dataset.NumberOfFrames = 1
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(header.frame)]) if syntax.is_encapsulated else header.frame
    dataset["PixelData"].VR = "OB" if syntax.is_encapsulated else "OW"
    return lambda r, skipped: np.asarray(pydicom.pixels.pixel_array(dataset, raw=True)), 0


_OPENERS: dict[str, Callable[[Header], _Opened]] = {
    uids.ImplicitVRLittleEndian: _open_uncompressed,
    uids.ExplicitVRLittleEndian: _open_uncompressed,
    uids.DeflatedExplicitVRLittleEndian: _open_uncompressed,
    uids.ExplicitVRBigEndian: _open_uncompressed,
    **dict.fromkeys(raster.MEDIA_TYPES.values(), _open_uncompressed),  # Which decoded it, checks and all.
    uids.RLELossless: _open_rle,
    uids.JPEGBaseline8Bit: _open_jpeg,
    uids.JPEGExtended12Bit: _open_jpeg,
    uids.JPEGLossless: _open_jpeg_lossless,
    uids.JPEGLosslessSV1: _open_jpeg_lossless,
    uids.JPEGLSLossless: _open_jpegls,
    uids.JPEGLSNearLossless: _open_jpegls,
    uids.JPEG2000Lossless: _open_jpeg2000,
    uids.JPEG2000: _open_jpeg2000,
}
if hasattr(imagecodecs, "htj2k_decode"):  # The newest imagecodecs for Python 3.10 has none; pydicom may have a plugin.
    _OPENERS |= dict.fromkeys((uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL, uids.HTJ2K), _open_jpeg2000)
