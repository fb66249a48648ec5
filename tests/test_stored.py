import numpy as np
import pytest

from mammoray import encoders, header, machines, stored
from mammoray.machines import Encoding
from mammoray.wavelet import low_pass

PIXELS = np.clip(np.random.default_rng(0).normal(2048, 200, (97, 130)), 900, 3100).astype(np.uint16)


@pytest.mark.parametrize("signed", [False, True])
def test_layers_that_stand_outermost_are_skipped_by_pillow(signed: bool) -> None:
    pixels = PIXELS.astype(np.int16) - np.int16(2048) if signed else PIXELS
    codestream = encoders.jpeg2000(pixels, 12, layers=(8, 3))
    read = header.read(machines.make_dicom(pixels, Encoding(), codestream=codestream), "a")
    pyramid, expected = stored.open_frame(read), pixels
    for r in range(4):
        assert np.array_equal(pyramid.level(r), expected), r
        expected = low_pass(expected)
