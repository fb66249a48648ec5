"""One file's head to what an audit wants to know of it: a flat record, without a patient's identity.

Identities are compared and never kept: of PatientID, Accession Number and SOP Instance UID there is only a keyed
digest, with a key that is drawn anew for each audit, so that equal ones can be told and none can be looked up.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mammoray import elements, header, raster, storage
from mammoray.errors import DecodeError, StorageError

HEAD = 1 << 16
"""Bytes of a file that are read first; they hold most headers."""
_MAX_HEAD = 1 << 26  # Overlays and private elements of several megabytes occur; a damaged length can claim gigabytes.
Job = tuple[str, str, int]
_AGAIN = "Copy the file again from its source."
_OTHER = "another value"

_VIEWS = frozenset({"CC", "MLO", "ML", "LM", "LMO", "AT", "XCC", "XCCL", "XCCM", "FB", "SIO", "ISO", "LLO", "CV"})
# PS3.16 CID 4014, as SNOMED CT and, in older files, as SNOMED RT codes.
_VIEW_CODES = {
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO", "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
}  # fmt: skip
_PHOTOMETRIC = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT",
     "YBR_RCT"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one file from its head; texts that the header does not say are empty, numbers 0."""

    kind: str
    """As :func:`mammoray.raster.kind` calls it, ``unknown``, or nothing where the file could not be opened."""
    error: tuple[str, ...] = ()
    """Why it cannot be decoded, as far as the head tells: where, expected, found, remedy."""
    transfer_syntax: str = ""
    """UID."""
    modality: str = ""
    intent: str = ""
    """Presentation Intent Type (0008,0068)."""
    manufacturer: str = ""
    model: str = ""
    laterality: str = ""
    """L or R."""
    view: str = ""
    """Such as CC or MLO, from View Position or else the View Code Sequence; a word that is no view is not told."""
    implant: str = ""
    """Breast Implant Present (0028,1300): YES or NO."""
    burned_in: str = ""
    quality_control: str = ""
    photometric: str = ""
    rows: int = 0
    columns: int = 0
    bits_allocated: int = 0
    bits_stored: int = 0
    samples: int = 0
    frames: int = 0
    windows: int = 0
    """How many windows the header offers."""
    window_center: float = math.nan
    """Of the first window, in stored values where a rescale leads from them."""
    window_width: float = math.nan
    """The smallest of all windows, in output units of the rescale."""
    voi_function: str = ""
    voi_lut: bool = False
    rescale: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept."""
    signed: bool = False
    sop: str = ""
    """Keyed digests of SOP Instance UID, PatientID and Accession Number."""
    patient: str = ""
    accession: str = ""


def token(identifier: str, key: bytes) -> str:
    """A digest by which equal identifiers are told, and nothing else; empty for a blank.

    Leading zeros do not count: tables lose them.

    Examples
    --------
    >>> token("000123", b"key") == token(" 123", b"key"), token("", b"key")
    (True, '')
    """
    text = identifier.strip()
    return hashlib.blake2b((text.lstrip("0") or text).encode(), key=key, digest_size=8).hexdigest() if text else ""


def scan(path: str, name: str, size: int, key: bytes) -> Facts:
    """What the head of a file says.

    Parameters
    ----------
    path : str
        Path or URI.
    name : str
        How errors call it.
    size : int
        Bytes of the file.
    key : bytes
        Of :func:`token`, 16 to 64 of them.

    Returns
    -------
    Facts
        Of any file, however damaged.

    Raises
    ------
    StorageError
        The storage of the file answers nothing at all.
    """
    try:
        content = storage.read(path, HEAD)
    except StorageError:  # No fault of this file: each one more would wait as long.
        raise
    except Exception as error:
        remedy = "Check the storage, and copy it again."
        return Facts(kind="", error=(name, "a file that can be read", storage.reason(error), remedy))
    kind = raster.kind(content[: raster.FIRST]) or "unknown"
    try:
        raster.told(content[: raster.FIRST], name)
        if kind != "DICOM":
            return _picture(content, kind, name)
    except DecodeError as error:
        return Facts(kind=kind, error=error.args)
    try:
        found = _walk(path, content, size, name)
    except StorageError:
        raise
    except Exception as error:
        return Facts(kind=kind, error=_told(error, name))
    refusal: tuple[str, ...] = ()
    try:
        _check(found, size, name)
    except Exception as error:
        refusal = _told(error, name)
    try:
        return _facts(found, key, refusal)
    except Exception as error:  # An element of another type than the standard's.
        return Facts(kind=kind, error=refusal or _told(error, name))


def scan_all(jobs: Sequence[Job], key: bytes) -> list[dict[str, Any]]:
    """Facts of several files, as dictionaries: path or URI, name and size of each."""
    return [vars(scan(path, name, size, key)) for path, name, size in jobs]


def _told(error: Exception, name: str) -> tuple[str, ...]:
    """Four fields of an error; of one that is not mammoray's only the kind, because its text may quote the header."""
    if isinstance(error, DecodeError):
        return error.args
    return (name, "a header that can be read", f"{type(error).__name__} while reading it", _AGAIN)


def _picture(head: bytes, kind: str, name: str) -> Facts:
    """Facts of a PNG, JPEG or TIFF, whose size only a PNG says at its start; of anything else the reason why not."""
    if kind not in raster.MEDIA_TYPES:
        header.read(head, name)  # Which says what is missing.
    rows, columns = struct.unpack(">II", head[16:24])[::-1] if kind == "PNG" and len(head) > 24 else (0, 0)
    return Facts(kind=kind, transfer_syntax=raster.MEDIA_TYPES[kind], rows=rows, columns=columns)


