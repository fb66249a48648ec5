import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import uid

from mammoray import machines
from mammoray.config import DecodeConfig
from mammoray.decode import decode
from mammoray.errors import DecodeError
from mammoray.machines import Encoding, Window
from mammoray.plain import replace
from mammoray.synth import SynthSummary

# The frame of the stored image itself, so that a decode can be compared pixel by pixel.
H, W = 96, 80
PLAIN = DecodeConfig(height=H, width=W, crop="none", orient="none", depth=16)
SYNTAXES = [
    uid.JPEG2000Lossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.RLELossless,
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    *({uid.HTJ2KLossless} & set(machines.CODECS)),
]


def picture(bits: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Smooth enough to look like tissue, and using the whole range of the bits."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((H, W)), (0, 0), 3)
    unit = (noise - noise.min()) / (noise.max() - noise.min())
    return np.asarray(np.rint(unit * (2**bits - 1)), dtype=np.uint16)


def test_eight_bits_are_sixteen_rounded() -> None:
    content = machines.make_dicom(picture(12))
    eight, sixteen = (decode(content, replace(PLAIN, depth=d)).pixels for d in (8, 16))
    assert eight.dtype == np.uint8
    assert np.abs(eight / 255 - sixteen / 65535).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.RLELossless])
def test_signed_values_keep_their_order(syntax: str) -> None:
    stored = picture(12)
    signed = (stored.astype(np.int32) - 2048).astype(np.int16)
    content = machines.make_dicom(signed, Encoding(transfer_syntax=syntax, bits_stored=12, window=None))
    assert np.abs(decode(content, PLAIN).pixels / 65535 - stored / 4095).max() < 1e-3


def test_a_voi_lut_sequence_is_applied() -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor = [4096, 0, 12]
    item.LUTData = np.arange(4095, -1, -1, dtype="<u2").tobytes()  # A negative: bright becomes dark.
    content = machines.make_dicom(
        picture(12), Encoding(window=None, bits_stored=12), attributes={"VOILUTSequence": pydicom.Sequence([item])}
    )
    assert np.abs(decode(content, PLAIN).pixels / 65535 - (1 - picture(12) / 4095)).max() < 1e-3


def test_padding_is_shown_black_in_both_polarities() -> None:
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        stored = picture(12) // 2 + 1000
        stored[:, -20:] = 4000
        encoding = Encoding(photometric=photometric, padding=4000, window=Window(centers=(2000,), widths=(2500,)))
        shown = decode(machines.make_dicom(stored, encoding), PLAIN).pixels
        assert shown[:, -20:].max() == 0
        assert shown[:, :-20].max() > 0


def breast(mirrored: bool, inverted: bool) -> bytes:
    """A half-disc at one edge, with a label in the far corner."""
    y, x = np.mgrid[0:400, 0:300]
    image = np.where((y - 200) ** 2 / 150**2 + x**2 / 180**2 < 1, 2500 - 5 * x, 0)
    image[20:40, 250:290] = 4000
    image = image[:, ::-1] if mirrored else image
    stored = (4095 - image if inverted else image).astype(np.uint16)
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    return machines.make_dicom(stored, Encoding(photometric=photometric, window=None))


@pytest.mark.parametrize("inverted", [False, True])
def test_the_crop_is_the_breast_without_the_label_and_the_chest_wall_is_at_the_left(inverted: bool) -> None:
    config = DecodeConfig(height=256, width=192)
    left, right = (decode(breast(mirrored, inverted), config) for mirrored in (False, True))
    assert [left.geometry.mirrored, right.geometry.mirrored] == [False, True]
    assert np.abs(left.pixels.astype(int) - right.pixels).mean() < 2
    g = left.geometry
    assert abs(g.top - 50) <= 4
    assert abs(g.height - 300) <= 8
    assert abs(g.width - 180) <= 8
    assert left.pixels[128, 3] > 100
    assert left.pixels[:20, -20:].max() == 0


def test_padding_keeps_the_aspect_ratio_and_stretching_fills_the_frame() -> None:
    padded = decode(breast(False, False), DecodeConfig(height=200, width=300))
    stretched = decode(breast(False, False), DecodeConfig(height=200, width=300, resize="stretch"))
    assert padded.geometry.scale_x == pytest.approx(padded.geometry.scale_y, rel=0.02)
    assert padded.pixels[:, 200:].max() == 0
    assert stretched.pixels[:, 250:].max() > 0


