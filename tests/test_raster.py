"""PNG, JPEG and TIFF through the decoder: the same images as from DICOM, and nothing silent."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydicom import uid

from mammoray import encoders, header, ingest, machines, prepare, raster
from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.errors import DecodeError
from mammoray.machines import Encoding
from mammoray.plain import replace
from tests.raster_files import Image, chunk, exif, jpeg, png, tiff

WHOLE = DecodeConfig(height=64, width=48, crop="none", orient="none", depth=16)
VIEWS = {
    "whole": WHOLE,
    "breast": DecodeConfig(height=64, width=48, depth=16),
    "percentile": DecodeConfig(height=64, width=48, crop="none", window="percentile", depth=16),
    "stretched, 8 bits": DecodeConfig(height=64, width=48, resize="stretch", depth=8),
}


def breast(bits: int, shape: tuple[int, int] = (96, 80), seed: int = 0) -> Image:
    """Noisy tissue at the left of a black image, with specks of both ends of the range."""
    rng = np.random.default_rng((bits, seed))
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = ((y - shape[0] / 2) / (0.42 * shape[0])) ** 2 + (x / (0.7 * shape[1])) ** 2 < 1
    unit = np.where(inside, 0.7 - 0.3 * x / shape[1] + 0.03 * rng.standard_normal(shape), 0)
    unit[inside & (rng.random(shape) < 0.01)] = 1
    unit[inside & (rng.random(shape) < 0.01)] = 0
    return np.asarray(np.rint(np.clip(unit, 0, 1) * (2**bits - 1)), np.uint8 if bits == 8 else np.uint16)


def dicom(pixels: Image, bits: int = 0, photometric: str = "MONOCHROME2") -> bytes:
    """The uncompressed DICOM without a window of the same pixels."""
    bits = bits or 8 * pixels.itemsize
    encoding = Encoding(
        transfer_syntax=uid.ExplicitVRLittleEndian, photometric=photometric, bits_stored=bits,
        bits_allocated=8 * pixels.itemsize, window=None,
    )  # fmt: skip
    return machines.make_dicom(pixels, encoding)


def channels(pixels: Image, colours: int, alpha: bool) -> Image:
    """Grey as ``colours`` equal channels, with opaque alpha."""
    return np.stack([pixels] * colours + [np.full_like(pixels, np.iinfo(pixels.dtype).max)] * alpha, axis=-1)


FORMS: dict[str, Any] = {
    "png": png,
    "png, interlaced": lambda pixels: png(pixels, interlaced=True),
    "png, rgb": lambda pixels: png(channels(pixels, 3, False)),
    "png, rgba": lambda pixels: png(channels(pixels, 3, True)),
    "png, grey and alpha": lambda pixels: png(channels(pixels, 1, True)),
    "tiff": tiff,
    "tiff, big endian": lambda pixels: tiff(pixels, order=">", strip=7),
    "tiff, 64 bits": lambda pixels: tiff(pixels, big=True, strip=10, compression=8),
    "tiff, 64 bits, big endian": lambda pixels: tiff(pixels, big=True, order=">", compression=5),
    "tiff, deflate": lambda pixels: tiff(pixels, compression=32946, strip=9),
    "tiff, PackBits": lambda pixels: tiff(pixels, compression=32773, strip=9),
    "tiff, tiles": lambda pixels: tiff(pixels, tile=32, compression=8),
    "tiff, rgb": lambda pixels: tiff(channels(pixels, 3, False), photometric=2),
    "tiff, rgb in planes": lambda pixels: tiff(channels(pixels, 3, False), photometric=2, planar=2, strip=20),
    "tiff, rgba": lambda pixels: tiff(channels(pixels, 3, True), photometric=2, tags={338: [2]}),
    "tiff, grey and alpha": lambda pixels: tiff(channels(pixels, 1, True), tags={338: [1]}),
}


def assert_same(one: Decoded, other: Decoded) -> None:
    assert one.geometry == other.geometry
    assert one.pixels.dtype == other.pixels.dtype
    np.testing.assert_array_equal(one.pixels, other.pixels)


@given(
    form=st.sampled_from(sorted(FORMS)), bits=st.sampled_from([8, 16]), view=st.sampled_from(sorted(VIEWS)),
    shape=st.tuples(*[st.integers(33, 150)] * 2), size=st.tuples(*[st.integers(32, 90)] * 2),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_raster_image_gives_the_bytes_of_an_uncompressed_dicom_of_its_pixels(
    form: str, bits: int, view: str, shape: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    pixels = breast(bits, shape, seed)
    config = replace(VIEWS[view], height=size[0], width=size[1])
    assert_same(decode(FORMS[form](pixels), config), decode(dicom(pixels), config))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [8, 16])
def test_every_form_holds_the_pixels_themselves(form: str, bits: int) -> None:
    pixels = breast(bits)
    head = raster.read(FORMS[form](pixels), "file")
    assert (head.rows, head.columns, head.bits_stored, head.bits_allocated) == (96, 80, bits, bits)
    assert (head.signed, head.inverted, head.padding, head.laterality, head.frames) == (False, False, None, None, 1)
    assert head.transfer_syntax == f"image/{form.partition(',')[0]}"
    np.testing.assert_array_equal(values(head), pixels)


def values(head: header.Header) -> Image:
    return np.frombuffer(head.frame, f"<u{head.bits_allocated // 8}").reshape(head.rows, head.columns)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("view", VIEWS)
def test_a_tiff_whose_low_values_are_bright_is_monochrome1(view: str, bits: int) -> None:
    pixels = np.iinfo(np.uint8 if bits == 8 else np.uint16).max - breast(bits)
    assert_same(
        decode(tiff(pixels, photometric=0), VIEWS[view]), decode(dicom(pixels, photometric="MONOCHROME1"), VIEWS[view])
    )
    assert_same(decode(tiff(pixels, photometric=0), VIEWS[view]), decode(png(breast(bits)), VIEWS[view]))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_few_bits_of_a_png_are_spread_to_eight(bits: int, interlaced: bool) -> None:
    pixels = breast(8) >> (8 - bits)
    head = raster.read(png(pixels, bits=bits, interlaced=interlaced), "file")
    np.testing.assert_array_equal(values(head), pixels * (255 // (2**bits - 1)))


def test_a_palette_of_greys_is_grey() -> None:
    pixels, table = breast(8), np.random.default_rng(0).permutation(256).astype(np.uint8)
    palette = chunk(b"PLTE", np.repeat(table, 3).tobytes())
    np.testing.assert_array_equal(values(raster.read(png(pixels, 3, extra=[palette]), "file")), table[pixels])
    opaque = chunk(b"tRNS", b"\xff" * 256)
    np.testing.assert_array_equal(values(raster.read(png(pixels, 3, extra=[palette, opaque]), "file")), table[pixels])
    for factor, bits in ((257, 8), (256, 16)):
        colours = np.tile(table.astype(int) * factor, 3).tolist()
        head = raster.read(tiff(pixels, photometric=3, tags={320: colours}), "file")
        assert head.bits_stored == bits
        np.testing.assert_array_equal(values(head), table[pixels].astype(int) * (factor if bits == 16 else 1))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_gives_what_pillow_shows_and_equal_channels_are_grey(options: dict[str, Any], mode: str) -> None:
    content = jpeg(breast(8), mode, **options)
    head = raster.read(content, "file")
    with Pillow.open(io.BytesIO(content)) as image:
        shown = np.asarray(image)
    np.testing.assert_array_equal(values(head), shown if mode == "L" else shown[..., 0])
    assert_same(decode(content, VIEWS["breast"]), decode(png(np.array(values(head))), VIEWS["breast"]))


def test_a_jpeg_of_twelve_bits_has_twelve_bits() -> None:
    pixels = breast(12)
    head = raster.read(encoders.jpeg(pixels, 12), "file")
    assert (head.bits_stored, head.bits_allocated) == (12, 16)
    assert np.abs(values(head).astype(int) - pixels).mean() < 40


UPRIGHT: dict[int, Any] = {  # TIFF 6.0 section 8: where the first row and the first column of the file are to be seen.
    1: lambda image: image, 2: np.fliplr, 3: lambda image: np.rot90(image, 2), 4: np.flipud,
    5: np.transpose, 6: lambda image: np.rot90(image, -1), 7: lambda image: np.rot90(np.transpose(image), 2),
    8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_stated_orientation_is_applied(orientation: int) -> None:
    pixels = breast(8, (60, 44))
    expected = UPRIGHT[orientation](pixels)
    block = exif(orientation)
    for content in (png(pixels, extra=[chunk(b"eXIf", block)]), tiff(pixels, tags={274: [orientation]})):
        np.testing.assert_array_equal(values(raster.read(content, "file")), expected)
    turned = raster.read(jpeg(pixels, exif=b"Exif\0\0" + block), "file")
    np.testing.assert_array_equal(values(turned), UPRIGHT[orientation](values(raster.read(jpeg(pixels), "file"))))


COLOUR = channels(breast(8), 3, False)
COLOUR[40, 10] = (200, 201, 200)
CLEAR = channels(breast(8), 1, True)
CLEAR[40, 10, 1] = 254
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "colour PNG": (png(COLOUR), "grey, or equal channels", "a colour image"),
    "colour TIFF": (tiff(COLOUR, photometric=2), "grey, or equal channels", "a colour image"),
    "colour JPEG": (jpeg(COLOUR // 2 + np.array([0, 60, 0], np.uint8)), "grey, or equal channels", "a colour image"),
    "CMYK JPEG": (jpeg(breast(8), "CMYK"), "grey", "4 components (CMYK?)"),
    "transparent PNG": (png(CLEAR), "opaque", "not opaque"),
    "transparent TIFF": (tiff(CLEAR, tags={338: [2]}), "opaque", "not opaque"),
    "one transparent grey": (png(breast(8), extra=[chunk(b"tRNS", b"\0\0")]), "opaque", "not opaque"),
    "transparent colours of a PNG": (png(CLEAR[..., [0, 0, 0, 1]]), "opaque", "not opaque"),
    "palette with alpha": (
        tiff(channels(breast(8), 1, True), photometric=3, tags={320: [0] * 768, 338: [2]}),
        "grey, with or without",
        "2",
    ),
    "extra samples that are no alpha": (
        tiff(channels(breast(8), 1, True), tags={338: [0]}),
        "grey, with or without alpha",
        "2",
    ),
    "CMYK TIFF": (tiff(channels(breast(8), 4, False), photometric=5), "grey", "CMYK"),
    "extra samples of no meaning": (tiff(channels(breast(8), 2, False)), "grey, with or without alpha", "2"),
    "TIFF of 32 bits": (tiff(breast(16).astype(np.uint32)), "8 or 16", "32"),
    "TIFF of numbers with a sign": (tiff(breast(16), tags={339: [2]}), "unsigned", "signed"),
    "TIFF of floating point": (tiff(breast(16), tags={339: [3]}), "unsigned", "floating point"),
    "TIFF with JPEG": (tiff(breast(8), tags={259: [7]}), "none, LZW, deflate, PackBits", "number 7"),
    "TIFF of two pages": (tiff(breast(8), pages=2), "expected 1", "found 2. Use --frame first"),
    "animated PNG": (png(breast(8), extra=[chunk(b"acTL", struct.pack(">II", 3, 0))]), "1", "3. Use --frame first"),
    "two JPEGs in one": (jpeg(breast(8)) * 2, "expected 1", "found 2. Use --frame first"),
    "no such orientation": (tiff(breast(8), tags={274: [9]}), "1 to 8", "9"),
    "flat pixels PNG": (png(breast(8), extra=[chunk(b"pHYs", struct.pack(">IIB", 100, 90, 1))]), "square", "100 x 90"),
    "flat pixels JPEG": (jpeg(breast(8), dpi=(300, 150)), "square pixels", "300 x 150"),
    "flat pixels TIFF": (tiff(breast(8), tags={282: [300, 1], 283: [1500, 10]}), "square pixels", "300 x 150"),
    "one value": (png(np.full((40, 40), 7, np.uint8)), "pixels: expected an image", "the value 7 in every pixel"),
    "unknown critical chunk": (png(breast(8), extra=[chunk(b"NeWS", b"")]), "a whole PNG", "critical chunk"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_grey_image_is_refused_with_a_reason(case: str) -> None:
    content, expected, found = REFUSED[case]
    with pytest.raises(DecodeError) as caught:
        decode(content, WHOLE, "scan.img")
    assert expected in str(caught.value) and found in str(caught.value)
    assert str(caught.value).startswith("scan.img")
    assert all(str(part) for part in caught.value.args)


PAGES: dict[str, Any] = {"TIFF of two pages": tiff, "animated PNG": png, "two JPEGs in one": jpeg}


@pytest.mark.parametrize("case", PAGES)
def test_the_first_of_several_pages_is_taken_on_request(case: str) -> None:
    alone = PAGES[case](breast(8))
    assert_same(decode(REFUSED[case][0], replace(WHOLE, frame="first")), decode(alone, WHOLE))


def test_near_square_pixels_are_square() -> None:
    decode(tiff(breast(8), tags={282: [300, 1], 283: [2999, 10]}), WHOLE)
    decode(png(breast(8), extra=[chunk(b"pHYs", struct.pack(">IIB", 0, 0, 0))]), WHOLE)


def huge(kind: str) -> bytes:
    """A few hundred bytes that claim an image of 2**31 pixels."""
    if kind == "PNG":
        content = bytearray(png(breast(8)))
        size = struct.pack(">IIBBBBB", 65536, 32768, 8, 0, 0, 0, 0)
        content[8:33] = chunk(b"IHDR", size)
    elif kind == "JPEG":
        content = bytearray(jpeg(breast(8)))
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 65000, 33000)
    else:
        content = bytearray(tiff(breast(8), tags={256: [65536], 257: [32768], 278: [32768]}))
    return bytes(content)


@pytest.mark.parametrize("kind", raster.MEDIA_TYPES)
def test_a_huge_claim_is_refused_before_memory_is_taken(kind: str) -> None:
    with pytest.raises(DecodeError, match=r"size: expected 1 to \d+ pixels, found|too few"):
        decode(huge(kind), WHOLE)


def test_every_truncation_is_refused() -> None:
    rng = np.random.default_rng(1)
    samples = [FORMS[form](breast(bits)) for form in FORMS for bits in (8, 16)]
    samples += [jpeg(breast(8)), jpeg(breast(8), progressive=True), jpeg(breast(8), "RGB", restart_marker_rows=1)]
    for content in samples:
        for cut in {*rng.integers(0, len(content), 12).tolist(), 0, 1, 8, 33, len(content) - 1}:
            with pytest.raises(DecodeError) as caught:
                decode(content[:cut], WHOLE)
            assert caught.value.expected and caught.value.found


def test_no_flipped_byte_of_a_png_goes_unnoticed() -> None:
    content = png(breast(16, (40, 36)))
    right = decode(content, WHOLE)
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with pytest.raises(DecodeError):
            decode(bytes(damaged), WHOLE)
    assert_same(decode(content + b"more, behind the end", WHOLE), right)


@given(form=st.sampled_from([*sorted(FORMS), "jpeg", "jpeg, progressive"]), data=st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_mutated_bytes_are_an_image_or_a_decode_error(form: str, data: st.DataObject) -> None:
    makers = FORMS | {"jpeg": jpeg, "jpeg, progressive": lambda pixels: jpeg(pixels, progressive=True)}
    content = bytearray(makers[form](breast(8, (40, 36))))
    near = st.one_of(st.integers(0, min(300, len(content) - 1)), st.integers(0, len(content) - 1))
    for place, value in data.draw(st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = value
    with contextlib.suppress(DecodeError):
        assert decode(bytes(content), WHOLE).pixels.shape == (64, 48)


KINDS = {
    "PNG": png(breast(8)), "JPEG": jpeg(breast(8)), "TIFF": tiff(breast(8)), "DICOM": dicom(breast(8)),
    "GIF": b"GIF89a" + bytes(200), "BMP": b"BM\x36\x00" + bytes(200), "WebP": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(200),
    "ZIP": b"PK\x03\x04" + bytes(200), "gzip": b"\x1f\x8b\x08" + bytes(200), "PDF": b"%PDF-1.7\n", "empty": b"",
    "HTML": b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>", "XML": b"<?xml version='1.0'?>", "JSON": b'{"message": "no"}',
    "text": "Zugriff für Sie verweigert".encode(), "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "JPEG 2000": b"\xff\x4f\xff\x51" + bytes(200),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_follows_from_the_first_bytes(name: str) -> None:
    assert raster.kind(KINDS[name][:512]) == name
    assert raster.kind(KINDS[name][:132]) == name


def test_binary_data_have_no_kind() -> None:
    for seed in range(50):
        assert raster.kind(np.random.default_rng(seed).bytes(512)) is None
    assert raster.kind(bytes(512)) is None


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(raster.MEDIA_TYPES) - {"DICOM"}))
def test_what_is_neither_is_refused_by_its_kind(name: str) -> None:
    with pytest.raises(DecodeError, match=f"no DICM after 128 bytes: {raster.described(name)}"):
        decode(KINDS[name], WHOLE)


@pytest.mark.parametrize("suffix", [".dcm", ".DCM", ".dicom"])
@pytest.mark.parametrize("kind", raster.MEDIA_TYPES)
def test_an_image_that_is_called_a_dicom_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"renamed{suffix}"
    file.write_bytes(KINDS[kind])
    with pytest.raises(DecodeError, match=f"a DICOM file, found a {kind} image with another name"):
        decode(file, WHOLE)


@pytest.mark.parametrize("suffix", ["", ".png", ".jpg", ".bin"])
def test_any_other_name_says_nothing(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"scan{suffix}"
    for content in (dicom(breast(8)), KINDS["TIFF"], KINDS["PNG"]):
        file.write_bytes(content)
        assert_same(decode(file, WHOLE), decode(dicom(breast(8)), WHOLE))


def test_nothing_that_a_file_says_in_words_is_in_an_error() -> None:
    text = chunk(b"tEXt", b"Title\0DOE^JANE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in (png(COLOUR, extra=[text]), png(breast(8), extra=[text])[:-20], b"DOE^JANE, 1950"):
            with pytest.raises(DecodeError) as caught:
                decode(content, WHOLE)
            assert "DOE" not in str(caught.value)


def test_the_summary_of_encodings_names_media_types_without_a_warning(tmp_path: Path) -> None:
    rows = pd.DataFrame({"transfer_syntax": ["image/png", uid.JPEG2000Lossless], "seconds": [0.1, 0.2]})
    decoded = ingest.Decoded(rows=rows, failures=pd.DataFrame({"path": []}), new=2, seconds=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = prepare.by_transfer_syntax(decoded, str(tmp_path), 10.0)
    assert {row["transfer_syntax"] for row in table} == {"image/png", "JPEG 2000 Image Compression (Lossless Only)"}
