from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import pixels, uid

from mammoray import grey, header, machines
from mammoray.errors import DecodeError
from mammoray.machines import Encoding

BITS = 12
EVERY = np.arange(2**BITS, dtype=np.uint16).reshape(64, 64)


def head(photometric: str = "MONOCHROME2", signed: bool = False, **attributes: Any) -> header.Header:
    stored = EVERY.astype(np.int16) - np.int16(2048) if signed else EVERY
    encoding = Encoding(
        transfer_syntax=uid.ExplicitVRLittleEndian, photometric=photometric, bits_stored=BITS, window=None
    )
    return header.read(machines.make_dicom(stored, encoding, attributes=attributes), "a.dcm")


def lut(first: int, bits: int, values: npt.NDArray[Any], kind: str | None = None) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = values.astype("<u2").tobytes()
    if kind:
        item.ModalityLUTType = kind
    return pydicom.Sequence([item])


WINDOWS: dict[str, Mapping[str, Any]] = {
    "linear": {"WindowCenter": 2000.5, "WindowWidth": 1500},
    "width one": {"WindowCenter": 2000, "WindowWidth": 1},
    "several": {"WindowCenter": [1000, 3000], "WindowWidth": [800, 100], "VOILUTFunction": "LINEAR"},
    "exact": {"WindowCenter": 1800, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
    "rescaled": {"WindowCenter": 500, "WindowWidth": 700, "RescaleSlope": 0.5, "RescaleIntercept": -100},
    "beyond the range": {"WindowCenter": 9000, "WindowWidth": 12000},
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_every_value_is_shown_as_pydicom_shows_it(name: str, signed: bool, photometric: str) -> None:
    read = head(photometric, signed, **WINDOWS[name])
    dataset = pydicom.Dataset(read.dataset)
    values = np.arange(read.lowest, read.highest + 1)
    modality = pixels.apply_modality_lut(values, dataset)
    shown = pixels.apply_windowing(modality, dataset, index=0).astype(float)
    ends = np.sort(pixels.apply_modality_lut(np.array([read.lowest, read.highest]), dataset).astype(float))
    unit = (shown - ends[0]) / (ends[1] - ends[0])
    expected = 1 - unit if read.inverted else unit
    assert np.abs(grey.table(read, "voi") - expected).max() < 1e-5


def test_a_negative_slope_keeps_the_order_of_the_modality_values() -> None:
    """C.11.2.1.2: the lowest are black. pydicom 3.0 has them white."""
    read = head(WindowCenter=-2000, WindowWidth=3001, RescaleSlope=-1, RescaleIntercept=0)
    assert np.allclose(grey.table(read, "voi"), np.clip((-np.arange(4096) + 2000.5) / 3000 + 0.5, 0, 1), atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_voi_lut_goes_before_a_window_and_clips_at_its_ends(photometric: str) -> None:
    curve = (np.arange(2000) / 1999) ** 2 * 1023
    read = head(photometric, VOILUTSequence=lut(1000, 10, curve), WindowCenter=5, WindowWidth=3)
    rising = np.clip(np.rint(curve - 0.5), 0, 1023)[np.clip(np.arange(4096) - 1000, 0, 1999)] / 1023
    expected = 1 - rising if photometric == "MONOCHROME1" else rising
    assert np.abs(grey.table(read, "voi") - expected).max() < 1.1 / 1023


def test_a_lut_may_be_of_bytes_and_begin_below_zero() -> None:
    item = lut(-2048, 8, np.zeros(1))
    item[0].add_new("LUTDescriptor", "US", [4096, 65536 - 2048, 8])
    item[0].add_new("LUTData", "OW", np.repeat(np.arange(256, dtype=np.uint8), 16).tobytes())
    shown = grey.table(head(signed=True, VOILUTSequence=item), "voi")
    assert np.allclose(shown, np.repeat(np.arange(256), 16) / 255)


def test_a_modality_lut_goes_first() -> None:
    inverse = np.arange(4095, -1, -1)
    read = head(ModalityLUTSequence=lut(0, 12, inverse, "US"), WindowCenter=2048, WindowWidth=4096)
    assert np.abs(grey.table(read, "voi") - np.linspace(1, 0, 4096)).max() < 1e-3


def test_without_a_window_and_on_request_the_whole_range_is_linear() -> None:
    ramp = np.linspace(0, 1, 4096)
    assert np.allclose(grey.table(head(), "voi"), ramp, atol=1e-6)
    assert np.allclose(grey.table(head(**WINDOWS["sigmoid"]), "none"), ramp, atol=1e-6)
    assert np.allclose(grey.table(head("MONOCHROME1", signed=True), "none"), ramp[::-1], atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_percentiles_are_those_of_the_tissue(photometric: str) -> None:
    tissue = np.arange(1000, 2001)
    shown = grey.table(head(photometric), "percentile", tissue)
    low, high = (1005, 1990) if photometric == "MONOCHROME1" else (1010, 1995)
    dark, bright = (high, low) if photometric == "MONOCHROME1" else (low, high)
    assert shown[dark] == pytest.approx(0, abs=2e-3)
    assert shown[bright] == pytest.approx(1, abs=2e-3)
    assert shown[(low + high) // 2] == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": -3, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 5, "WindowWidth": 3, "VOILUTFunction": "DOE"},
        {"VOILUTSequence": lut(0, 12, np.zeros(0))},
    ],
)
def test_a_malformed_window_is_an_error_that_quotes_nothing(attributes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match="--window percentile") as caught:
        grey.table(head(**attributes), "voi")
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    "attributes",
    [{"WindowCenter": "nan", "WindowWidth": "9"}, {"RescaleSlope": "nan", "RescaleIntercept": "0"}],
)
def test_numbers_that_are_none_are_an_error(attributes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match=r"finite|valid"):
        grey.table(head(**attributes), "voi")


def test_a_window_in_functional_groups_is_not_passed_over() -> None:
    read = head(SharedFunctionalGroupsSequence=pydicom.Sequence([pydicom.Dataset()]))
    with pytest.raises(DecodeError, match="functional groups"):
        grey.table(read, "voi")
    assert grey.table(read, "none")[-1] == 1


def test_padding_is_black_and_it_is_told_whether_it_was_not() -> None:
    table = grey.table(head(), "none")
    for low, high, shows in ((0, 0, False), (4000, 4095, True), (3, 9, False)):
        read = head(PixelPaddingValue=high, PixelPaddingRangeLimit=low)
        padded, showed = grey.blacken_padding(table, read)
        assert showed is shows
        assert not padded[low : high + 1].any()
        assert np.array_equal(np.delete(padded, np.s_[low : high + 1]), np.delete(table, np.s_[low : high + 1]))


def test_equal_windows_share_their_table() -> None:
    dataset = BytesIO(machines.make_dicom(EVERY, Encoding(transfer_syntax=uid.ExplicitVRLittleEndian)))
    first, second = (header.read(dataset.getvalue(), name) for name in ("a", "b"))
    assert grey.table(first, "voi") is grey.table(second, "voi")
