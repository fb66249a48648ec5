"""Codestreams as they are asked for, read by other decoders than the one that wrote them and by their markers."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow

from mammoray import encoders

SHAPE = (150, 101)
PROGRESSIONS = ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")  # in the order of their codes, ITU-T T.800 table A.16


def smooth(bits: int, shape: tuple[int, int] = SHAPE) -> np.ndarray[Any, Any]:
    """A gradient with noise: it compresses, and errors show."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    grey = (y / shape[0] + x / shape[1]) / 2.2 + np.random.default_rng(bits).normal(0, 0.01, shape)
    return np.asarray(np.rint(np.clip(grey, 0, 1) * (2**bits - 1)), np.uint16)


def segments(stream: bytes) -> dict[int, list[bytes]]:
    """Marker segments of a JPEG 2000 codestream, by marker; packets are left out."""
    found: dict[int, list[bytes]] = {}
    place, end = 2, 0
    while (marker := struct.unpack_from(">H", stream, place)[0]) != 0xFFD9:
        if marker == 0xFF93:
            place = end
            continue
        length = struct.unpack_from(">H", stream, place + 2)[0]
        found.setdefault(marker, []).append(stream[place + 2 : place + 2 + length])
        if marker == 0xFF90:
            end = place + struct.unpack_from(">I", stream, place + 6)[0]
        place += 2 + length
    assert place == len(stream.rstrip(b"\0")) - 2  # DICOM pads to an even length
    return found


def jpeg_header(stream: bytes) -> tuple[int, int, int]:
    """SOF marker, its precision, and the first byte after the components of the scan header (the predictor)."""
    place, frame, precision = 2, 0, 0
    while stream[place + 1] != 0xDA:
        if 0xC0 <= stream[place + 1] <= 0xC3:
            frame, precision = stream[place + 1], stream[place + 4]
        place += 2 + struct.unpack_from(">H", stream, place + 2)[0]
    return frame, precision, stream[place + 7]


@pytest.mark.parametrize(("bits", "frame", "precision"), [(8, 0xC0, 8), (6, 0xC0, 8), (12, 0xC1, 12), (10, 0xC1, 12)])
def test_jpeg_by_dct_is_baseline_for_eight_bits_and_extended_with_precision_12_above(
    bits: int, frame: int, precision: int
) -> None:
    stream = encoders.jpeg(smooth(bits), bits)
    assert jpeg_header(stream)[:2] == (frame, precision)
    error = imagecodecs.jpeg8_decode(stream).astype(int) - smooth(bits)
    assert 0 < np.abs(error).max() <= 0.03 * 2**precision


def test_jpeg_by_dct_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="up to 12 bits"):
        encoders.jpeg(smooth(14), 14)
    with pytest.raises(ValueError, match="8 bits"):
        encoders.jpeg_baseline(smooth(12), 12)
    with pytest.raises(ValueError, match="int16"):
        encoders.jpeg(smooth(12).astype(np.int16), 12)
    with pytest.raises(ValueError, match="unsigned"):
        encoders.jpeg_ls(smooth(12).astype(np.int16), 12, near=1)


@pytest.mark.parametrize("bits", [6, 8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_predicts_as_asked(predictor: int, bits: int) -> None:
    stream = encoders.jpeg_lossless(smooth(bits), bits, predictor=predictor)
    assert jpeg_header(stream) == (0xC3, bits, predictor)
    np.testing.assert_array_equal(imagecodecs.jpegsof3_decode(stream), smooth(bits))


def test_near_lossless_jpeg_ls_errs_by_no_more_than_asked() -> None:
    stream = encoders.jpeg_ls(smooth(12), 12, near=3)
    error = imagecodecs.jpegls_decode(stream).astype(int) - smooth(12)
    assert 0 < np.abs(error).max() <= 3


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_irreversible_jpeg_2000_is_the_9_7_wavelet_and_loses_as_much_as_it_says(bits: int) -> None:
    stream = encoders.jpeg2000_plain(smooth(bits), bits, reversible=False)
    cod = segments(stream)[0xFF52][0]
    assert cod[11] == 0
    error = imagecodecs.jpeg2k_decode(stream).astype(float) - smooth(bits)
    psnr = 20 * np.log10((2**bits - 1) / np.sqrt((error**2).mean()))
    assert abs(psnr - encoders.PSNR) < 3


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("progression", PROGRESSIONS)
def test_every_progression_reads_back_bit_exact(progression: str, bits: int, signed: bool) -> None:
    pixels = smooth(bits).astype(np.int32) - (2 ** (bits - 1) if signed else 0)
    pixels = pixels.astype(np.int16 if signed else np.uint16)
    stream = encoders.jpeg2000(pixels, bits, progression=progression, levels=3, precincts=(32, 64))
    found = segments(stream)
    cod, siz = found[0xFF52][0], found[0xFF51][0]
    assert (cod[3], cod[7], cod[11]) == (PROGRESSIONS.index(progression), 3, 1)
    assert siz[38] == bits - 1 + 128 * signed
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(stream), pixels)


@pytest.mark.parametrize("levels", [0, 1, 4])
@pytest.mark.parametrize("tiles", [(64, 64), (33, 47), (150, 32), (32, 101)])
def test_tiles_of_any_size_read_back_bit_exact(tiles: tuple[int, int], levels: int) -> None:
    stream = encoders.jpeg2000(smooth(12), 12, tiles=tiles, levels=levels)
    count = -(-SHAPE[0] // tiles[0]) * -(-SHAPE[1] // tiles[1])
    assert [sot[2:4] for sot in segments(stream)[0xFF90]] == [struct.pack(">H", i) for i in range(count)]
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(stream), smooth(12))
    opened = Pillow.open(BytesIO(stream))
    np.testing.assert_array_equal(np.asarray(opened) >> 4, smooth(12))


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("parts", [1, 3, 6])
def test_tile_parts_hold_all_packets_in_order(parts: int, lengths: bool) -> None:
    stream = encoders.jpeg2000(smooth(12), 12, progression="RPCL", parts=parts, lengths=lengths, tiles=(80, 101))
    found = segments(stream)
    assert [(sot[8], sot[9]) for sot in found[0xFF90]] == [(k, parts) for k in range(parts)] * 2
    assert len(found.get(0xFF58, [])) == 2 * parts * lengths
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(stream), smooth(12))


def test_layers_are_counted_and_the_last_is_lossless() -> None:
    stream = encoders.jpeg2000(smooth(12), 12, layers=(40, 20, 10))
    assert struct.unpack(">H", segments(stream)[0xFF52][0][4:6]) == (4,)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(stream), smooth(12))


def test_a_wrapped_codestream_is_a_jp2_file_of_the_same_pixels() -> None:
    bare, wrapped = (encoders.jpeg2000(smooth(12), 12, wrapped=w) for w in (False, True))
    assert wrapped[4:8] == b"jP  " and wrapped.endswith(bare)
    opened = Pillow.open(BytesIO(wrapped))
    assert opened.format == "JPEG2000"
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(wrapped), smooth(12))


def test_a_large_codestream_is_the_one_of_openjpeg_itself() -> None:
    """Of 16 bits unsigned nothing is corrected: cutting it up and putting it together again must change nothing."""
    pixels = smooth(16, (700, 600))
    buffer = BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True, plt=True, num_resolutions=6)
    assert encoders.jpeg2000(pixels, 16, lengths=True) == buffer.getvalue()
