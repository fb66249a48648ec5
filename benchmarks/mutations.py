"""What ``fuzz.py`` does to a file: each mutation is a function of (random generator, subject, all subjects).

Those whose name begins with "cut" are truncations: none of them may be taken for another image.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from pydicom import uid
from subjects import PIXEL_DATA, Subject, meta_end

NAME = b"DOE^JANE"
"""A patient's name, in places where none belongs: it must reach no error and no log."""

Mutation = Callable[[np.random.Generator, Subject, Sequence[Subject]], bytes]
_SIZES = (0, 1, 2, 0x7F, 0xFF, 0x3FFF, 0x4000, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
_LENGTHS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_NUMBERS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
)  # fmt: skip


def mutate(rng: np.random.Generator, subjects: Sequence[Subject]) -> tuple[Subject, str, bytes]:
    """Choose a subject and a mutation; returns both, and the damaged file."""
    subject = subjects[rng.integers(len(subjects))]
    names = list(MUTATIONS)
    shares = np.array([share for share, _ in MUTATIONS.values()], float)
    name = names[rng.choice(len(names), p=shares / shares.sum())]
    return subject, name, MUTATIONS[name][1](rng, subject, subjects)


def place(rng: np.random.Generator, data: bytes | bytearray) -> int:
    """Any index, the first and last bytes more often than others."""
    kind = rng.integers(6)
    near = min(len(data), 80)
    if kind == 0:
        return int(rng.integers(near + 1))
    return int(len(data) - rng.integers(1, near + 1) if kind == 1 and near else rng.integers(len(data) + 1))


