import io
import struct
import zlib

import numpy as np
import pydicom
import pytest
from pydicom import encaps, uid

from mammoray import header, machines
from mammoray.errors import DecodeError
from mammoray.machines import Encoding

PIXELS = (np.arange(60 * 44) % 4096).astype(np.uint16).reshape(60, 44)


def with_frames(frames: int, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    content = machines.make_dicom(PIXELS, Encoding(transfer_syntax=syntax), attributes={"NumberOfFrames": frames})
    dataset = pydicom.dcmread(io.BytesIO(content))
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encaps.encapsulate([frame] * frames)
    else:
        dataset.PixelData = dataset.PixelData * frames
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", machines.CODECS)
def test_the_frame_is_that_of_pydicom(syntax: str) -> None:
    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    content = machines.make_dicom(
        (PIXELS >> (12 - bits)).astype(np.uint8 if bits == 8 else np.uint16),
        Encoding(transfer_syntax=syntax, bits_stored=bits, bits_allocated=8 if bits == 8 else 16, padding=5),
    )
    read = header.read(content, "a.dcm")
    dataset = pydicom.dcmread(io.BytesIO(content))
    expected = dataset.PixelData
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        expected = encaps.get_frame(expected, 0, number_of_frames=1)
    assert bytes(read.frame) == expected[: len(read.frame)]
    assert len(expected) - len(read.frame) in (0, 1)
    assert (read.rows, read.columns, read.bits_stored, read.transfer_syntax) == (60, 44, bits, syntax)
    assert read.padding == (5, 5)
    assert not read.signed and not read.inverted


def test_signed_values_have_a_signed_range() -> None:
    pixels = PIXELS.astype(np.int16) - np.int16(2048)
    read = header.read(machines.make_dicom(pixels, Encoding(photometric="MONOCHROME1")), "a.dcm")
    assert (read.lowest, read.highest, read.signed, read.inverted) == (-2048, 2047, True, True)


def test_fragments_of_one_frame_are_joined() -> None:
    dataset = pydicom.dcmread(io.BytesIO(machines.make_dicom(PIXELS)))
    frame = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encaps.encapsulate([frame], fragments_per_frame=4)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert bytes(header.read(buffer.getvalue(), "a").frame)[: len(frame)] == frame


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.RLELossless])
def test_several_frames_are_an_error_unless_the_first_is_asked_for(syntax: str) -> None:
    content = with_frames(3, syntax)
    with pytest.raises(DecodeError, match=r"found 3\. Use --frame first"):
        header.read(content, "a.dcm")
    single = header.read(machines.make_dicom(PIXELS, Encoding(transfer_syntax=syntax)), "a.dcm")
    assert bytes(header.read(content, "a.dcm", "first").frame) == bytes(single.frame)


def test_a_long_header_is_read_to_its_end() -> None:
    content = machines.make_dicom(PIXELS, attributes={"ImageComments": "x" * 9000, "DeviceDescription": "y" * 200_000})
    assert header.read(content, "a.dcm").rows == 60


def test_a_deflate_bomb_is_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    content = machines.make_dicom(PIXELS, Encoding(transfer_syntax=uid.DeflatedExplicitVRLittleEndian))
    assert header.read(content, "a.dcm").rows == 60
    start = header.file_meta(memoryview(content))[1]
    bomb = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = bomb.compress(bytes(50_000_000)) + bomb.flush()
    monkeypatch.setattr(header, "_MAX_INFLATED", 10_000_000)
    with pytest.raises(DecodeError, match="do not end"):
        header.read(content[:start] + body, "a.dcm")
    with pytest.raises(DecodeError, match="truncated"):
        header.read(content[:-200], "a.dcm")


def test_more_zeros_than_an_even_length_needs_are_filling_and_anything_else_is_damage() -> None:
    raw = Encoding(transfer_syntax=uid.ExplicitVRLittleEndian)
    pixels = PIXELS.tobytes()
    for extra, fine in ((bytes(100), True), (bytes(99) + b"\x01", False), (bytes(60 * 44 * 2), False)):
        content = machines.make_dicom(PIXELS, raw, attributes={"PixelData": pixels + extra})
        if fine:
            assert bytes(header.read(content, "a").frame) == pixels
        else:
            with pytest.raises(DecodeError, match=f"expected {len(pixels)} bytes"):
                header.read(content, "a")


def test_an_undefined_length_without_compression_is_an_error() -> None:
    content = bytearray(machines.make_dicom(PIXELS, Encoding(transfer_syntax=uid.ExplicitVRLittleEndian)))
    at = content.index(b"\xe0\x7f\x10\x00OW") + 8
    struct.pack_into("<I", content, at, 0xFFFFFFFF)
    with pytest.raises(DecodeError, match="the other form"):
        header.read(bytes(content), "a")


def test_a_long_sequence_of_undefined_length_is_read_past() -> None:
    items = [pydicom.Dataset() for _ in range(900)]
    for item in items:
        item.ImageComments = "z" * 100
        item.is_undefined_length_sequence_item = True
    dataset = pydicom.dcmread(io.BytesIO(machines.make_dicom(PIXELS)))
    dataset.add_new(0x00081140, "SQ", items)
    dataset[0x00081140].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert header.read(buffer.getvalue(), "a").rows == 60


def test_more_frames_in_the_data_than_in_the_header_are_an_error() -> None:
    dataset = pydicom.dcmread(io.BytesIO(with_frames(2, uid.JPEG2000Lossless)))
    dataset.NumberOfFrames = 1
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(DecodeError, match="more frames than the header says"):
        header.read(buffer.getvalue(), "a")


def test_stored_bits_that_do_not_end_at_the_lowest_are_refused() -> None:
    with pytest.raises(DecodeError, match=r"High Bit.*expected 11.*found 15"):
        header.read(machines.make_dicom(PIXELS, attributes={"HighBit": 15}), "a")


@pytest.mark.parametrize("syntax", ["1.2.3", "1.2.840.10008.5.1.4.1.1.1.2", ""])
def test_an_unknown_transfer_syntax_is_an_error(syntax: str) -> None:
    content = machines.make_dicom(PIXELS)
    wanted = str(uid.JPEG2000Lossless).encode()
    old = bytes([len(wanted), 0]) + wanted
    with pytest.raises(DecodeError, match="ransfer "):
        header.read(content.replace(old, bytes([len(wanted), 0]) + syntax.encode().ljust(len(wanted), b"\x00")), "a")
