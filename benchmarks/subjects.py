"""The undamaged files that ``fuzz.py`` damages: every transfer syntax of the factory, small, in many arrangements."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import encaps, filereader, uid
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from mammoray import machines
from mammoray.encoders import jpeg2000
from mammoray.machines import Encoding, Window

PIXEL_DATA = b"\xe0\x7f\x10\x00"
_BIG_PIXEL_DATA = b"\x7f\xe0\x00\x10"


@dataclass(frozen=True, kw_only=True, slots=True)
class Element:
    """Where the value of a top-level element stands in a file, and of how many bytes its length is."""

    keyword: str
    start: int
    length: int
    length_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An undamaged file, taken apart."""

    name: str
    syntax: str
    content: bytes
    """The file; of a deflated one the data set as it is before deflating."""
    pixels_at: int
    """Where Pixel Data (7FE0,0010) begins."""
    stream: bytes
    """The codestream of the first frame, or all stored values."""
    body: int
    """Where the data of the codestream begin, behind its own header."""
    fragments: int
    frames: int
    elements: tuple[Element, ...]

    @property
    def deflated(self) -> bool:
        """Whether the data set has to be deflated."""
        return self.syntax == uid.DeflatedExplicitVRLittleEndian

    @property
    def codec(self) -> str:
        """What the summary calls the transfer syntax."""
        names = {
            uid.ExplicitVRLittleEndian: "explicit little endian", uid.ImplicitVRLittleEndian: "implicit little endian",
            uid.ExplicitVRBigEndian: "explicit big endian", uid.DeflatedExplicitVRLittleEndian: "deflated",
            uid.RLELossless: ".5 RLE", uid.JPEGBaseline8Bit: ".50 JPEG", uid.JPEGExtended12Bit: ".51 JPEG",
            uid.JPEGLossless: ".57 JPEG Lossless", uid.JPEGLosslessSV1: ".70 JPEG Lossless SV1",
            uid.JPEGLSLossless: ".80 JPEG-LS", uid.JPEGLSNearLossless: ".81 JPEG-LS",
            uid.JPEG2000Lossless: ".90 JPEG 2000", uid.JPEG2000: ".91 JPEG 2000", uid.HTJ2KLossless: ".201 HTJ2K",
            uid.HTJ2KLosslessRPCL: ".202 HTJ2K", uid.HTJ2K: ".203 HTJ2K",
        }  # fmt: skip
        return names[self.syntax]

    def wrap(self, stream: bytes) -> bytes:
        """The same file around another codestream (or other values), with all lengths as they should be."""
        head = self.content[: self.pixels_at]
        if uid.UID(self.syntax).is_encapsulated:
            side = -(-len(stream) // self.fragments // 2) * 2 or 2
            parts = [stream[k : k + side] for k in range(0, len(stream), side)] + [self.stream] * (self.frames - 1)
            value = b"".join(
                struct.pack("<HHI", 0xFFFE, 0xE000, len(p) + len(p) % 2) + p + b"\0" * (len(p) % 2)
                for p in (b"", *parts)
            )
            end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
            return head + PIXEL_DATA + b"OB\0\0" + b"\xff" * 4 + value + end
        stream += b"\0" * (len(stream) % 2)
        if self.syntax == uid.ImplicitVRLittleEndian:
            return head + PIXEL_DATA + struct.pack("<I", len(stream)) + stream
        big = self.syntax == uid.ExplicitVRBigEndian
        tag = _BIG_PIXEL_DATA if big else PIXEL_DATA
        return head + tag + b"OW\0\0" + struct.pack(">I" if big else "<I", len(stream)) + stream

    def pack(self, content: bytes) -> bytes:
        """``content`` as it stands in a file: deflated where the transfer syntax says so."""
        if not self.deflated:
            return content
        start = meta_end(content)
        return content[:start] + _deflate(content[start:])


def meta_end(content: bytes) -> int:
    """Where the file meta group ends, by its group length (0002,0000)."""
    return int(144 + struct.unpack_from("<I", content, 140)[0])


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


def all_subjects() -> list[Subject]:
    """Every subject, always the same ones in the same order."""
    return [*_codecs(), *_arrangements(), *_several_frames()]


def breast(bits: int, signed: bool, seed: int) -> npt.NDArray[Any]:
    """A half-disc of noisy tissue at the left of a black image, of 64 x 48 to 200 x 160 pixels."""
    rng = np.random.default_rng(seed)
    h, w = int(rng.integers(64, 201)), int(rng.integers(48, 161))
    y, x = np.mgrid[0:h, 0:w]
    tissue = 0.75 - 0.4 * x / w + 0.02 * rng.standard_normal((h, w))
    unit = np.where(((y - h / 2) / (0.45 * h)) ** 2 + (x / (0.8 * w)) ** 2 < 1, tissue, 0)
    pixels = np.rint(np.clip(unit, 0, 1) * (2**bits - 1)).astype(np.int32)
    return (pixels - 2 ** (bits - 1)).astype(np.int16) if signed else pixels.astype(np.uint16)


def _codecs() -> Iterator[Subject]:
    kinds = [
        (12, 16, "MONOCHROME2", False), (16, 16, "MONOCHROME1", False), (12, 16, "MONOCHROME2", True),
        (8, 8, "MONOCHROME1", False), (10, 16, "MONOCHROME1", False), (8, 16, "MONOCHROME2", True),
    ]  # fmt: skip
    for syntax in machines.CODECS:
        for bits, allocated, photometric, signed in kinds:
            encoding = Encoding(
                transfer_syntax=syntax, photometric=photometric, bits_stored=bits, bits_allocated=allocated,
                window=None if signed else Window(centers=(2.0**bits / 2,), widths=(2.0**bits,)),
                padding=0 if photometric == "MONOCHROME2" and not signed else None,
            )  # fmt: skip
            pixels = breast(bits, signed, 8 * bits + signed)
            try:
                content = machines.make_dicom(pixels, encoding, laterality="L")
            except ValueError:
                continue  # What this syntax cannot hold.
            yield take_apart(f"{bits} of {allocated} bits{', signed' * signed}", content)


def _arrangements() -> Iterator[Subject]:
    arrangements: dict[str, dict[str, Any]] = {
        **{order: {"progression": order} for order in ("RLCP", "RPCL", "PCRL", "CPRL")},
        "tiles": {"tiles": (32, 32), "levels": 3}, "layers": {"layers": (20.0, 5.0)},
        "layers by resolution": {"layers": (20.0, 5.0), "progression": "RLCP"}, "precincts": {"precincts": (32, 32)},
        "precincts by position": {"precincts": (32, 32), "progression": "PCRL"},
        "parts": {"parts": 3, "lengths": True}, "wrapped": {"wrapped": True}, "no levels": {"levels": 0},
    }  # fmt: skip
    for k, (name, options) in enumerate(arrangements.items()):
        pixels = breast(12, False, 100 + k)
        stream = jpeg2000(pixels, 12, **options)
        yield take_apart(name, machines.make_dicom(pixels, codestream=stream))
    pixels = breast(12, False, 120)
    open_end = bytearray(jpeg2000(pixels, 12))
    struct.pack_into(">I", open_end, open_end.index(b"\xff\x90\x00\x0a") + 6, 0)
    yield take_apart("no length", machines.make_dicom(pixels, codestream=bytes(open_end)))
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGExtended12Bit):
        plain = take_apart("fragments", machines.make_dicom(breast(12, False, 130), Encoding(transfer_syntax=syntax)))
        fragmented = dataclasses.replace(plain, fragments=4)
        yield dataclasses.replace(fragmented, content=fragmented.wrap(plain.stream))


