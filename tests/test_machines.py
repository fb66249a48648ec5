from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid

from mammoray.encoders import jpeg2000
from mammoray.machines import CODECS, FILM, LOSSY, SITES, Encoding, Window, make_dicom, quantise
from tests.reference_decoder import codestream, decoded
from tests.test_encoders import jpeg_header, segments, smooth

PROGRESSIVE = "1.2.840.10008.1.2.4.55"  # a syntax that the factory does not write
LOSSLESS = sorted(set(CODECS) - set(LOSSY))
ONLY_BY_PLUGIN = {  # pydicom reads them with plugins that are no dependency
    uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL,
}  # fmt: skip
MACHINES = [m for group in (*SITES.values(), FILM) for m in group.values()]


def noise(bits: int, shape: tuple[int, int] = (65, 50)) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(bits).integers(0, 2**bits, shape).astype(np.uint16)
    pixels[0, :2] = 0, 2**bits - 1
    return pixels


def read(pixels: np.ndarray[Any, Any], encoding: Encoding) -> pydicom.FileDataset:
    """What stands in the file, after a check that its header says what the encoding does."""
    dataset = pydicom.dcmread(BytesIO(make_dicom(pixels, encoding)))
    assert dataset.file_meta.TransferSyntaxUID == encoding.transfer_syntax
    assert (dataset.BitsAllocated, dataset.BitsStored) == (encoding.bits_allocated, encoding.bits_stored)
    assert dataset.HighBit == encoding.bits_stored - 1
    return dataset


