"""What a DICOM header says of its pixels, and the bytes of one frame: the first step of a decode.

Only the elements that matter are read, the frame is a view into the file's bytes, and everything is checked before a
decoder sees it. No error quotes a value that may be text: a header holds a patient's name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom import encaps, filereader, uid

from mammoray import storage
from mammoray.errors import DecodeError

MAX_PIXELS = 2**28
"""Largest image that is taken: 16,384 x 16,384, three times the largest detector; a damaged header can claim 2**32."""

_PIXEL_DATA = 0x7FE00010
_HEAD = 1 << 16  # Bytes that hold most headers.
_MAX_FILL = 1024  # Zeros after the pixels; a wrong number of rows or columns leaves more, or something else.
_MAX_INFLATED = 2 * MAX_PIXELS + (1 << 24)  # Bytes: the largest image and its header.
_AGAIN = "Copy the file again from its source."
_LEAVE = "Copy the file again from its source, or leave it out of the CSV."
_COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_OPTIONAL = (
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelAspectRatio", "ImageLaterality",
    "Laterality",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What is known of an image before its pixels are decoded; PS3.3 C.7.6.3.

    Attributes
    ----------
    name : str
        How errors call the file.
    transfer_syntax : str
        Its UID.
    rows, columns, bits_allocated, bits_stored : int
    signed : bool
        Pixel Representation: two's complement of ``bits_stored`` bits.
    inverted : bool
        MONOCHROME1: low values are bright.
    frames : int
        Number of Frames.
    laterality : str or None
        Image Laterality, else Laterality: L or R.
    grouped : bool
        Whether it has functional groups (C.7.6.16), in which windows may stand instead.
    padding : (int, int) or None
        Lowest and highest stored value that stand for "no image here" (C.7.5.1.1.2).
    dataset : pydicom.Dataset
        The elements before Pixel Data, for the modality and VOI transformations.
    frame : memoryview
        The bytes of the frame: one codestream, or its stored values.
    """

    name: str
    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    frames: int
    laterality: str | None
    grouped: bool
    padding: tuple[int, int] | None
    dataset: pydicom.Dataset
    frame: memoryview

    @property
    def lowest(self) -> int:
        """The smallest value that the stored bits can hold."""
        return -(1 << (self.bits_stored - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest value that the stored bits can hold."""
        return self.lowest + (1 << self.bits_stored) - 1

    def error(self, element: str, expected: str, found: str, remedy: str = _AGAIN) -> DecodeError:
        """Make the error for something in this file."""
        return DecodeError(f"{self.name}: {element}", expected, found, remedy)


@contextlib.contextmanager
def pydicom_silent() -> Iterator[None]:
    """Keep pydicom from warning and logging: it quotes header values that it finds odd, a patient's name among them."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def read(content: bytes | memoryview, name: str, frame: str = "only") -> Header:
    """Read the header and find the frame.

    Parameters
    ----------
    content : bytes-like
        A whole DICOM file.
    name : str
        How errors call it.
    frame : {"only", "first"}
        Whether several frames are an error.

    Raises
    ------
    DecodeError
        Not a DICOM, no image, colour, several frames, a size that cannot be, or a damaged header.
    """
    dataset, syntax, rest = _parse(content, name)
    try:
        for keyword in _OPTIONAL:
            # Anonymisers leave elements without a value behind, which say no more than absent ones.
            if keyword in dataset and dataset[keyword].is_empty:
                del dataset[keyword]
        fields = {**check(dataset, name, frame), "padding": _padding(dataset), "laterality": laterality(dataset)}
    except (DecodeError, MemoryError):
        raise
    except Exception as error:
        # pydicom parses an element when it is asked for, and damage shows then. Only the kind of the error is told:
        # the text of pydicom's errors quotes header values.
        raise DecodeError(
            name, "a header that can be read", f"{type(error).__name__} while reading it", _AGAIN
        ) from None
    view = _find_frame(rest, syntax, fields, name)
    return Header(name=name, transfer_syntax=syntax, dataset=dataset, frame=view, **fields)


def transfer_syntax(path: str) -> str:
    """UID of a file's transfer syntax, from its first bytes; for a file that :func:`read` refuses.

    Raises
    ------
    Exception
        Whatever a file that is no DICOM leads to.
    """
    return file_meta(memoryview(storage.read(path, _HEAD)))[0]


def _parse(content: bytes | memoryview, name: str) -> tuple[pydicom.Dataset, str, memoryview]:
    """The elements before Pixel Data, the transfer syntax, and the bytes from Pixel Data on."""
    view = memoryview(content)
    if bytes(view[128:132]) != b"DICM":
        raise DecodeError(name, "a DICOM file", "no DICM after 128 bytes", "Check that the file is a DICOM, and whole.")
    try:
        syntax, start = file_meta(view)
        known = uid.UID(syntax)
        if known.is_private or not known.is_transfer_syntax:
            raise _TellableError("a transfer syntax that DICOM does not know")
        body = view[start:]
        if known.is_deflated:
            body = memoryview(_inflate(body))
        dataset, end = _elements_before_pixels(body, known)
        return dataset, syntax, body[end:]
    except MemoryError:
        raise
    except Exception as error:
        # pydicom parses in many ways; only the kind of its error is told, because the text quotes header values.
        found = str(error) if isinstance(error, _TellableError) else f"{type(error).__name__} while parsing"
        raise DecodeError(name, "a DICOM file", found, _AGAIN) from None


class _TellableError(Exception):
    """An own finding, whose text quotes nothing."""


def file_meta(view: memoryview) -> tuple[str, int]:
    """Transfer Syntax UID (0002,0010), and where the file meta group ends; explicit little endian (PS3.10 7.1)."""
    position, syntax = 132, None
    while True:
        group, element, vr, length = struct.unpack_from("<HH2sH", view, position)
        if group != 2:
            break
        position += 8
        if vr in (b"OB", b"OW", b"UN", b"UT", b"SQ"):
            (length,) = struct.unpack_from("<I", view, position)
            position += 4
        if element == 0x10:
            syntax = bytes(view[position : position + length]).rstrip(b"\x00 ").decode("ascii")
        position += length
    if not syntax:
        raise _TellableError("no Transfer Syntax UID (0002,0010)")
    return syntax, position


def _inflate(body: memoryview) -> bytes:
    """PS3.5 A.5, with a limit: a few kilobytes can claim gigabytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(body, _MAX_INFLATED)
    if not inflater.eof:
        raise _TellableError("deflated data that do not end: truncated or damaged")
    return inflated


def _elements_before_pixels(body: memoryview, syntax: uid.UID) -> tuple[pydicom.Dataset, int]:
    """All elements before Pixel Data, each parsed only when it is asked for, and where they end."""
    for size in (_HEAD, len(body)):
        found = False

        def stop(tag: int, vr: str | None, length: int) -> bool:
            nonlocal found
            found = tag >= _PIXEL_DATA
            return found

        stream = io.BytesIO(body[:size])
        try:
            dataset = filereader.read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=stop)
        except Exception:
            if size >= len(body):
                raise
            continue  # The cut went through a sequence.
        if found or size >= len(body):
            break
    return dataset, stream.tell()


def check(dataset: Any, name: str, frame: str) -> dict[str, Any]:
    """Fields of :class:`Header` that describe the pixels, each within what can be decoded.

    Parameters
    ----------
    dataset : pydicom.Dataset or mapping
        Elements by keyword.

    Raises
    ------
    DecodeError
        For the first element that is not.
    """

    def refuse(element: str, expected: str, found: str, remedy: str) -> DecodeError:
        return DecodeError(f"{name}: {element}", expected, found, remedy)

    rows, columns = _integer(dataset, "Rows", name), _integer(dataset, "Columns", name)
    if not 0 < rows * columns <= MAX_PIXELS:
        raise refuse("Rows x Columns", f"1 to {MAX_PIXELS} pixels", f"{rows} x {columns}", _LEAVE)
    if (samples := _integer(dataset, "SamplesPerPixel", name, 1)) != 1:
        raise refuse("Samples per Pixel (0028,0002)", "1 (grey)", str(samples), "Leave colour images out of the CSV.")
    frames = _integer(dataset, "NumberOfFrames", name, 1)
    if frames < 1 or (frames > 1 and frame == "only"):
        remedy = "Use --frame first, or extract the frame that is wanted."
        raise refuse("Number of Frames (0028,0008)", "1", str(frames), remedy)
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = photometric if photometric in _COLOUR else "another"
        where = "Photometric Interpretation (0028,0004)"
        raise refuse(where, "MONOCHROME1 or MONOCHROME2", found, "Leave the file out of the CSV.")
    aspect = [int(side) for side in dataset.get("PixelAspectRatio", (1, 1))]
    if aspect[0] != aspect[1]:
        found = f"{aspect[0]}:{aspect[1]}"
        raise refuse("Pixel Aspect Ratio (0028,0034)", "square pixels", found, "Resample the image to square pixels.")
    allocated, bits = _integer(dataset, "BitsAllocated", name), _integer(dataset, "BitsStored", name)
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        where, found = "Bits Allocated / Stored", f"{allocated} / {bits}"
        raise refuse(where, "8 or 16, and no more stored", found, _LEAVE)
    if (high := _integer(dataset, "HighBit", name, bits - 1)) != bits - 1:
        raise refuse("High Bit (0028,0102)", f"{bits - 1}, one less than Bits Stored", str(high), _LEAVE)
    if (representation := _integer(dataset, "PixelRepresentation", name, 0)) not in (0, 1):
        where, found = "Pixel Representation (0028,0103)", str(representation)
        raise refuse(where, "0 (unsigned) or 1 (signed)", found, _LEAVE)
    return {
        "rows": rows,
        "columns": columns,
        "bits_allocated": allocated,
        "bits_stored": bits,
        "signed": representation == 1,
        "inverted": photometric == "MONOCHROME1",
        "frames": frames,
        "grouped": "SharedFunctionalGroupsSequence" in dataset or "PerFrameFunctionalGroupsSequence" in dataset,
    }


def _integer(dataset: pydicom.Dataset, keyword: str, name: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        found = "nothing" if value is None else "no integer"
        raise DecodeError(f"{name}: {keyword}", "an integer", found, _LEAVE) from None


def laterality(dataset: Any) -> str | None:
    """Image Laterality (0020,0062), else Laterality (0020,0060), of elements by keyword: L, R or None."""
    sides = [str(dataset.get(keyword)) for keyword in ("ImageLaterality", "Laterality")]
    return next((side for side in sides if side in ("L", "R")), None)


def _padding(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    other = limit if isinstance(limit, int) else value
    return min(value, other), max(value, other)


def _find_frame(rest: memoryview, syntax: str, fields: dict[str, Any], name: str) -> memoryview:
    """The first frame's bytes; a view, but where a codestream lies in several fragments."""
    known = uid.UID(syntax)
    where = f"{name}: Pixel Data (7FE0,0010)"
    if len(rest) < 8 or struct.unpack_from("<HH" if known.is_little_endian else ">HH", rest) != (0x7FE0, 0x0010):
        raise DecodeError(where, "an image", "no such element", "Leave the file out of the CSV.")
    head = 8 if known.is_implicit_VR else 12
    order = "<" if known.is_little_endian else ">"
    (length,) = struct.unpack_from(f"{order}I", rest, head - 4)
    value = rest[head:]
    if known.is_encapsulated != (length == 0xFFFFFFFF):
        raise DecodeError(where, f"pixels as in {known.name}", "the other form of Pixel Data", _AGAIN)
    if known.is_encapsulated:
        try:
            return _fragments(value) if fields["frames"] == 1 else _first_of_many(value, fields["frames"])
        except Exception:
            raise DecodeError(
                where, "a sequence of fragments", "no end of it, or more frames than the header says", _AGAIN
            ) from None
    bytes_ = fields["rows"] * fields["columns"] * fields["bits_allocated"] // 8
    expected = bytes_ * fields["frames"]
    if fields["bits_allocated"] == 8 and not known.is_little_endian and bytes(rest[4:6]) == b"OW":
        value = memoryview(_swapped(value[: min(length, len(value))]))
    # PS3.5 8.1.1: a value has an even length; some writers fill it with more zeros.
    excess = bytes(value[expected : min(length, expected + _MAX_FILL + 1)])
    if length < expected or len(value) < length or len(excess) > _MAX_FILL or any(excess[1:]):
        found = f"{min(length, len(value))} bytes"
        raise DecodeError(where, f"{expected} bytes", found, "The file is truncated or damaged; copy it again.")
    return value[:bytes_]


def _swapped(value: memoryview) -> bytearray:
    """Pixels of 8 bits in words of two, big endian; PS3.5 8.1.2 and A.3."""
    swapped = bytearray(value[: len(value) // 2 * 2])
    swapped[0::2], swapped[1::2] = swapped[1::2], swapped[0::2]
    return swapped


def _fragments(value: memoryview) -> memoryview:
    """All fragments of the only frame, joined where there are several; PS3.5 A.4."""
    parts: list[memoryview] = []
    position = 0
    while True:
        group, element, length = struct.unpack_from("<HHI", value, position)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or position + length > len(value):
            raise ValueError("no item")
        parts.append(value[position : position + length])
        position += length
    if len(parts[0]) > 4:  # The first item is the Basic Offset Table: an offset a frame.
        raise ValueError("several frames")
    frames = parts[1:]
    return frames[0] if len(frames) == 1 else memoryview(b"".join(frames))


def _first_of_many(value: memoryview, frames: int) -> memoryview:
    return memoryview(encaps.get_frame(bytes(value), 0, number_of_frames=frames))
