import struct
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from mammoray import ljpeg


def encoded(image: npt.NDArray[Any], bits: int, predictor: int = 1) -> npt.NDArray[np.uint8]:
    data = imagecodecs.jpeg8_encode(image, lossless=True, predictor=predictor, bitspersample=bits)
    return np.frombuffer(data, np.uint8)


def images(bits: int, shape: tuple[int, int]) -> list[npt.NDArray[Any]]:
    rng = np.random.default_rng(bits)
    dtype = np.uint8 if bits == 8 else np.uint16
    noise = rng.integers(0, 2**bits, shape)
    half = np.where(np.arange(shape[1]) < shape[1] // 2, 0, noise)  # Background, in runs.
    rare = np.where(rng.random(shape) < 0.001, 2**bits - 1, 1)  # Long codes.
    # Differences whose frequencies halve from one to the next: the longest codes that there are.
    skewed = np.cumsum(2 ** np.minimum(rng.geometric(0.5, shape), bits - 1), axis=1) % 2**bits
    return [image.astype(dtype) for image in (noise, half, rare, skewed, np.full(shape, 3))]


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (9, 1), (40, 61), (300, 200)])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_it_is_bit_exact(bits: int, shape: tuple[int, int]) -> None:
    for image in images(bits, shape):
        decoded = ljpeg.decode(encoded(image, bits))
        assert decoded is not None
        assert np.array_equal(decoded, image)


def test_codes_longer_than_its_window_are_found_bit_by_bit() -> None:
    counts = np.array([1] * 15 + [2] + [0], np.uint8)[:16]
    table = ljpeg._canonical(counts)
    symbols = np.arange(17, dtype=np.uint8)
    assert ljpeg._long_code(0b1111111111111100, table, symbols) == (15, 14)
    assert ljpeg._long_code(0b1111111111111110, table, symbols) == (16, 15)
    assert ljpeg._long_code(0b0000000000000000, table, symbols) == (0, 0)


def by_hand(image: npt.NDArray[np.uint16]) -> bytes:
    """T.81 H with a table whose codes are 1 to 16 bits long: differences of 0 and of 32768 have the longest."""
    symbols = [5, 4, 3, 2, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0, 16]
    codes = {symbol: ((1 << (n + 1)) - 2, n + 1) for n, symbol in enumerate(symbols)}
    bits = ""
    for i, row in enumerate(image.astype(int)):
        before = (image[i - 1, 0] if i else 1 << 15, *row[:-1])
        for value, predicted in zip(row, before, strict=True):
            difference = (int(value) - int(predicted) + 32767) % 65536 - 32767
            category = abs(difference).bit_length()
            code, length = codes[category]
            bits += format(code, f"0{length}b")
            if 0 < category < 16:
                extra = difference if difference > 0 else difference + (1 << category) - 1
                bits += format(extra, f"0{category}b")
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    h, w = image.shape
    frame = struct.pack(">HHBHHB3B", 0xFFC3, 11, 16, h, w, 1, 1, 0x11, 0)
    table = struct.pack(">HHB", 0xFFC4, 19 + len(symbols), 0) + bytes([1] * 16) + bytes(symbols)
    return b"\xff\xd8" + frame + table + struct.pack(">HHB5B", 0xFFDA, 8, 1, 1, 0, 1, 0, 0) + scan + b"\xff\xd9"


def test_codes_of_every_length_and_category_are_read() -> None:
    rng = np.random.default_rng(0)
    differences = (
        rng.integers(0, 2, (50, 40)) * (2 ** rng.integers(0, 15, (50, 40)) - 1) * rng.choice([-1, 1], (50, 40))
    )
    differences[rng.random((50, 40)) < 0.05] = 32768
    differences[:, 0] = 32768 + rng.integers(0, 4096, 50)  # The table has no code for category 15.
    image = (np.cumsum(differences, axis=1) % 65536).astype(np.uint16)
    data = by_hand(image)
    assert np.array_equal(imagecodecs.jpeg8_decode(data), image)
    decoded = ljpeg.decode(np.frombuffer(data, np.uint8))
    assert decoded is not None
    assert np.array_equal(decoded, image)


@pytest.mark.parametrize("predictor", [2, 4, 7])
def test_another_predictor_is_left_to_a_library(predictor: int) -> None:
    assert ljpeg.decode(encoded(images(12, (40, 61))[0], 12, predictor)) is None


def test_fill_bytes_before_a_marker_and_after_the_end_are_no_damage() -> None:
    image = images(12, (40, 61))[0]
    data = encoded(image, 12).tobytes()
    scan = data.index(b"\xff\xda")
    filled = data[:scan] + b"\xff\xff" + data[scan:-2] + b"\xff\xff\xd9\x00"
    decoded = ljpeg.decode(np.frombuffer(filled, np.uint8))
    assert decoded is not None
    assert np.array_equal(decoded, image)
    with pytest.raises(ValueError, match="damaged"):
        ljpeg.decode(np.frombuffer(data + data, np.uint8))


@pytest.mark.parametrize("shape", [(40, 61), (150, 100)])
def test_no_truncation_goes_unnoticed(shape: tuple[int, int]) -> None:
    data = encoded(images(12, shape)[0], 12)
    whole = ljpeg.decode(data)
    assert whole is not None
    start = data.tobytes().index(b"\xff\xda") + 10
    for cut in range(start, len(data) - 1, 7):
        for tail in (b"", b"\xff\xd9"):
            stream = np.frombuffer(data[:cut].tobytes() + tail, np.uint8)
            with pytest.raises(ValueError, match=r"truncated|damaged"):
                ljpeg.decode(stream)


def test_bytes_too_many_or_too_few_are_noticed() -> None:
    data = encoded(images(12, (60, 50))[0], 12).tobytes()
    for changed in (
        data[:-2] + b"\x55\x55\xff\xd9",
        data[:300] + data[304:],
        data[:300] + b"\x12\x34\x56" + data[300:],
    ):
        with pytest.raises(ValueError, match=r"truncated|damaged"):
            ljpeg.decode(np.frombuffer(changed, np.uint8))
