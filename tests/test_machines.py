from __future__ import annotations

from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import generate_frames

from mammoray.machines import CODECS, FILM, SITES, Encoding, Window, make_dicom, quantise
from tests.reference_decoder import decoded

MACHINES = [m for group in (*SITES.values(), FILM) for m in group.values()]


def noise(bits: int, shape: tuple[int, int] = (65, 50)) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(bits).integers(0, 2**bits, shape).astype(np.uint16)
    pixels[0, :2] = 0, 2**bits - 1
    return pixels


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("syntax", CODECS)
def test_every_encoding_reads_back_bit_exact(syntax: str, bits: int) -> None:
    pixels = noise(bits)
    dataset = pydicom.dcmread(BytesIO(make_dicom(pixels, Encoding(transfer_syntax=syntax, bits_stored=bits))))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, bits, bits - 1)
    np.testing.assert_array_equal(decoded(dataset), pixels)
    try:
        np.testing.assert_array_equal(dataset.pixel_array, pixels)
    except RuntimeError:  # pydicom reads some of them only with plugins that are no dependency
        assert syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.HTJ2KLossless)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_jpeg_lossless_is_first_order_prediction_of_the_bits_stored(bits: int) -> None:
    encoding = Encoding(transfer_syntax=uid.JPEGLosslessSV1, bits_stored=bits)
    dataset = pydicom.dcmread(BytesIO(make_dicom(noise(bits), encoding)))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    frame_header, scan = frame.index(b"\xff\xc3"), frame.index(b"\xff\xda")
    assert frame[frame_header + 4] == bits
    assert frame[scan + 7] == 1  # selection value, PS3.5 10.2 and ITU-T T.81 B.2.3
    np.testing.assert_array_equal(imagecodecs.jpegsof3_decode(frame), noise(bits))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_jpeg2000_is_a_bare_reversible_codestream_of_the_bits_stored(bits: int) -> None:
    dataset = pydicom.dcmread(BytesIO(make_dicom(noise(bits), Encoding(bits_stored=bits))))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    assert frame[:4] == b"\xff\x4f\xff\x51" and frame[40 + 2] == bits - 1  # Ssiz, ITU-T T.800 A.5.1
    cod = frame.index(b"\xff\x52")
    assert frame[cod + 13] == 1  # 5-3 reversible


def test_same_arguments_give_the_same_bytes_and_another_key_another_uid() -> None:
    first, again, other = (make_dicom(noise(12), key=(7, k)) for k in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_viewer_shows_what_was_quantised(function: str, photometric: str) -> None:
    shown = np.linspace(0.02, 0.98, 64 * 64, dtype=np.float32).reshape(64, 64)
    window = Window(function=function, centers=(8000, 7000), widths=(7000, 6000))
    encoding = Encoding(photometric=photometric, bits_stored=14, window=window)
    dataset = pydicom.dcmread(BytesIO(make_dicom(quantise(shown, encoding), encoding)))
    voi = pydicom.pixels.apply_windowing(dataset.pixel_array, dataset).astype(float)
    voi = voi / (2**14 - 1)
    np.testing.assert_allclose(1 - voi if photometric == "MONOCHROME1" else voi, shown, atol=1e-3)


def test_attributes_are_set_or_left_out_last_of_all() -> None:
    dataset = pydicom.dcmread(BytesIO(make_dicom(noise(12), attributes={"Modality": None, "BitsStored": 8, "Rows": 1})))
    assert "Modality" not in dataset and (dataset.BitsStored, dataset.Rows) == (8, 1)


def test_signed_pixels_set_pixel_representation() -> None:
    pixels = np.arange(-32, 32, dtype=np.int16).reshape(8, 8)
    encoding = Encoding(transfer_syntax=uid.ExplicitVRLittleEndian)
    np.testing.assert_array_equal(pydicom.dcmread(BytesIO(make_dicom(pixels, encoding))).pixel_array, pixels)


def test_pixels_beyond_bits_stored_and_unknown_syntaxes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 bits"):
        make_dicom(noise(12), Encoding(bits_stored=10))
    with pytest.raises(ValueError, match=str(uid.JPEGBaseline8Bit)):
        make_dicom(noise(12), Encoding(transfer_syntax=uid.JPEGBaseline8Bit))


def test_background_is_black_for_every_machine() -> None:
    for machine in MACHINES:
        encoding = machine.encoding
        black, white = quantise(np.array([[0.0, 1.0]], np.float32), encoding)[0].astype(int)
        assert black < white if encoding.photometric == "MONOCHROME2" else black > white
        assert encoding.padding in (None, black)