def test_what_is_not_breast_is_black_inside_the_box_too() -> None:
    y, x = np.mgrid[0:400, 0:300]
    image = np.where((y - 200) ** 2 / 150**2 + x**2 / 180**2 < 1, 2500 - 5 * x, 0)
    image[70:85, 140:170] = 4000  # A marker beside the breast, within its bounding box.
    content = machines.make_dicom(image.astype(np.uint16), Encoding(window=None))
    config = DecodeConfig(height=256, width=192)
    black, kept = (decode(content, replace(config, background=b)).pixels for b in ("black", "keep"))
    assert kept.max() > 220
    assert black.max() < 170
    inside = kept[40:216, 3:60]
    assert np.array_equal(black[40:216, 3:60], inside)


def test_orientation_by_the_header_mirrors_right_breasts_and_wants_a_side() -> None:
    config = DecodeConfig(height=96, width=80, crop="none", orient="laterality")
    stored = picture(12)
    left, right = (decode(machines.make_dicom(stored, laterality=side), config) for side in "LR")
    assert np.array_equal(left.pixels[:, ::-1], right.pixels)
    assert (left.geometry.mirrored, right.geometry.mirrored) == (False, True)
    with pytest.raises(DecodeError, match="--orient content"):
        decode(machines.make_dicom(stored, attributes={"ImageLaterality": None}), config)
    older = machines.make_dicom(stored, attributes={"ImageLaterality": None, "Laterality": "R"})
    assert decode(older, config).geometry.mirrored


