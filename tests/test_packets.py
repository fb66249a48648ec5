from itertools import pairwise
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from mammoray import codestream, encoders
from mammoray.wavelet import low_pass


def image(shape: tuple[int, int] = (331, 402)) -> npt.NDArray[np.uint16]:
    """Noise beside an empty background, whose code blocks are not included in any packet."""
    values = np.clip(np.random.default_rng(0).normal(2048, 200, shape), 900, 3100)
    values[:, shape[1] // 3 : shape[1] // 2] = 1500
    return values.astype(np.uint16)


ARRANGED: dict[str, dict[str, Any]] = {
    "LRCP": {},
    "RLCP": {"progression": "RLCP"},
    "RPCL, precincts": {"progression": "RPCL", "precincts": (64, 128)},
    "small precincts": {"progression": "RLCP", "precincts": (32, 32)},
    "CPRL": {"progression": "CPRL"},
    "PLT": {"lengths": True},
    "three levels": {"levels": 3},
}


@pytest.mark.parametrize("kind", ARRANGED)
def test_the_needed_packets_and_no_more_are_kept(kind: str) -> None:
    data = encoders.jpeg2000(image(), 12, **ARRANGED[kind])
    stream = codestream.parse(memoryview(data))
    expected: npt.NDArray[Any] = image()
    sizes = [len(data)]
    for r in range(1, stream.levels + 1):
        expected = low_pass(expected)
        small = codestream.reduced(stream, r)
        sizes.append(len(small))
        assert np.array_equal(imagecodecs.jpeg2k_decode(small), expected)
        # A byte less would be too few: its decoder says so.
        part = small.index(b"\xff\x90")
        length = int.from_bytes(small[part + 6 : part + 10], "big")
        shorter = small[: part + 6] + (length - 1).to_bytes(4, "big") + small[part + 10 : -3] + b"\xff\xd9"
        with pytest.raises(imagecodecs.Jpeg2kError):
            imagecodecs.jpeg2k_decode(shorter)
    assert all(after < before / 2 for before, after in pairwise(sizes[:4])), sizes


def test_headers_that_lead_nowhere_leave_the_whole_to_the_decoder() -> None:
    data = bytearray(encoders.jpeg2000(image(), 12))
    start = data.index(b"\xff\x93") + 2
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = data.copy()
        damaged[start : start + 40] = rng.integers(0, 256, 40, dtype=np.uint8).tobytes()
        small = codestream.reduced(codestream.parse(memoryview(bytes(damaged))), 2)
        assert len(small) <= len(data)
