"""PNG, JPEG and TIFF as a mammogram's file: from its bytes to the header and frame that the rest of a decode takes.

What a file is, its first bytes say, never its name. Its pixels are what they would be in an uncompressed DICOM without
a window: all values of 8 or 16 bits, MONOCHROME2 (MONOCHROME1 for a TIFF whose low values are bright); both give the
same image. A colour image of equal channels is grey, exactly; every other colour, alpha that shows something, and
several pages are refused, and so is whatever is truncated or fails its checksums. The orientation that Exif or TIFF
states (1 to 8) is applied, as the standards ask for; gamma, colour profiles and resolutions are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom

from mammoray import jpeg, png, tiff
from mammoray.errors import DecodeError
from mammoray.header import MAX_PIXELS, Header

Image = npt.NDArray[Any]

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "TIFF": "image/tiff"}
"""What is read here, by :func:`kind`; ``Header.transfer_syntax`` holds the media type."""

FIRST = 512
"""Bytes that tell what a file is."""

_DICOM_NAMES = (".dcm", ".dicom")
_AGAIN = "Copy the file again from its source."
_LEAVE = "Leave the file out of the CSV."
_GREY = "Convert the image to 8 or 16 bits of grey, or leave it out of the CSV."
_SQUARE = 0.01  # Share by which the sides of a pixel may differ; resolutions are often rounded.
_TOLD = (imagecodecs.PngError, imagecodecs.Jpeg8Error, imagecodecs.TiffError)  # Their texts quote nothing of a file.

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"), (b"BM", "BMP"), (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"PK\x03\x04", "ZIP"), (b"PK\x05\x06", "ZIP"), (b"\x1f\x8b", "gzip"), (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "RAR"), (b"%PDF", "PDF"), (b"\x89HDF", "HDF5"), (b"\x93NUMPY", "NumPy"),
    (b"version https://git-lfs", "Git LFS"),
)  # fmt: skip
_DESCRIBED = {
    "DICOM": "a DICOM file", "ZIP": "a ZIP archive", "gzip": "a gzip file", "7z": "a 7z archive",
    "RAR": "a RAR archive",
    "PDF": "a PDF document", "HTML": "an HTML page", "XML": "an XML document", "JSON": "a JSON document",
    "HDF5": "an HDF5 file", "NumPy": "a NumPy array", "Git LFS": "a Git LFS pointer without its file", "text": "text",
    "empty": "an empty file",
}  # fmt: skip

_UPRIGHT: dict[int, Callable[[Image], Image]] = {  # Of each orientation; TIFF 6.0 section 8.
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.T,
    6: lambda image: image.T[:, ::-1],
    7: lambda image: image.T[::-1, ::-1],
    8: lambda image: image.T[::-1],
}


def kind(first_bytes: bytes) -> str | None:
    """What a file is, by its first bytes.

    Parameters
    ----------
    first_bytes : bytes
        At least 132 of them, or the whole file; 512 tell text from binary data well.

    Returns
    -------
    str or None
        DICOM, PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000, ZIP, gzip, 7z, RAR, PDF, HDF5, NumPy, HTML, XML, JSON,
        Git LFS, text, empty; None where nothing is recognised.

    Examples
    --------
    >>> kind(bytes(128) + b"DICM"), kind(b"GIF89a"), kind(b"id,path"), kind(bytes(200))
    ('DICOM', 'GIF', 'text', None)
    """
    if first_bytes[128:132] == b"DICM":
        return "DICOM"
    if first_bytes[:4] == b"RIFF" and first_bytes[8:12] == b"WEBP":
        return "WebP"
    found = next((name for magic, name in _MAGIC if first_bytes.startswith(magic)), None)
    return found or _text(first_bytes)


def _text(first_bytes: bytes) -> str | None:
    if not first_bytes:
        return "empty"
    # A multi-byte character may be cut at the end; a byte order mark stands before some texts.
    start = first_bytes.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "ignore").lstrip().lower()
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in first_bytes):
        return None
    for begin, name in (("<!doctype html", "HTML"), ("<html", "HTML"), ("<", "XML"), ("{", "JSON"), ("[", "JSON")):
        if start.startswith(begin):
            return name
    return "text" if sum(byte > 127 for byte in first_bytes) * 4 <= len(first_bytes) else None


def described(found: str) -> str:
    """A kind with its article, for a sentence: "a PNG image", "an HTML page"."""
    return _DESCRIBED.get(found, f"a {found} image")


def told(first_bytes: bytes, name: str) -> str | None:
    """What a file is, if it can be an image under this name.

    Parameters
    ----------
    first_bytes : bytes
        The first :data:`FIRST` bytes, or the whole file.
    name : str
        What is called ``.dcm`` or ``.dicom`` must be a DICOM.

    Returns
    -------
    str or None
        DICOM, or a key of :data:`MEDIA_TYPES`; None where nothing is recognised.

    Raises
    ------
    DecodeError
        Anything else.
    """
    found = kind(first_bytes)
    if found is None or found == "DICOM":
        return found
    what = described(found)
    if found not in MEDIA_TYPES:
        expected, remedy = "a DICOM file, or a PNG, JPEG or TIFF image", "Check that the file is an image, and whole."
        raise DecodeError(name, expected, f"no DICM after 128 bytes: {what}", remedy)
    if name.lower().endswith(_DICOM_NAMES):
        remedy = "Find out where the DICOM went, or give the image its own suffix."
        raise DecodeError(name, "a DICOM file", f"{what} with another name", remedy)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Picture:
    """Decoded samples, (h, w) or (h, w, channels) with alpha last, and what they mean."""

    samples: Image
    bits: int
    inverted: bool
    orientation: int


def read(content: bytes | memoryview, name: str, frame: str = "only") -> Header:
    """Decode a raster image to the header and frame that an uncompressed DICOM of it would have.

    Parameters
    ----------
    content : bytes-like
        A whole PNG, JPEG or TIFF file.
    name : str
        How errors call it.
    frame : {"only", "first"}
        Whether several frames or pages are an error. The first of an animated PNG is its still image.

    Returns
    -------
    Header
        ``transfer_syntax`` is a media type, ``frame`` holds little-endian pixels.

    Raises
    ------
    DecodeError
        Truncated, damaged, colour, alpha, several frames, pixels that are not square, or a size that cannot be.
    """
    view = memoryview(content)
    found = kind(bytes(view[:132]))
    if found not in _READERS:
        expected = "a PNG, JPEG or TIFF image"
        raise DecodeError(name, expected, described(found) if found else "something else", _LEAVE)
    try:
        picture = _READERS[found](view, name, frame)
    except (DecodeError, MemoryError, ImportError):
        raise  # The last two say nothing about the file.
    except (ValueError, *_TOLD) as error:
        raise DecodeError(name, f"a whole {found} image", str(error), _AGAIN) from None
    except Exception as error:
        raise DecodeError(name, f"a whole {found} image", f"{type(error).__name__} in its decoder", _AGAIN) from None
    if picture.orientation not in _UPRIGHT:
        raise DecodeError(f"{name}: Orientation", "1 to 8", str(picture.orientation), "Correct the tag.")
    grey = _UPRIGHT[picture.orientation](_grey(picture, name))
    return Header(
        name=name, transfer_syntax=MEDIA_TYPES[found], rows=grey.shape[0], columns=grey.shape[1],
        bits_allocated=8 * grey.itemsize, bits_stored=picture.bits, signed=False, inverted=picture.inverted, frames=1,
        laterality=None, grouped=False, padding=None, dataset=pydicom.Dataset(),
        frame=memoryview(np.ascontiguousarray(grey, grey.dtype.newbyteorder("<")).data).cast("B"),
    )  # fmt: skip


def _grey(picture: _Picture, name: str) -> Image:
    """The one channel that says it all, (h, w)."""
    samples = picture.samples
    if samples.ndim == 2:
        return samples
    channels = samples.shape[2]
    if channels in (2, 4) and not (samples[..., -1] == 2**picture.bits - 1).all():
        found = "pixels that are not opaque"
        raise DecodeError(f"{name}: alpha", "none, or an opaque image", found, "Remove the alpha channel.")
    if channels > 2 and not all(np.array_equal(samples[..., 0], samples[..., other]) for other in (1, 2)):
        raise DecodeError(f"{name}: colour", "grey, or equal channels", "a colour image", _LEAVE)
    return np.asarray(samples[..., 0])


def _check(name: str, shape: tuple[int, int, int], frames: int, frame: str, density: tuple[float, float]) -> None:
    """What can be refused before memory is taken. ``shape``: rows, columns, samples of a pixel."""
    rows, columns, samples = shape
    if not 0 < rows * columns * samples <= MAX_PIXELS:
        found = f"{rows} x {columns} of {samples} samples"
        raise DecodeError(f"{name}: size", f"1 to {MAX_PIXELS} pixels", found, f"{_AGAIN} Or leave it out of the CSV.")
    if frames != 1 and frame == "only":
        remedy = "Use --frame first, or extract the frame that is wanted."
        raise DecodeError(f"{name}: frames or pages", "1", str(frames), remedy)
    across, down = density
    if across > 0 and down > 0 and abs(across - down) > _SQUARE * max(across, down):
        found, remedy = f"{across:g} x {down:g} a length", "Resample the image to square pixels."
        raise DecodeError(f"{name}: resolution", "square pixels", found, remedy)


def _orientation(exif: memoryview | None) -> int:
    return 1 if exif is None else tiff.first(tiff.directories(exif, 1)[0], tiff.ORIENTATION, 1)


def _read_png(content: memoryview, name: str, frame: str) -> _Picture:
    file = png.parse(content)
    _check(name, (file.rows, file.columns, file.samples), file.frames, frame, file.density)
    samples = png.decode(content)
    return _Picture(
        samples=samples, bits=8 * samples.itemsize, inverted=False, orientation=_orientation(file.exif)
    )  # fmt: skip


def _read_jpeg(content: memoryview, name: str, frame: str) -> _Picture:
    stream = jpeg.parse(content)
    _check(name, (stream.rows, stream.columns, stream.components), 1 + stream.more, frame, stream.density)
    if stream.components not in (1, 3):
        raise DecodeError(f"{name}: colour", "grey", f"{stream.components} components (CMYK?)", _LEAVE)
    samples = jpeg.decode(content[: stream.end + 2], stream.end)
    return _Picture(
        samples=samples, bits=stream.precision, inverted=False, orientation=_orientation(stream.exif)
    )  # fmt: skip


def _read_tiff(content: memoryview, name: str, frame: str) -> _Picture:
    pages = tiff.directories(content)
    page = pages[0]
    across, down = (_fraction(page, field) for field in (tiff.DENSITY_X, tiff.DENSITY_Y))
    shape = (tiff.first(page, tiff.ROWS), tiff.first(page, tiff.COLUMNS), tiff.first(page, tiff.SAMPLES, 1))
    _check(name, shape, len(pages), frame, (across, down))
    bits = _tiff_bits(page, name)
    photometric = _tiff_photometric(page, name)
    tiff.check(content, page)
    samples = tiff.decode(content, page)
    if samples.shape[:2] != shape[:2] or samples.dtype != np.dtype(f"u{bits // 8}"):
        raise ValueError(f"{samples.shape} of {samples.dtype} instead of {shape[:2]} of {bits} bits: damaged")
    if photometric == _PALETTE:
        samples, bits = tiff.look_up(samples, page)
    return _Picture(
        samples=samples, bits=bits, inverted=photometric == _WHITE_IS_ZERO,
        orientation=tiff.first(page, tiff.ORIENTATION, 1),
    )  # fmt: skip


_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3


def _fraction(page: tiff.Directory, field: int) -> float:
    numbers = page.get(field, ())
    return numbers[0] / numbers[1] if len(numbers) == 2 and numbers[1] else 0.0


def _tiff_bits(page: tiff.Directory, name: str) -> int:
    """8 or 16, the same for all samples, which are whole numbers without a sign."""
    bits = page.get(tiff.BITS, (1,))
    if set(bits) not in ({8}, {16}):
        raise DecodeError(f"{name}: Bits Per Sample", "8 or 16", "/".join(map(str, bits[:8])), _GREY)
    if (form := set(page.get(tiff.SAMPLE_FORMAT, (1,)))) != {1}:
        names = {2: "signed numbers", 3: "floating point", 5: "complex numbers", 6: "complex numbers"}
        found = names.get(max(form), "another kind of number")
        raise DecodeError(f"{name}: Sample Format", "unsigned whole numbers", found, _GREY)
    if (compression := tiff.first(page, tiff.COMPRESSION, 1)) not in tiff.COMPRESSIONS:
        expected = ", ".join(dict.fromkeys(tiff.COMPRESSIONS.values()))
        raise DecodeError(f"{name}: Compression", expected, f"number {compression}", "Save it with one of these.")
    return bits[0]


def _tiff_photometric(page: tiff.Directory, name: str) -> int:
    """Grey, RGB or a palette, with an alpha channel or without."""
    photometric, samples = tiff.first(page, tiff.PHOTOMETRIC, -1), tiff.first(page, tiff.SAMPLES, 1)
    colours = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1}.get(photometric)
    if colours is None:
        names = {-1: "nothing", 5: "CMYK", 6: "YCbCr", 8: "CIE L*a*b*"}
        raise DecodeError(f"{name}: Photometric", "grey", names.get(photometric, f"number {photometric}"), _GREY)
    alpha = page.get(tiff.EXTRA_SAMPLES, ())
    # Samples whose meaning is not stated are no alpha; TIFF 6.0 section 18.
    if samples != colours + len(alpha) or len(alpha) > 1 or not set(alpha) <= {1, 2} or (alpha and photometric == 3):
        raise DecodeError(f"{name}: Samples Per Pixel", "grey, with or without alpha", str(samples), _GREY)
    return photometric


_READERS: dict[str, Callable[[memoryview, str, str], _Picture]] = {
    "PNG": _read_png,
    "JPEG": _read_jpeg,
    "TIFF": _read_tiff,
}
