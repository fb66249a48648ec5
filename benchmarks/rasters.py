"""The PNG, JPEG and TIFF files that ``fuzz.py`` damages, and how: as in ``mutations.py``, "cut" names a truncation."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from mutations import NAME, block_edits, place
from PIL import Image as Pillow
from PIL import PngImagePlugin
from subjects import breast

_TAGS = (254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 282, 283, 284, 322, 323, 324, 325, 338, 339)
_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True, slots=True)
class Raster:
    """An undamaged raster image; the fields that ``fuzz.py`` reads of a DICOM subject."""

    name: str
    codec: str
    content: bytes
    frames: int = 1

    def pack(self, content: bytes) -> bytes:
        """``content`` as it stands in a file."""
        return content


def all_rasters() -> list[Raster]:
    """Every raster subject, always the same ones in the same order."""
    return [*_pngs(), *_jpegs(), *_tiffs()]


def _pngs() -> Iterator[Raster]:
    for bits in (8, 16):
        pixels = breast(bits, False, bits).astype(f"u{bits // 8}")
        yield Raster(name=f"{bits} bits", codec="PNG", content=bytes(imagecodecs.png_encode(pixels)))
        colour = np.repeat(pixels[..., None], 3, axis=2)
        yield Raster(name=f"{bits} bits, rgb", codec="PNG", content=bytes(imagecodecs.png_encode(colour)))
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", NAME.decode())
    palette = Pillow.fromarray(breast(8, False, 9).astype(np.uint8)).convert("P")
    yield Raster(name="palette and a name", codec="PNG", content=_saved(palette, "PNG", pnginfo=info, dpi=(300, 300)))


def _jpegs() -> Iterator[Raster]:
    options: dict[str, dict[str, Any]] = {
        "baseline": {}, "optimised": {"optimize": True}, "progressive": {"progressive": True},
        "restarts": {"restart_marker_rows": 1},
        "progressive, restarts": {"progressive": True, "restart_marker_blocks": 5},
    }  # fmt: skip
    for k, (name, option) in enumerate(options.items()):
        grey = Pillow.fromarray(breast(8, False, 20 + k).astype(np.uint8))
        exif = Pillow.Exif()
        exif[0x0112], exif[0x013B] = 6, NAME.decode()  # Orientation, Artist.
        yield Raster(name=name, codec="JPEG", content=_saved(grey, "JPEG", quality=90, exif=exif, **option))
        content = _saved(grey.convert("RGB"), "JPEG", quality=90, subsampling=2, **option)
        yield Raster(name=f"{name}, colour", codec="JPEG", content=content)


def _tiffs() -> Iterator[Raster]:
    for bits in (8, 16):
        image = Pillow.fromarray(breast(bits, False, 30 + bits).astype(f"u{bits // 8}"))
        for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
            content = _saved(image, "TIFF", compression=compression, tiffinfo={278: 16, 315: NAME.decode()})
            yield Raster(name=f"{bits} bits, {compression}", codec="TIFF", content=content)
    pages = [Pillow.fromarray(breast(8, False, 40).astype(np.uint8))] * 2
    content = _saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    yield Raster(name="two pages", codec="TIFF", content=content, frames=2)


def _saved(image: Pillow.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def mutate(rng: np.random.Generator, subjects: list[Raster]) -> tuple[Raster, str, bytes]:
    """Choose a subject and a mutation; returns both, and the damaged file."""
    subject = subjects[rng.integers(len(subjects))]
    names = list(_MUTATIONS)
    shares = np.array([share for share, _ in _MUTATIONS.values()], float)
    name = names[rng.choice(len(names), p=shares / shares.sum())]
    return subject, name, _MUTATIONS[name][1](rng, subject)


Mutation = Callable[[np.random.Generator, Raster], bytes]


def _cut(rng: np.random.Generator, subject: Raster) -> bytes:
    return subject.content[: min(place(rng, subject.content), len(subject.content) - 1)]


def _cut_and_close(rng: np.random.Generator, subject: Raster) -> bytes:
    """Pixels that end early in a file that is well-formed otherwise."""
    content = subject.content
    if subject.codec == "JPEG":
        start = content.index(b"\xff\xda") + 12
        return content[: int(rng.integers(start, len(content) - 3))] + b"\xff\xd9"
    if subject.codec == "TIFF":
        return _cut(rng, subject)
    chunks = list(_chunks(content))
    data = b"".join(value for kind, value in chunks if kind == b"IDAT")
    data = data[: int(rng.integers(len(data)))]
    kept = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    return _png([*kept, (b"IDAT", data), (b"IEND", b"")])


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position < len(content):
        (length,) = struct.unpack_from(">I", content, position)
        yield content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        position += 12 + length


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _edit(change: Callable[[np.random.Generator, bytearray, int, int], None]) -> Mutation:
    """A mutation of any place; half of the time of the first bytes, where the structure is."""

    def mutation(rng: np.random.Generator, subject: Raster) -> bytes:
        content = bytearray(subject.content)
        change(rng, content, 0, min(300, len(content)) if rng.random() < 0.5 else len(content))
        return bytes(content)

    return mutation


def _behind_checks(change: Callable[[np.random.Generator, bytearray, int, int], None]) -> Mutation:
    """In a PNG, a mutation of a chunk whose checksum is right again; in a TIFF of its directory."""

    def mutation(rng: np.random.Generator, subject: Raster) -> bytes:
        if subject.codec != "PNG":
            return _field(rng, subject) if subject.codec == "TIFF" else _edit(change)(rng, subject)
        chunks = list(_chunks(subject.content))
        chosen = int(rng.integers(len(chunks) - 1))
        value = bytearray(chunks[chosen][1])
        change(rng, value, 0, len(value))
        chunks[chosen] = chunks[chosen][0], bytes(value)
        return _png(chunks)

    return mutation


def _field(rng: np.random.Generator, subject: Raster) -> bytes:
    """One field of the directory has another number, another count or another type."""
    content = bytearray(subject.content)
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [start + 2 + 12 * k for k in range(count)]
    known = [entry for entry in entries if struct.unpack_from("<H", content, entry)[0] in _TAGS]
    entry = known[rng.integers(len(known))]
    number = _NUMBERS[rng.integers(len(_NUMBERS))] if rng.random() < 0.7 else int(rng.integers(2**32))
    where = rng.integers(6)
    if where == 0:
        struct.pack_into("<H", content, entry + 2, number % 65536)
    else:
        struct.pack_into("<I", content, entry + (4 if where == 1 else 8), number)
    return bytes(content)


def _bomb(rng: np.random.Generator, subject: Raster) -> bytes:
    """A size that cannot be, with right checksums."""
    rows, columns = (int(2 ** rng.uniform(4, 31)) for _ in range(2))
    content = bytearray(subject.content)
    if subject.codec == "PNG":
        header, *others = _chunks(subject.content)
        return _png([(b"IHDR", struct.pack(">II", columns, rows) + header[1][8:]), *others])
    if subject.codec == "JPEG":
        frame = max(content.find(b"\xff\xc0\x00"), content.find(b"\xff\xc2\x00"))
        struct.pack_into(">HH", content, frame + 5, rows % 65536, columns % 65536)
        return bytes(content)
    (start,) = struct.unpack_from("<I", content, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", content, entry, tag, 4, 1, rows if tag == 257 else columns)
    return bytes(content)


def _deflate_bomb(rng: np.random.Generator, subject: Raster) -> bytes:
    """Kilobytes that become as many pixels as a PNG's header says, which are as many as may be, or more."""
    if subject.codec != "PNG":
        return _bomb(rng, subject)
    side = int(2 ** rng.uniform(12, 15))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return _png([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 24))), (b"IEND", b"")])


_EDITS = block_edits()
_MUTATIONS: dict[str, tuple[float, Mutation]] = {
    "cut file": (4, _cut),
    "cut stream, closed": (4, _cut_and_close),
    **{name: (1.5, _edit(change)) for name, change in _EDITS.items()},
    **{f"{name}, checksums right": (1, _behind_checks(change)) for name, change in _EDITS.items()},
    "size bomb": (1.5, _bomb),
    "deflate bomb": (0.2, _deflate_bomb),
}