def _walk(path: str, content: bytes, size: int, name: str) -> elements.Found:
    """Walk the header, and read on where it is longer than expected."""
    while True:
        try:
            found = elements.walk(content)
            if found.form.deflated and len(content) < size and found.pixels is None:
                raise elements.CutError(size)
            return found
        except elements.CutError as cut:
            if cut.needed > size and len(content) >= size:
                expected, problem = "a header and Pixel Data", f"the end of the file after {size} bytes"
                raise DecodeError(name, expected, problem, f"It is truncated or damaged. {_AGAIN}") from None
            if cut.needed > _MAX_HEAD:
                problem = f"an element that ends at byte {cut.needed}"
                raise DecodeError(name, f"a header of at most {_MAX_HEAD} bytes", problem, _AGAIN) from None
            more = storage.read(path, min(size, max(cut.needed + HEAD, 4 * len(content))))
            if len(more) <= len(content):  # It is shorter than it was when it was listed.
                size = len(content)
            content = more


def _check(found: elements.Found, size: int, name: str) -> None:
    """Refuse what a decode would refuse, as far as the head tells."""
    if not found.form.known:
        raise DecodeError(name, "a DICOM file", "a transfer syntax that DICOM does not know", _AGAIN)
    where = f"{name}: Pixel Data (7FE0,0010)"
    if found.pixels is None:
        raise DecodeError(where, "an image", "no such element", "Leave the file out of the CSV.")
    fields = header.check(found.values, name, "only")
    if found.form.encapsulated != (found.length == 0xFFFFFFFF):
        raise DecodeError(where, "pixels as the transfer syntax says", "the other form of Pixel Data", _AGAIN)
    if found.form.encapsulated:
        return
    expected = fields["rows"] * fields["columns"] * fields["bits_allocated"] // 8 * fields["frames"]
    present = found.length if found.form.deflated else min(found.length, size - found.pixels)
    if present < expected or present < found.length:
        remedy = "The file is truncated or damaged; copy it again."
        raise DecodeError(where, f"{max(expected, found.length)} bytes", f"{present} bytes", remedy)


def _facts(found: elements.Found, key: bytes, error: tuple[str, ...]) -> Facts:
    values = found.values
    centers, widths = _numbers(values.get("WindowCenter")), _numbers(values.get("WindowWidth"))
    slope, intercept = _numbers(values.get("RescaleSlope", "1")), _numbers(values.get("RescaleIntercept", "0"))
    return Facts(
        kind="DICOM",
        error=error,
        transfer_syntax=found.transfer_syntax,
        modality=_word(values, "Modality"),
        intent=_word(values, "PresentationIntentType"),
        manufacturer=_text(values, "Manufacturer"),
        model=_text(values, "ManufacturerModelName"),
        laterality=header.laterality(values) or "",
        view=_view(values),
        implant=_among(values, "BreastImplantPresent", frozenset({"YES", "NO"})),
        burned_in=_among(values, "BurnedInAnnotation", frozenset({"YES", "NO"})),
        quality_control=_among(values, "QualityControlImage", frozenset({"YES", "NO", "BOTH"})),
        photometric=_among(values, "PhotometricInterpretation", _PHOTOMETRIC),
        rows=_integer(values, "Rows"),
        columns=_integer(values, "Columns"),
        bits_allocated=_integer(values, "BitsAllocated"),
        bits_stored=_integer(values, "BitsStored"),
        samples=_integer(values, "SamplesPerPixel"),
        frames=_integer(values, "NumberOfFrames", 1),
        windows=min(len(centers), len(widths)),
        window_center=centers[0] if centers else math.nan,
        window_width=min(widths, default=math.nan),
        voi_function=_word(values, "VOILUTFunction"),
        voi_lut="VOILUTSequence" in values,
        rescale=(slope[0] if slope else 1.0, intercept[0] if intercept else 0.0),
        signed=_integer(values, "PixelRepresentation") == 1,
        sop=token(_text(values, "SOPInstanceUID"), key),
        patient=token(_text(values, "PatientID"), key),
        accession=token(_text(values, "AccessionNumber"), key),
    )


def _text(values: dict[str, Any], keyword: str) -> str:
    value = values.get(keyword, "")
    joined = value if isinstance(value, str) else "\\".join(value) if isinstance(value, list) else ""
    return joined[:64] if joined.isprintable() else "".join(filter(str.isprintable, joined))[:64]


def _word(values: dict[str, Any], keyword: str) -> str:
    """A defined term: capitals, digits, underscores and spaces (PS3.5 6.2, CS); anything else is not told."""
    text = _text(values, keyword)
    return text if re.fullmatch("[A-Z0-9_ ]{0,16}", text) else _OTHER


def _among(values: dict[str, Any], keyword: str, known: frozenset[str]) -> str:
    text = _text(values, keyword)
    return text if not text or text in known else _OTHER


def _view(values: dict[str, Any]) -> str:
    text = _text(values, "ViewPosition").upper()
    if text:
        return text if text in _VIEWS else ""
    return _VIEW_CODES.get(_text(values, "ViewCodeSequence"), "")


def _integer(values: dict[str, Any], keyword: str, default: int = 0) -> int:
    """A number as far as it is one; what is wrong with it stands in the error."""
    try:
        return int(values.get(keyword, default))
    except (TypeError, ValueError):
        return 0


def _numbers(value: Any) -> list[float]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    try:
        return [float(text) for text in texts if text != ""]
    except (TypeError, ValueError):
        return []