def _cut_file(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """All lengths stay as they were."""
    content = subject.pack(subject.content)
    return content[: min(place(rng, content), len(content) - 1)]


def _cut_stream(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """A well-formed file, in which the codestream, or the values, end early."""
    # By two bytes at least: stored values without their last byte, filled to an even length, are as long as before.
    return subject.pack(subject.wrap(subject.stream[: min(place(rng, subject.stream), len(subject.stream) - 2)]))


def _cut_and_close(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """The same with an end marker: what a careful copier of broken streams would write."""
    cut = subject.stream[: int(rng.integers(subject.body, max(subject.body + 1, len(subject.stream) - 2)))]
    is_marked = uid.UID(subject.syntax).is_encapsulated and subject.syntax != uid.RLELossless
    return subject.pack(subject.wrap(cut + b"\xff\xd9" * is_marked))


def _zone(rng: np.random.Generator, subject: Subject) -> tuple[int, int]:
    """A part of the file: its header, the header of its codestream, or (half of the time) its data."""
    body = min(len(subject.content) - 1, subject.content.find(subject.stream[:64], subject.pixels_at) + subject.body)
    zones = [
        (132, subject.pixels_at),
        (subject.pixels_at, max(body, subject.pixels_at + 12)),
        (body, len(subject.content)),
    ]
    return zones[min(2, rng.integers(4))]


def _edit(change: Callable[[np.random.Generator, bytearray, int, int], None]) -> Mutation:
    """A mutation of one zone of the file; of a deflated one, at times, after it was deflated."""

    def mutation(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
        start, stop = _zone(rng, subject)
        if subject.deflated and rng.random() < 0.5:
            content = bytearray(subject.pack(subject.content))
            change(rng, content, meta_end(subject.content), len(content))
            return bytes(content)
        content = bytearray(subject.content)
        change(rng, content, start, stop)
        return subject.pack(bytes(content))

    return mutation


def _flip(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    for _ in range(int(2 ** rng.uniform(0, 6))):
        content[rng.integers(start, stop)] ^= 1 << int(rng.integers(8))


def _block(rng: np.random.Generator, start: int, stop: int) -> tuple[int, int]:
    length = min(int(2 ** rng.uniform(0, 10)), stop - start)
    first = int(rng.integers(start, stop - length + 1))
    return first, first + length


def _blank(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    first, last = _block(rng, start, stop)
    content[first:last] = bytes([rng.choice([0, 255])]) * (last - first)


def _noise(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    first, last = _block(rng, start, stop)
    content[first:last] = rng.bytes(last - first)


def _swap(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    a, b = _block(rng, start, stop)
    c = int(rng.integers(start, stop - (b - a) + 1))
    content[a:b], content[c : c + b - a] = content[c : c + b - a], content[a:b]


def _duplicate(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    first, last = _block(rng, start, stop)
    content[last:last] = content[first:last]


def _remove(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    first, last = _block(rng, start, stop)
    del content[first:last]


def _insert(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    first, last = _block(rng, start, stop)
    content[first:first] = rng.bytes(last - first)


def _name(rng: np.random.Generator, content: bytearray, start: int, stop: int) -> None:
    first = int(rng.integers(start, stop))
    content[first : first + len(NAME)] = NAME


def _in_stream(change: Callable[[np.random.Generator, bytearray, int, int], None]) -> Mutation:
    """A mutation of the data of the codestream, in a file whose lengths are right."""

    def mutation(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
        stream = bytearray(subject.stream)
        change(rng, stream, subject.body, len(stream) - 2)
        return subject.pack(subject.wrap(bytes(stream)))

    return mutation


def _value(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """One element has a random value, or a name as its value, of the length that it had."""
    element = subject.elements[rng.integers(len(subject.elements))]
    value = rng.bytes(element.length) if rng.random() < 0.5 else (NAME * (1 + element.length // 8))[: element.length]
    content = bytearray(subject.content)
    content[element.start : element.start + element.length] = value
    return subject.pack(bytes(content))


def _named(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """One element has a name as its value, with the length of the name."""
    element = subject.elements[rng.integers(len(subject.elements))]
    length = len(NAME).to_bytes(element.length_bytes, _order(subject))
    before = subject.content[: element.start - element.length_bytes]
    return subject.pack(before + length + NAME + subject.content[element.start + element.length :])


def _order(subject: Subject) -> str:
    return "big" if subject.syntax == uid.ExplicitVRBigEndian else "little"


def _lengths(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """One length is another: that of an element, of Pixel Data or of a fragment."""
    implicit = uid.UID(subject.syntax).is_implicit_VR
    places = [(element.start - element.length_bytes, element.length_bytes) for element in subject.elements]
    pixels = subject.pixels_at + (4 if implicit else 8)
    places = [places[rng.integers(len(places))], (pixels, 4), (pixels + 8, 4), (pixels + 16, 4)]
    place, size = places[rng.integers(4 if uid.UID(subject.syntax).is_encapsulated else 2)]
    huge = _LENGTHS if size == 4 else _SIZES
    length = int(huge[rng.integers(len(huge))] if rng.random() < 0.5 else rng.integers(2 ** int(rng.integers(1, 24))))
    content = bytearray(subject.content)
    content[place : place + size] = (length % 256**size).to_bytes(size, _order(subject))
    return subject.pack(bytes(content))


def _bomb(rng: np.random.Generator, subject: Subject, _: Sequence[Subject]) -> bytes:
    """Sizes and depths that cannot be: in the header, in the codestream, or, agreeing with each other, in both."""
    rows, columns = (int(_SIZES[k] if k < len(_SIZES) else 2 ** (k - 3)) for k in rng.integers(0, 18, 2))
    where = rng.integers(4)
    header = {"Rows": rows, "Columns": columns}
    if where == 0:
        header = {_NUMBERS[rng.integers(len(_NUMBERS))]: rows}
    stream = subject.stream if where <= 1 else _with_size(subject.stream, rows % 65536, columns % 65536)
    head = bytearray(subject.content[: subject.pixels_at])
    for element in subject.elements if where != 2 else ():
        if element.keyword in header:
            value = (header[element.keyword] % 65536).to_bytes(2, _order(subject))
            head[element.start : element.start + 2] = value
    bombed = dataclasses.replace(subject, content=bytes(head) + subject.content[subject.pixels_at :])
    return subject.pack(bombed.wrap(stream))


def _with_size(stream: bytes, rows: int, columns: int) -> bytes:
    """A codestream that claims another size: in SIZ (T.800 A.5.1), or in a JPEG frame header (T.81 B.2.2)."""
    changed = bytearray(stream)
    if (siz := stream.find(b"\xff\x51")) >= 0:
        struct.pack_into(">2I", changed, siz + 6, columns, rows)
        if struct.unpack_from(">2I", stream, siz + 22) == struct.unpack_from(">2I", stream, siz + 6):
            struct.pack_into(">2I", changed, siz + 22, columns, rows)
        return bytes(changed)
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7"):
        if (sof := stream.find(marker)) >= 0:
            struct.pack_into(">2H", changed, sof + 5, rows, columns)
            break
    return bytes(changed)


def _splice(rng: np.random.Generator, subject: Subject, subjects: Sequence[Subject]) -> bytes:
    """The codestream of another file, or its end behind the beginning of this one."""
    others = [other for other in subjects if other.codec == subject.codec] if rng.random() < 0.7 else subjects
    other = others[rng.integers(len(others))].stream
    if rng.random() < 0.5:
        return subject.pack(subject.wrap(other))
    place = int(rng.integers(len(subject.stream)))
    return subject.pack(subject.wrap(subject.stream[:place] + other[int(rng.integers(len(other))) :]))


def _deflate_bomb(rng: np.random.Generator, subject: Subject, subjects: Sequence[Subject]) -> bytes:
    """Megabytes that claim gigabytes of zeros: as pixels, or in an element before them."""
    if not subject.deflated:
        return _bomb(rng, subject, subjects)
    start = meta_end(subject.content)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    head = subject.content[start : subject.pixels_at]
    tag = PIXEL_DATA + b"OW\0\0" if rng.random() < 0.5 else b"\xe1\x7f\x10\x00OB\0\0"
    head = deflater.compress(head + tag + struct.pack("<I", 0xFFFFFFF0)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return subject.content[:start] + head + _zeros() * 512


@functools.cache
def _zeros() -> bytes:
    """4 MiB of zeros, deflated so that the block can be repeated."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(bytes(1 << 22)) + deflater.flush(zlib.Z_FULL_FLUSH)


def block_edits() -> dict[str, Callable[[np.random.Generator, bytearray, int, int], None]]:
    """Edits of a part of any file, by name: ``edit(rng, content, start, stop)``."""
    return {
        "flipped bits": _flip, "zeros or ones": _blank, "noise": _noise, "swapped blocks": _swap,
        "duplicated block": _duplicate, "removed block": _remove, "inserted bytes": _insert, "name anywhere": _name,
    }  # fmt: skip


MUTATIONS: dict[str, tuple[float, Mutation]] = {
    "cut file": (3, _cut_file),
    "cut stream": (3, _cut_stream),
    "cut stream, closed": (2, _cut_and_close),
    "flipped bits": (4, _edit(_flip)),
    "zeros or ones": (2, _edit(_blank)),
    "noise": (1, _edit(_noise)),
    "swapped blocks": (1, _edit(_swap)),
    "duplicated block": (1, _edit(_duplicate)),
    "removed block": (1, _edit(_remove)),
    "inserted bytes": (1, _edit(_insert)),
    "name anywhere": (1, _edit(_name)),
    "block removed inside": (1, _in_stream(_remove)),
    "bytes inserted inside": (1, _in_stream(_insert)),
    "block duplicated inside": (0.5, _in_stream(_duplicate)),
    "element's value": (1.5, _value),
    "element is a name": (1.5, _named),
    "lengths": (1.5, _lengths),
    "size bomb": (1.5, _bomb),
    "deflate bomb": (0.1, _deflate_bomb),
    "spliced": (1.5, _splice),
}
"""Every mutation by name, with its share."""