@pytest.mark.parametrize("bits", [6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_every_lossless_encoding_reads_back_bit_exact(syntax: str, bits: int) -> None:
    for allocated in (8, 16) if bits <= 8 else (16,):
        dataset = read(noise(bits), Encoding(transfer_syntax=syntax, bits_stored=bits, bits_allocated=allocated))
        np.testing.assert_array_equal(decoded(dataset), noise(bits))
        assert dataset.LossyImageCompression == "00"
        if syntax not in ONLY_BY_PLUGIN:
            np.testing.assert_array_equal(dataset.pixel_array, noise(bits))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_every_lossless_encoding_holds_signed_pixels(syntax: str, bits: int) -> None:
    pixels = (noise(bits).astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    for allocated in (8, 16) if bits <= 8 else (16,):
        dataset = read(pixels, Encoding(transfer_syntax=syntax, bits_stored=bits, bits_allocated=allocated))
        assert dataset.PixelRepresentation == 1
        np.testing.assert_array_equal(decoded(dataset), pixels)
        if syntax not in ONLY_BY_PLUGIN:
            np.testing.assert_array_equal(dataset.pixel_array, pixels)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", sorted(set(LOSSY) & set(CODECS)))
def test_every_lossy_encoding_says_so_and_reads_back_nearly(syntax: str, bits: int) -> None:
    if (syntax, bits) == (uid.JPEGBaseline8Bit, 12):
        with pytest.raises(ValueError, match="8 bits"):
            read(smooth(bits), Encoding(transfer_syntax=syntax, bits_stored=bits))
        return
    for allocated in (8, 16) if bits <= 8 else (16,):
        dataset = read(smooth(bits), Encoding(transfer_syntax=syntax, bits_stored=bits, bits_allocated=allocated))
        error = np.abs(decoded(dataset).astype(int) - smooth(bits))
        assert 0 < error.max() <= 0.03 * 2**bits
        assert dataset.LossyImageCompression == "01" and dataset.LossyImageCompressionMethod == LOSSY[syntax]
        assert dataset.LossyImageCompressionRatio == smooth(bits).size * allocated // 8 // len(codestream(dataset))


@pytest.mark.parametrize(("allocated", "vr"), [(8, "OB"), (16, "OW")])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.JPEG2000Lossless])
def test_pixel_data_of_eight_bits_are_bytes_of_an_even_length(syntax: str, allocated: int, vr: str) -> None:
    encoding = Encoding(transfer_syntax=syntax, bits_stored=8, bits_allocated=allocated)
    element = read(noise(8, (65, 51)), encoding)["PixelData"]
    assert str(element.VR) == vr and len(element.value) % 2 == 0
    assert read(noise(8), replace(encoding, pixel_vr="OB"))["PixelData"].VR == "OB"


def test_jpeg_extended_and_lossless_are_the_processes_that_their_syntaxes_name() -> None:
    markers = {uid.JPEGBaseline8Bit: (0xC0, 8), uid.JPEGExtended12Bit: (0xC1, 12), uid.JPEGLossless: (0xC3, 12)}
    for syntax, (frame, bits) in markers.items():
        found = jpeg_header(codestream(read(smooth(bits), Encoding(transfer_syntax=syntax, bits_stored=bits))))
        assert found[:2] == (frame, bits)
        assert (found[2] > 1) == (syntax == uid.JPEGLossless)  # predictor 1 would be syntax .70


@pytest.mark.parametrize("syntax", sorted({uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K} & set(CODECS)))
def test_high_throughput_jpeg_2000_has_its_marks(syntax: str) -> None:
    found = segments(codestream(read(smooth(12), Encoding(transfer_syntax=syntax))))
    cod = found[0xFF52][0]
    assert 0xFF50 in found and cod[3] == 2 and cod[11] == (syntax != uid.HTJ2K)  # CAP, RPCL, 5/3
    assert (0xFF55 in found) == (syntax == uid.HTJ2KLosslessRPCL)  # TLM


def test_a_codestream_of_ones_own_takes_the_place_of_the_encoders() -> None:
    stream = jpeg2000(smooth(12), 12, progression="PCRL", wrapped=True)
    dataset = pydicom.dcmread(BytesIO(make_dicom(smooth(12), codestream=stream)))
    assert codestream(dataset).rstrip(b"\0") == stream.rstrip(b"\0")
    np.testing.assert_array_equal(decoded(dataset), smooth(12))
    other = make_dicom(smooth(12), Encoding(transfer_syntax=PROGRESSIVE), codestream=b"\xff\xd8")
    assert codestream(pydicom.dcmread(BytesIO(other))) == b"\xff\xd8"


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_jpeg_lossless_is_first_order_prediction_of_the_bits_stored(bits: int) -> None:
    encoding = Encoding(transfer_syntax=uid.JPEGLosslessSV1, bits_stored=bits)
    dataset = pydicom.dcmread(BytesIO(make_dicom(noise(bits), encoding)))
    frame = codestream(dataset)
    frame_header, scan = frame.index(b"\xff\xc3"), frame.index(b"\xff\xda")
    assert frame[frame_header + 4] == bits
    assert frame[scan + 7] == 1  # selection value, PS3.5 10.2 and ITU-T T.81 B.2.3
    np.testing.assert_array_equal(imagecodecs.jpegsof3_decode(frame), noise(bits))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_jpeg2000_is_a_bare_reversible_codestream_of_the_bits_stored(bits: int) -> None:
    dataset = pydicom.dcmread(BytesIO(make_dicom(noise(bits), Encoding(bits_stored=bits))))
    frame = codestream(dataset)
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


def test_pixels_beyond_bits_stored_and_unknown_syntaxes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 bits"):
        make_dicom(noise(12), Encoding(bits_stored=10))
    with pytest.raises(ValueError, match="12 bits, of 8 allocated"):
        make_dicom(noise(12), Encoding(bits_allocated=8))
    with pytest.raises(ValueError, match="-2049 to 0 does not fit"):
        make_dicom(np.array([[0, -2049]], np.int16))
    with pytest.raises(ValueError, match=PROGRESSIVE):
        make_dicom(noise(12), Encoding(transfer_syntax=PROGRESSIVE))


def test_background_is_black_for_every_machine() -> None:
    for machine in MACHINES:
        encoding = machine.encoding
        black, white = quantise(np.array([[0.0, 1.0]], np.float32), encoding)[0].astype(int)
        assert black < white if encoding.photometric == "MONOCHROME2" else black > white
        assert encoding.padding in (None, black)
