import struct
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from mammoray import codestream, encoders
from mammoray.wavelet import low_pass

ARRANGED: dict[str, dict[str, Any]] = {
    "LRCP": {},
    "RLCP": {"progression": "RLCP", "layers": (8, 3)},
    "RPCL": {"progression": "RPCL", "precincts": (64, 64)},
    "PCRL": {"progression": "PCRL"},
    "CPRL": {"progression": "CPRL", "layers": (6,)},
    "tiles": {"tiles": (64, 96), "levels": 4},
    "tile parts": {"parts": 3, "lengths": True},
    "tiles and parts": {"tiles": (96, 64), "parts": 2, "levels": 3, "progression": "RPCL"},
    "JP2": {"wrapped": True},
    "no levels": {"levels": 0},
}
NOT_IN_ORDER: dict[str, dict[str, Any]] = {
    "layers outermost": {"layers": (8, 3)},
    "positions outermost": {"progression": "PCRL", "precincts": (64, 64)},
}


def image(bits: int = 12, shape: tuple[int, int] = (203, 158)) -> npt.NDArray[np.uint16]:
    values = np.random.default_rng(bits).normal(2 ** (bits - 1), 2**bits / 20, shape)
    return np.clip(values, 2**bits / 4, 2**bits * 3 / 4).astype(np.uint16)


@pytest.mark.parametrize("kind", ARRANGED)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_shorter_header_makes_a_whole_codestream_of_the_smaller_image(kind: str, bits: int) -> None:
    stream = codestream.parse(memoryview(encoders.jpeg2000(image(bits), bits, **ARRANGED[kind])))
    assert (stream.rows, stream.columns, stream.precision) == (203, 158, bits)
    assert stream.levels == stream.halvings == ARRANGED[kind].get("levels", 5)
    level: npt.NDArray[Any] = image(bits)
    for r in range(stream.levels + 1):
        got = imagecodecs.jpeg2k_decode(codestream.reduced(stream, r))
        assert got.shape == (-(-203 >> r), -(-158 >> r))
        if "tiles" not in ARRANGED[kind]:
            assert np.array_equal(got, level), r
        else:  # Each tile is extended at its own borders.
            assert np.abs(got.astype(float) - level).mean() < 2**bits / 50
        level = low_pass(level)


@pytest.mark.parametrize("kind", NOT_IN_ORDER)
def test_where_low_resolutions_do_not_come_first_none_are_offered(kind: str) -> None:
    stream = codestream.parse(memoryview(encoders.jpeg2000(image(), 12, **NOT_IN_ORDER[kind])))
    assert stream.levels == 0
    assert stream.halvings == 5


def test_tiles_of_an_odd_size_are_not_halved_past_it() -> None:
    stream = codestream.parse(memoryview(encoders.jpeg2000(image(), 12, tiles=(100, 100), levels=4)))
    assert stream.levels == 2
    assert imagecodecs.jpeg2k_decode(codestream.reduced(stream, 2)).shape == (51, 40)


@pytest.mark.parametrize("precincts", [None, (128, 128)])
def test_the_irreversible_wavelet_is_reduced_too(precincts: tuple[int, int] | None) -> None:
    data = imagecodecs.jpeg2k_encode(image(), level=70, reversible=False, codecformat="j2k", bitspersample=12)
    stream = codestream.parse(memoryview(data))
    assert not stream.reversible
    level: npt.NDArray[Any] = image()
    for r in range(1, 4):
        level = low_pass(level)
        got = imagecodecs.jpeg2k_decode(codestream.reduced(stream, r)).astype(int)
        # Another filter, but of the same image at the same place.
        assert np.abs(got - level).mean() < 60


def test_signed_high_throughput_and_padding_are_seen() -> None:
    signed = image().astype(np.int16) - np.int16(2048)
    assert codestream.parse(memoryview(encoders.jpeg2000(signed, 12))).signed
    data = encoders.jpeg2000(image(), 12)
    padded = codestream.parse(memoryview(data + bytes(5)))
    assert bytes(padded.data) == data
    if hasattr(imagecodecs, "htj2k_encode"):
        assert codestream.parse(memoryview(encoders.htj2k(image(), 16))).high_throughput


def test_a_length_that_is_left_open_reaches_to_the_end_marker() -> None:
    data = bytearray(encoders.jpeg2000(image(), 12))
    part = data.index(b"\xff\x90")
    data[part + 6 : part + 10] = bytes(4)  # Psot = 0, T.800 A.4.2.
    stream = codestream.parse(memoryview(bytes(data) + bytes(3)))
    assert bytes(stream.data) == data
    assert np.array_equal(imagecodecs.jpeg2k_decode(codestream.reduced(stream, 1)), low_pass(image()))


@pytest.mark.parametrize("kind", ["LRCP", "tiles", "tile parts", "JP2"])
@pytest.mark.parametrize("tail", [b"", b"\xff\xd9", bytes(20)])
def test_no_truncation_goes_unnoticed(kind: str, tail: bytes) -> None:
    data = encoders.jpeg2000(image(), 12, **ARRANGED[kind])
    ends_of_parts = [i for i in range(len(data)) if data[i : i + 4] == b"\xff\x90\x00\x0a"]
    for cut in [*range(0, len(data) - 2, 131), *ends_of_parts]:
        with pytest.raises(ValueError, match="codestream"):
            codestream.parse(memoryview(data[:cut] + tail))


def test_colour_and_a_tile_part_with_settings_of_its_own_are_seen() -> None:
    colour = imagecodecs.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), level=0, codecformat="j2k")
    with pytest.raises(ValueError, match="3 components"):
        codestream.parse(memoryview(colour))
    data = encoders.jpeg2000(image(), 12)
    part, data_start = data.index(b"\xff\x90"), data.index(b"\xff\x93")
    own = data[data.index(b"\xff\x52") :][:14]
    longer = bytearray(data[:data_start] + own + data[data_start:])
    struct.pack_into(">I", longer, part + 6, struct.unpack_from(">I", data, part + 6)[0] + len(own))
    assert codestream.parse(memoryview(bytes(longer))).levels == 0
