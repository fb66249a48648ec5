from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom import pixels, uid

from mammoray import header, machines, stored
from mammoray.encoders import jpeg2000
from mammoray.errors import DecodeError
from mammoray.machines import Encoding
from mammoray.wavelet import low_pass
from tests.reference_decoder import decoded

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
GREY = {  # The largest error against pydicom.
    "693_J2KI": 0, "CT_small": 0, "J2K_pixelrep_mismatch": 0, "JPEG-lossy": 1, "JPEG2000": 0,
    "JPEGLSNearLossless_08": 0, "JPEGLSNearLossless_16": 0, "JPGExtended": 1, "MR_small": 0, "MR_small_RLE": 0,
    "MR_small_bigendian": 0, "MR_small_expb": 0, "MR_small_implicit": 0, "MR_small_jp2klossless": 0,
    "MR_small_jpeg_ls_lossless": 0, "MR_small_padded": 0, "examples_overlay": 0, "image_dfl": 0,
}  # fmt: skip
REFUSED = {
    "no_meta": "no DICM after 128 bytes",
    "meta_missing_tsyntax": "no Transfer Syntax UID",
    "MR_truncated": "expected 8192 bytes, found 8130 bytes",
    "JPEG2000-embedded-sequence-delimiter": "the header of the codestream is cut off or damaged",
    "examples_rgb_color": "expected 1 (grey), found 3",
    "examples_palette": "found PALETTE COLOR",
    "rtdose": "found 32 / 32",
    "liver_1frame": "found 1 / 1",
    "rtplan": "Rows: expected an integer, found nothing",
    "badVR": "NumberOfFrames: expected an integer",
}
HT = sorted({uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL} & set(machines.CODECS))


def opened(content: bytes, name: str = "file") -> stored.Pyramid:
    with header.pydicom_silent():
        return stored.open_frame(header.read(content, name, "first"))