def _several_frames() -> Iterator[Subject]:
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless, uid.ExplicitVRLittleEndian):
        encoding = Encoding(transfer_syntax=syntax)
        single = machines.make_dicom(breast(12, False, 140), encoding)
        dataset = pydicom.dcmread(io.BytesIO(single))
        frame = dataset.PixelData
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            frame = encaps.encapsulate([encaps.get_frame(frame, 0, number_of_frames=1)] * 2)
        else:
            frame *= 2
        dataset.NumberOfFrames, dataset.PixelData = 2, frame
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        yield dataclasses.replace(take_apart("two frames", buffer.getvalue()), frames=2)


def take_apart(name: str, content: bytes) -> Subject:
    """Find the parts of a file that the factory wrote."""
    syntax = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        start = meta_end(content)
        content = content[:start] + zlib.decompress(content[start:], -zlib.MAX_WBITS)
    elements = _elements(content, syntax)
    encapsulated = syntax.is_encapsulated
    pixels_at = content.index(PIXEL_DATA if syntax.is_little_endian else _BIG_PIXEL_DATA)
    head = 8 if syntax.is_implicit_VR else 12
    value = content[pixels_at + head :]
    stream = encaps.get_frame(value, 0, number_of_frames=1) if encapsulated else value
    return Subject(
        name=name, syntax=str(syntax), content=content, pixels_at=pixels_at, stream=stream,
        body=_body(stream, syntax), fragments=1, frames=1, elements=elements,
    )  # fmt: skip


def _elements(content: bytes, syntax: uid.UID) -> tuple[Element, ...]:
    stream = io.BytesIO(content)
    stream.seek(meta_end(content))
    dataset = filereader.read_dataset(
        stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=lambda tag, *_: tag >= 0x7FE00010
    )
    found = []
    for tag in dataset.keys():  # noqa: SIM118  iterating over the data set itself would parse the elements
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement):
            wide = syntax.is_implicit_VR or raw.VR in EXPLICIT_VR_LENGTH_32
            keyword = keyword_for_tag(tag)
            found.append(
                Element(keyword=keyword, start=raw.value_tell, length=raw.length, length_bytes=4 if wide else 2)
            )
    return tuple(found)


def _body(stream: bytes, syntax: uid.UID) -> int:
    """Index behind the header of a codestream; 0 for stored values, which have none."""
    if syntax == uid.RLELossless:
        return 64
    if not syntax.is_encapsulated:
        return 0
    for marker, extra in ((b"\xff\x93", 2), (b"\xff\xda", 10)):  # Start of data, of a scan with one component.
        if (place := stream.find(marker)) > 0:
            return place + extra
    raise ValueError("no data in the codestream")