def test_less_detail_takes_a_deeper_level_where_it_falls_just_short() -> None:
    content = machines.make_dicom(picture(12).repeat(3, axis=0).repeat(3, axis=1))
    config = DecodeConfig(height=160, width=160, crop="none", orient="none")
    whole, less = (decode(content, replace(config, detail=detail)) for detail in (1.0, 0.75))
    assert (whole.geometry.level, less.geometry.level) == (0, 1)
    assert np.abs(whole.pixels.astype(int) - less.pixels).mean() < 2


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1])
def test_padding_brighter_than_tissue_leaves_no_rim_at_a_reduced_level(syntax: str) -> None:
    stored = np.full((640, 480), 2000, np.uint16)
    stored[:, :240] = 1500
    stored[:, 400:] = 4095
    encoding = Encoding(transfer_syntax=syntax, padding=4095, window=None)
    config = DecodeConfig(height=160, width=120, crop="none", orient="none")
    shown = decode(machines.make_dicom(stored, encoding), config)
    assert shown.geometry.level == 2
    assert shown.pixels.max() <= round(2000 / 4095 * 255) + 8  # The low-pass of the step between the tissues.
    assert shown.pixels[:, 101:].max() == 0
    assert shown.pixels[:, 90].min() > 100


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1])
def test_bright_tissue_near_the_padding_value_is_not_taken_for_padding(syntax: str) -> None:
    stored = np.full((640, 480), 1500, np.uint16)
    stored[100:108, 100:108] = 3950
    stored[300:330, 200:240] = 4050
    stored[:, 400:] = 4095
    encoding = Encoding(transfer_syntax=syntax, padding=4095, window=None)
    for divisor in (1, 2, 4):
        config = DecodeConfig(height=640 // divisor, width=480 // divisor, crop="none", orient="none")
        shown = decode(machines.make_dicom(stored, encoding), config).pixels
        tissue = shown[:, : 390 // divisor]
        assert tissue.min() > 60, divisor
        assert tissue[300 // divisor : 330 // divisor, 200 // divisor : 240 // divisor].max() > 245
        assert shown[:, 410 // divisor :].max() == 0


def test_the_box_of_a_breast_reaches_the_border_on_either_side() -> None:
    config = DecodeConfig(height=256, width=192)
    y, x = np.mgrid[0:1203, 0:901]
    image = np.where((y - 600) ** 2 / 450**2 + x**2 / 540**2 < 1, 2500 - x, 0).astype(np.uint16)
    left, right = (
        decode(machines.make_dicom(i, Encoding(window=None)), config).geometry for i in (image, image[:, ::-1])
    )
    assert left.left == 0
    assert right.left + right.width == 901
    assert abs(left.width - right.width) <= 2**3


def test_a_window_that_shows_a_marker_alone_is_an_error() -> None:
    y, x = np.mgrid[0:400, 0:300]
    image = np.where((y - 200) ** 2 / 150**2 + x**2 / 180**2 < 1, 2500 - 5 * x, 0)
    image[55:70, 160:178] = 4000
    encoding = Encoding(window=Window(centers=(3500.0,), widths=(100.0,)))
    with pytest.raises(DecodeError, match="one grey everywhere"):
        decode(machines.make_dicom(image.astype(np.uint16), encoding), DecodeConfig(height=256, width=192))


def test_warming_up_leaves_nothing_to_compile() -> None:
    program = (
        "import time; from pathlib import Path; from mammoray import ljpeg, packets, resample, wavelet\n"
        "from mammoray.decode import warm_up; warm_up()\n"
        "loops = [ljpeg._decode_pixels, packets.follow, resample._resample, wavelet.low_pass]\n"
        "print([bool(loop.signatures) for loop in loops])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[True,", "True,", "True,", "True]"]


def test_what_says_nothing_about_the_file_is_no_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import imagecodecs

    for kind in (MemoryError, ImportError):

        def broken(*args: object, kind: type[Exception] = kind, **kwargs: object) -> None:
            raise kind

        monkeypatch.setattr(imagecodecs, "jpeg2k_decode", broken)
        with pytest.raises(kind):
            decode(machines.make_dicom(picture(12)), PLAIN)


def test_percentile_windowing_uses_the_tissue() -> None:
    shown = decode(breast(False, False), DecodeConfig(height=256, width=192, window="percentile")).pixels
    assert np.mean(shown[shown > 0] >= 250) > 0.001
    assert shown.max() == 255


SPOILED: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a dicom": (lambda: b"\x89PNG" + bytes(500), "a DICOM file"),
    "empty": (lambda: b"", "a DICOM file"),
    "no pixels": (lambda: machines.make_dicom(picture(12), attributes={"PixelData": None}), "no such element"),
    "colour": (lambda: machines.make_dicom(picture(12), attributes={"SamplesPerPixel": 3}), "found 3"),
    "frames": (lambda: machines.make_dicom(picture(12), attributes={"NumberOfFrames": 2}), "found 2"),
    "palette": (
        lambda: machines.make_dicom(picture(12), attributes={"PhotometricInterpretation": "PALETTE COLOR"}),
        "MONOCHROME",
    ),
    "bomb": (lambda: machines.make_dicom(picture(12), attributes={"Rows": 65535, "Columns": 65535}), "65535 x 65535"),
    "zero": (lambda: machines.make_dicom(picture(12), attributes={"Rows": 0}), "0 x 80"),
    "other size": (lambda: machines.make_dicom(picture(12), attributes={"Rows": 97}), "the header says 97 x 80"),
    "no rows": (lambda: machines.make_dicom(picture(12), attributes={"Rows": None}), "found nothing"),
    "constant": (lambda: machines.make_dicom(np.zeros((H, W), np.uint16)), "the value 0 in every pixel"),
    "bits": (
        lambda: machines.make_dicom(
            picture(16), Encoding(bits_stored=16), attributes={"BitsStored": 12, "HighBit": 11}
        ),
        "Bits Stored 12",
    ),
    "blind window": (
        lambda: machines.make_dicom(picture(12), Encoding(window=Window(centers=(60000.0,), widths=(10.0,)))),
        "one grey everywhere",
    ),
    "aspect": (lambda: machines.make_dicom(picture(12), attributes={"PixelAspectRatio": ["2", "1"]}), "2:1"),
    "window": (lambda: machines.make_dicom(picture(12), attributes={"WindowWidth": 0.0}), "VOI"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_cannot_be_an_image_is_an_error_that_says_why(kind: str) -> None:
    make, reason = SPOILED[kind]
    with pytest.raises(DecodeError, match=reason):
        decode(make(), PLAIN)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.rsplit(".", 1)[-1])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_never_an_image(syntax: str, kept: float, tmp_path: Path) -> None:
    content = machines.make_dicom(picture(12), Encoding(transfer_syntax=syntax))
    start = content.index(b"\xe0\x7f\x10\x00")  # Pixel Data (7FE0,0010)
    file = tmp_path / "cut.dcm"
    file.write_bytes(content[: start + int((len(content) - start) * kept)])
    with pytest.raises(DecodeError, match=r"cut\.dcm"):
        decode(file, PLAIN)


def test_what_pydicom_says_about_odd_headers_reaches_no_log(recwarn: pytest.WarningsRecorder) -> None:
    odd = {"PatientID": "Doe Jane born 1970-01-01" * 5, "PatientBirthDate": "the first of May"}
    content = machines.make_dicom(picture(12), Encoding(transfer_syntax=uid.ExplicitVRLittleEndian), attributes=odd)
    pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)).decode()
    assert len(recwarn) > 0, "pydicom itself would warn"
    recwarn.clear()
    decode(content, PLAIN)
    assert len(recwarn) == 0


def test_errors_carry_no_identity() -> None:
    content = machines.make_dicom(
        picture(12), attributes={"PatientName": "Doe^Jane", "PatientBirthDate": "19700101", "SamplesPerPixel": 3}
    )
    with pytest.raises(DecodeError) as caught:
        decode(content, PLAIN, name="1.dcm")
    assert "Doe" not in str(caught.value)
    assert "1970" not in str(caught.value)


NAME = b"DOE^JANE"


@pytest.mark.parametrize(
    "keyword",
    [
        "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames",
        "PhotometricInterpretation", "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "WindowCenter",
        "WindowWidth", "VOILUTFunction", "PixelAspectRatio",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [NAME, b"", NAME[:5]])
def test_damage_in_any_element_is_an_error_of_this_file_and_quotes_nothing(
    keyword: str, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that slipped into another element must reach no error, whatever pydicom says about it."""
    content = with_raw_value(keyword, value)
    caplog.clear()
    said = ""
    try:
        decode(content, PLAIN)
    except DecodeError as error:
        said = "".join(traceback.format_exception(error.__cause__ or error))
    assert "DOE" not in said + caplog.text
    assert said or keyword not in ("Rows", "Columns", "BitsStored", "PhotometricInterpretation")


def with_raw_value(keyword: str, value: bytes) -> bytes:
    """A file in which an element holds these very bytes, whatever its VR wants."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    raw = machines.make_dicom(picture(12), Encoding(transfer_syntax=uid.ExplicitVRLittleEndian))
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(raw))
    tag = Tag(keyword)
    vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, dataset)
    return bytes(buffer.getvalue())


def test_zeros_after_the_end_marker_are_no_truncation() -> None:
    encoding = Encoding(transfer_syntax=uid.JPEGLosslessSV1)
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(machines.make_dicom(picture(12), encoding)))
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame + bytes(40)])
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, dataset)
    assert np.array_equal(
        decode(buffer.getvalue(), PLAIN).pixels, decode(machines.make_dicom(picture(12)), PLAIN).pixels
    )


