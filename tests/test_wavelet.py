from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from mammoray import codestream
from mammoray.wavelet import low_pass

SHAPES = [(1, 1), (1, 9), (8, 1), (2, 2), (3, 5), (64, 48), (97, 101), (130, 77)]


def smooth(shape: tuple[int, int], bits: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Away from the ends of the range, so that a codec has nothing to clip."""
    values = np.random.default_rng(seed).normal(2 ** (bits - 1), 2**bits / 20, shape)
    return np.clip(values, 2**bits / 4, 2**bits * 3 / 4).astype(np.uint16)


def textbook(signal: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """ITU-T T.800, F.4.8.1 along the first axis, sample by sample with symmetric extension."""
    n = len(signal)

    def x(i: int) -> Any:
        period = 2 * (n - 1)
        i = abs(i) % period if period else 0
        return signal[min(i, period - i)].astype(np.int64)

    def high(i: int) -> Any:
        return x(2 * i + 1) - ((x(2 * i) + x(2 * i + 2)) >> 1)

    return np.array([x(2 * i) + ((high(i - 1) + high(i) + 2) >> 2) for i in range((n + 1) // 2)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_it_is_the_filter_of_the_standard(shape: tuple[int, int], bits: int) -> None:
    image = smooth(shape, bits)
    expected = textbook(image) if shape[0] > 1 else image
    expected = textbook(expected.T).T if shape[1] > 1 else expected
    assert np.array_equal(low_pass(image), expected)


@pytest.mark.parametrize("shape", [s for s in SHAPES if min(s) > 1])
def test_its_levels_are_those_of_a_jpeg2000_codestream(shape: tuple[int, int]) -> None:
    image = smooth(shape, 12)
    data = imagecodecs.jpeg2k_encode(
        image, level=0, reversible=True, codecformat="j2k", bitspersample=12, resolutions=4
    )
    stream = codestream.parse(memoryview(data))
    assert stream.levels == stream.halvings
    level: npt.NDArray[Any] = image
    for r in range(1, stream.levels + 1):
        level = low_pass(level)
        assert np.array_equal(imagecodecs.jpeg2k_decode(codestream.reduced(stream, r)), level), r


def test_signed_and_flat_images_stay_what_they_are() -> None:
    image = smooth((33, 40), 12).astype(np.int16)
    assert np.array_equal(low_pass(image - np.int16(2048)), low_pass(image) - 2048)
    assert np.all(low_pass(np.full((21, 34), 77, np.uint8)) == 77)
