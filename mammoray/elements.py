"""The elements of a DICOM header that an audit asks for, by one walk over the head of the file.

pydicom takes a millisecond a header, and fifty thousand of them a minute; here an element that nobody asks for costs
its tag and its length. A walk needs no more of the file than what stands before Pixel Data, and says how much that is.
What can be asked for is :data:`WANTED`; that both readers agree on it is a test.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom import config, uid

from mammoray import header

PIXEL_DATA = 0x7FE00010
WANTED: dict[int, tuple[str, bytes]] = {
    0x00080018: ("SOPInstanceUID", b"UI"),
    0x00080050: ("AccessionNumber", b"SH"),
    0x00080060: ("Modality", b"CS"),
    0x00080068: ("PresentationIntentType", b"CS"),
    0x00080070: ("Manufacturer", b"LO"),
    0x00081090: ("ManufacturerModelName", b"LO"),
    0x00100020: ("PatientID", b"LO"),
    0x00185101: ("ViewPosition", b"CS"),
    0x00200060: ("Laterality", b"CS"),
    0x00200062: ("ImageLaterality", b"CS"),
    0x00280002: ("SamplesPerPixel", b"US"),
    0x00280004: ("PhotometricInterpretation", b"CS"),
    0x00280008: ("NumberOfFrames", b"IS"),
    0x00280010: ("Rows", b"US"),
    0x00280011: ("Columns", b"US"),
    0x00280034: ("PixelAspectRatio", b"IS"),
    0x00280100: ("BitsAllocated", b"US"),
    0x00280101: ("BitsStored", b"US"),
    0x00280102: ("HighBit", b"US"),
    0x00280103: ("PixelRepresentation", b"US"),
    0x00280300: ("QualityControlImage", b"CS"),
    0x00280301: ("BurnedInAnnotation", b"CS"),
    0x00281050: ("WindowCenter", b"DS"),
    0x00281051: ("WindowWidth", b"DS"),
    0x00281052: ("RescaleIntercept", b"DS"),
    0x00281053: ("RescaleSlope", b"DS"),
    0x00281056: ("VOILUTFunction", b"CS"),
    0x00281300: ("BreastImplantPresent", b"CS"),
    0x00283000: ("ModalityLUTSequence", b"SQ"),
    0x00283010: ("VOILUTSequence", b"SQ"),
    0x00540220: ("ViewCodeSequence", b"SQ"),
    0x52009229: ("SharedFunctionalGroupsSequence", b"SQ"),
    0x52009230: ("PerFrameFunctionalGroupsSequence", b"SQ"),
}
"""Tag to keyword, and the VR that it has where a header does not say (PS3.6)."""

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_CODE_VALUE, _VIEW_MODIFIERS = 0x00080100, 0x00540222
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_NUMBERS = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i"}
_MAX_INFLATED = 1 << 24  # Bytes of header: a few kilobytes can claim gigabytes.

_Element = tuple[int, bytes, int, int]
_Next = Callable[[bytes, int], _Element]


class CutError(Exception):
    """The walk has to go on at byte ``needed`` of the file, which is beyond what was given."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Form:
    """What a transfer syntax says of how elements are written; PS3.5 A."""

    known: bool
    order: str
    implicit: bool
    deflated: bool
    encapsulated: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What stands before Pixel Data.

    Attributes
    ----------
    transfer_syntax : str
        Its UID.
    form : Form
    values : dict of str to Any
        Elements of :data:`WANTED` that have a value, by keyword: an integer, a text, a list of texts where there are
        several, True for a sequence; ``ViewCodeSequence`` is the code value of its first item, if nothing modifies it.
    pixels : int or None
        Where the value of Pixel Data begins, in bytes of the file; None where there is no such element.
    length : int
        Its length in bytes; 2**32 - 1 is "undefined", as of all codestreams.
    """

    transfer_syntax: str
    form: Form
    values: dict[str, Any]
    pixels: int | None
    length: int


def walk(content: bytes) -> Found:
    """Walk from the file meta group to Pixel Data.

    Parameters
    ----------
    content : bytes
        The head of a DICOM file, or all of it: a deflated one has to be whole.

    Raises
    ------
    CutError
        Pixel Data come later than ``content`` ends.
    Exception
        Of any kind, for a damaged header.
    """
    syntax, start = header.file_meta(memoryview(content))
    form = form_of(syntax)
    if form.deflated:
        content, start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], _MAX_INFLATED), 0
    following = _implicit(form.order) if form.implicit else _explicit(form.order)
    values: dict[str, Any] = {}
    try:
        pixels, length = _collect(content, start, following, form.order, values)
    except struct.error:
        raise CutError(len(content) + 1) from None
    return Found(syntax, form, values, pixels, length)


@functools.lru_cache(maxsize=64)
def form_of(syntax: str) -> Form:
    """The form of a transfer syntax; of an unknown one only that it is unknown counts."""
    known = uid.UID(syntax, validation_mode=config.IGNORE)  # Else it warns, and quotes what it reads.
    if known.is_private or not known.is_transfer_syntax:
        return Form(False, "<", False, False, False)
    order = "<" if known.is_little_endian else ">"
    return Form(True, order, known.is_implicit_VR, known.is_deflated, known.is_encapsulated)


def _explicit(order: str) -> _Next:
    short, long = struct.Struct(f"{order}HH2sH").unpack_from, struct.Struct(f"{order}I").unpack_from

    def following(content: bytes, position: int) -> _Element:
        group, element, vr, length = short(content, position)
        if vr in _LONG:
            return group << 16 | element, vr, long(content, position + 8)[0], position + 12
        if group == 0xFFFE:  # Items have no VR, PS3.5 7.5.
            length = long(content, position + 4)[0]
        return group << 16 | element, vr, length, position + 8

    return following


def _implicit(order: str) -> _Next:
    unpack = struct.Struct(f"{order}HHI").unpack_from

    def following(content: bytes, position: int) -> _Element:
        group, element, length = unpack(content, position)
        return group << 16 | element, b"", length, position + 8

    return following


def _collect(
    content: bytes, position: int, following: _Next, order: str, values: dict[str, Any]
) -> tuple[int | None, int]:
    """Fill in the values; returns where those of Pixel Data begin, and their length."""
    end = len(content)
    while True:
        tag, vr, length, position = following(content, position)
        if tag >= PIXEL_DATA:
            return (position, length) if tag == PIXEL_DATA else (None, 0)
        after = position + length if length != _UNDEFINED else _after_sequence(content, position, vr, following, order)
        if tag in WANTED and length:
            if after > end:
                raise CutError(after)
            keyword, usual = WANTED[tag]
            value = _value(content[position:after], vr or usual, keyword, following, order)
            if value != "":
                values[keyword] = value
        position = after
        if position > end:
            raise CutError(position)


def _after_sequence(content: bytes, position: int, vr: bytes, following: _Next, order: str) -> int:
    """Where a value of undefined length ends: a sequence; one of VR UN is written in implicit VR, PS3.5 6.2.2."""
    inner = _implicit("<") if vr == b"UN" else following
    item = _implicit(order)
    while True:
        tag, _, length, position = item(content, position)
        if tag == _SEQUENCE_END:
            return position
        if tag != _ITEM:
            raise ValueError("no item")
        position = position + length if length != _UNDEFINED else _after_item(content, position, inner, order)


def _after_item(content: bytes, position: int, following: _Next, order: str) -> int:
    while True:
        tag, vr, length, position = following(content, position)
        if tag == _ITEM_END:
            return position
        position = (
            position + length if length != _UNDEFINED else _after_sequence(content, position, vr, following, order)
        )


def _value(raw: bytes, vr: bytes, keyword: str, following: _Next, order: str) -> Any:
    if keyword == "ViewCodeSequence":
        return _first_code(raw, following)
    if vr in (b"SQ", b"UN"):
        return True
    if vr in _NUMBERS:
        return struct.unpack_from(order + _NUMBERS[vr], raw)[0]
    parts = [part.strip(" \0") for part in raw.decode("utf-8", "replace").split("\\")]
    return parts[0] if len(parts) == 1 else parts


def _first_code(raw: bytes, following: _Next) -> str:
    """Code Value of the first item of a code sequence, or nothing where a modifier changes its meaning."""
    code, position = "", 8
    while position < len(raw):
        tag, _, length, position = following(raw, position)
        if tag in (_ITEM_END, _ITEM):
            break
        if tag == _VIEW_MODIFIERS and length:
            return ""
        if length == _UNDEFINED:
            break
        if tag == _CODE_VALUE:
            code = raw[position : position + length].decode("ascii", "replace").strip(" \0")
        position += length
    return code