def test_a_negative_rescale_slope_keeps_its_polarity_in_every_window() -> None:
    attributes = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    content = machines.make_dicom(picture(12), Encoding(window=None), attributes=attributes)
    for window in ("voi", "percentile", "none"):
        shown = decode(content, replace(PLAIN, window=window)).pixels
        assert np.corrcoef(shown.ravel(), picture(12).ravel())[0, 1] < -0.9, window


def test_percentiles_are_of_the_breast_and_not_of_the_background() -> None:
    noise = np.random.default_rng(0).integers(0, 30, (400, 300))
    y, x = np.mgrid[0:400, 0:300]
    stored = np.where((y - 200) ** 2 / 150**2 + x**2 / 180**2 < 1, 2500 - 5 * x, noise).astype(np.uint16)
    config = DecodeConfig(height=400, width=300, crop="none", orient="none", window="percentile")
    shown = decode(machines.make_dicom(stored), config).pixels
    assert shown[200, 165] < 30, "the darkest tissue is black"
    assert shown[200, 5] > 240


def test_every_encoding_of_the_synthetic_sets_decodes_to_a_breast_with_the_chest_wall_at_the_left(
    rsna: SynthSummary, irma: SynthSummary
) -> None:
    config = DecodeConfig(height=96, width=80)
    wrong = []
    files = sorted(rsna.root.rglob("*.dcm")) + sorted(irma.root.rglob("*.dcm"))
    for file in files:
        decoded = decode(file, config)
        assert 0.1 < (decoded.pixels > 20).mean() < 0.97, file
        side = pydicom.dcmread(file, stop_before_pixels=True).ImageLaterality
        wrong += [file] if decoded.geometry.mirrored != (side == "R") else []
    assert len(wrong) <= 0.01 * len(files), wrong


REAL = Path(__file__).parents[2] / "shared" / "data" / "dicom"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real sample files are not here")
def test_the_real_files_decode() -> None:
    for file in sorted(REAL.glob("*.dcm")):
        assert decode(file, DecodeConfig()).pixels.std() > 5, file