def by_pydicom(file: Path) -> npt.NDArray[Any]:
    """pydicom's raw stored values, or where it has no plugin those of another decoder than the one under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file)
        try:
            return np.asarray(pixels.pixel_array(dataset, raw=True, index=0))
        except (RuntimeError, NotImplementedError):
            return decoded(dataset)


@pytest.mark.parametrize("name", GREY)
def test_every_grey_file_of_pydicoms_own_set_is_bit_exact(name: str) -> None:
    file = FILES / f"{name}.dcm"
    values = opened(file.read_bytes()).level(0)
    assert np.abs(values.astype(int) - by_pydicom(file)).max() <= GREY[name]


def test_every_other_file_of_pydicoms_own_set_is_refused_with_a_reason() -> None:
    names = {file.stem for file in FILES.glob("*.dcm")}
    assert names >= set(GREY) | set(REFUSED)
    for name in names - set(GREY):
        with pytest.raises(DecodeError) as caught:
            opened((FILES / f"{name}.dcm").read_bytes()).level(0)
        assert REFUSED.get(name, "") in str(caught.value)
        assert all(str(part) for part in caught.value.args)


def edges(bits: int, shape: tuple[int, int] = (133, 90), signed: bool = False) -> npt.NDArray[Any]:
    """Blocks of both ends of the range beside smooth parts: their low-pass leaves the range."""
    rng = np.random.default_rng(bits)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * (2**bits // 2 // sum(shape))
    sharp = rng.integers(0, 2, shape) * (2**bits - 1)
    values = np.where(rng.random(shape) < 0.3, sharp, smooth)
    return np.asarray(values - 2 ** (bits - 1), np.int16) if signed else np.asarray(values, np.uint16)


def pyramid(values: npt.NDArray[Any], bits: int, signed: bool = False) -> list[npt.NDArray[Any]]:
    """The levels of an image by the 5/3 filter alone, within the range of the bits."""
    levels = [values.astype(np.int32)]
    while len(levels) < 7:
        levels.append(low_pass(levels[-1]))
    return [within(level, bits, signed) for level in levels]


def within(level: npt.NDArray[Any], bits: int, signed: bool = False) -> npt.NDArray[Any]:
    """What a level is shown as beyond the range of its bits; Pillow gives no more than that."""
    low = -(2 ** (bits - 1)) if signed else 0
    return np.asarray(np.clip(level, low, low + 2**bits - 1))


ARRANGEMENTS: dict[str, dict[str, Any]] = {
    **{order: {"progression": order} for order in ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")},
    **{f"{order}, layers": {"progression": order, "layers": (20.0, 5.0)} for order in ("LRCP", "RLCP", "PCRL")},
    **{f"{order}, precincts": {"progression": order, "precincts": (32, 32)} for order in ("LRCP", "RPCL", "PCRL")},
    "two levels": {"levels": 2},
    "no levels": {"levels": 0},
    "parts": {"parts": 3, "lengths": True},
    "wrapped": {"wrapped": True},
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True)])
def test_levels_of_jpeg_2000_are_the_low_pass_of_the_image(name: str, bits: int, signed: bool) -> None:
    values = edges(bits, signed=signed)
    stream = jpeg2000(values, bits, **ARRANGEMENTS[name])
    content = machines.make_dicom(values, Encoding(bits_stored=bits, window=None), codestream=stream)
    for r, expected in enumerate(pyramid(values, bits, signed)):
        np.testing.assert_array_equal(within(opened(content).level(r), bits, signed), expected)


@pytest.mark.parametrize("syntax", HT)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True), (16, True)])
def test_levels_of_htj2k_are_the_low_pass_of_the_image(syntax: str, bits: int, signed: bool) -> None:
    values = edges(bits, signed=signed)
    content = machines.make_dicom(values, Encoding(transfer_syntax=syntax, bits_stored=bits, window=None))
    for r, expected in enumerate(pyramid(values, bits, signed)):
        np.testing.assert_array_equal(within(opened(content).level(r), bits, signed), expected)


@pytest.mark.parametrize("name", ["LRCP", "LRCP, layers", "LRCP, precincts"])
def test_levels_are_the_same_in_whichever_order_they_are_asked_for(name: str) -> None:
    stream = jpeg2000(edges(12), 12, **ARRANGEMENTS[name])
    content = machines.make_dicom(edges(12), Encoding(window=None), codestream=stream)
    expected = pyramid(edges(12), 12)
    for first in range(4):
        levels = opened(content)
        for r in (first, *range(6)):
            np.testing.assert_array_equal(within(levels.level(r), 12), expected[r], str((first, r)))


def frame_of(content: bytes) -> bytes:
    with header.pydicom_silent():
        return bytes(header.read(content, "file").frame).rstrip(b"\0")


def with_frame(content: bytes, frame: bytes) -> bytes:
    """The same file around another codestream."""
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


CUT = [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1]


@pytest.mark.parametrize("syntax", CUT)
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(syntax: str) -> None:
    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    smooth = np.cumsum(np.random.default_rng(0).integers(0, 3, (64, 48)), axis=1) + 2**bits // 3
    content = machines.make_dicom(smooth.astype(np.uint16), Encoding(transfer_syntax=syntax, bits_stored=bits))
    frame = frame_of(content)
    opened(with_frame(content, frame)).level(0)
    for cut in (4, 5, 8, 20, 100, len(frame) // 3):
        with pytest.raises(DecodeError, match="last pixel"):
            opened(with_frame(content, frame[:-cut] + b"\xff\xd9")).level(0)


def damaged_siz(frame: bytes) -> bytes:
    return frame[:36] + struct.pack(">I", 1) + frame[40:]  # YTOsiz: a tile origin beyond the image's.


def damaged_qcd(frame: bytes) -> bytes:
    place = frame.index(b"\xff\x5c") + 5
    return frame[:place] + b"\xff" + frame[place + 1 :]


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEG2000, *HT])
@pytest.mark.parametrize("damage", [damaged_siz, damaged_qcd])
def test_values_that_crash_or_stall_decoders_are_refused(syntax: str, damage: Any) -> None:
    content = machines.make_dicom(edges(12), Encoding(transfer_syntax=syntax))
    with pytest.raises(DecodeError, match="header of the codestream"):
        opened(with_frame(content, damage(frame_of(content)))).level(0)


@pytest.mark.parametrize("offsets", [(64, 2**31), (64, 64), (2**32 - 1, 70), (0, 65)])
def test_rle_segments_that_lead_out_of_the_frame_are_refused(offsets: tuple[int, int]) -> None:
    content = machines.make_dicom(edges(12), Encoding(transfer_syntax=uid.RLELossless))
    frame = frame_of(content)
    with pytest.raises(DecodeError, match="segments out of order"):
        opened(with_frame(content, struct.pack("<3I", 2, *offsets) + frame[12:])).level(0)


@pytest.mark.parametrize("syntax", HT)
def test_damage_that_an_htj2k_decoder_finds_is_not_dropped(syntax: str) -> None:
    content = machines.make_dicom(edges(12), Encoding(transfer_syntax=syntax))
    frame = frame_of(content)
    start = frame.index(b"\xff\x93") + 2
    refused = 0
    for k in range(12):
        damaged = bytearray(frame)
        damaged[start + 40 * k : start + 40 * k + 30] = b"\xff" * 30
        try:
            assert opened(with_frame(content, bytes(damaged))).level(0).shape == (133, 90)
        except DecodeError:
            refused += 1
    assert refused >= 6


@pytest.mark.parametrize("syntax", [uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1])
def test_few_bytes_that_claim_a_huge_jpeg_are_refused(syntax: str) -> None:
    ramp = np.add.outer(np.arange(133), np.arange(90)).astype(np.uint16)
    content = machines.make_dicom(ramp, Encoding(transfer_syntax=syntax), attributes={"Rows": 65000})
    frame = frame_of(content)
    place = max(frame.find(marker) for marker in (b"\xff\xc1", b"\xff\xc3")) + 5
    with pytest.raises(DecodeError, match="too few"):
        opened(with_frame(content, frame[:place] + struct.pack(">H", 65000) + frame[place + 2 :])).level(0)


@pytest.mark.parametrize("offset", [(1, 1), (3, 5), (16, 16)])
def test_an_image_with_an_offset_on_the_reference_grid_has_its_levels_in_place(offset: tuple[int, int]) -> None:
    values = np.clip(np.random.default_rng(0).normal(2048, 200, (97, 130)), 900, 3100).astype(np.uint16)
    buffer = BytesIO()
    Pillow.fromarray(values << 4).save(
        buffer, "JPEG2000", offset=offset, tile_offset=offset, tile_size=(130, 97), no_jp2=True
    )
    encoding = Encoding(bits_stored=16, window=None)
    content = machines.make_dicom(values << 4, encoding, codestream=buffer.getvalue())
    for r, expected in enumerate(pyramid(values << 4, 16)[:4]):
        np.testing.assert_array_equal(within(opened(content).level(r), 16), expected)


def test_few_bits_in_an_unusual_order_are_not_widened() -> None:
    values = (np.arange(97 * 130) % 32 + 40).astype(np.uint8).reshape(97, 130)
    stream = jpeg2000(values, 7, layers=(3.0,))
    encoding = Encoding(bits_stored=7, bits_allocated=8, window=None)
    content = machines.make_dicom(values, encoding, codestream=stream)
    for r, expected in enumerate(pyramid(values, 7)[:3]):
        np.testing.assert_array_equal(within(opened(content).level(r), 7), expected)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.RLELossless])
def test_signed_values_beyond_their_bits_are_refused_and_not_wrapped(syntax: str) -> None:
    values = np.random.default_rng(0).integers(-30000, 30000, (40, 50)).astype(np.int16)
    encoding = Encoding(transfer_syntax=syntax, bits_stored=16, window=None)
    content = machines.make_dicom(values, encoding, attributes={"BitsStored": 12, "HighBit": 11})
    with pytest.raises(DecodeError, match="signed values of 12 bits"):
        opened(content).level(0)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1])
def test_many_values_beyond_their_bits_are_refused_at_every_level(syntax: str) -> None:
    values = np.random.default_rng(0).normal(5000, 300, (400, 300)).astype(np.uint16)
    encoding = Encoding(transfer_syntax=syntax, bits_stored=13, window=None)
    content = machines.make_dicom(values, encoding, attributes={"BitsStored": 12, "HighBit": 11})
    for r in (0, 2):
        with pytest.raises(DecodeError, match="Bits Stored 12"):
            opened(content).level(r)
