"""Stored values to grey: one table per image that holds modality LUT, VOI and polarity, in DICOM's order.

A table is exact for every stored value and costs nothing per pixel. It is looked up before the last resample, as the
area average of what a viewer shows is wanted, not what a viewer shows of an average.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import UID

from mammoray.header import Header

Table = npt.NDArray[np.float32]
_VISIBLE = 0.02  # Grey that is told from black.


def table(header: Header, window: str, tissue: npt.NDArray[np.integer] | None = None) -> Table:
    """What each stored value is shown as.

    Parameters
    ----------
    header : Header
    window : {"voi", "percentile", "none"}
        voi: the first VOI LUT or window of the header, the whole range where it has neither. percentile: the 1st to
        99.5th percentile of ``tissue``. none: the whole range, linear.
    tissue : (n,) integers, optional
        Stored values of the breast, for percentile.

    Returns
    -------
    (2**bits_stored,) float32
        Grey from 0 (black) to 1, indexed by ``stored value - header.lowest``.

    Raises
    ------
    DecodeError
        A malformed window or LUT.

    References
    ----------
    DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI: LUT, LINEAR, LINEAR_EXACT, SIGMOID), C.7.6.3.1.2 (MONOCHROME1 is
    inverted last).
    """
    if window == "voi" and "WindowCenter" not in header.dataset and header.grouped:
        expected, found = "a window in the header itself", "functional groups, which are not read"
        raise header.error("VOI window", expected, found, "Use --window percentile or none.")
    try:
        if window == "percentile" and tissue is not None:
            grey = _between_percentiles(header, tissue)
        elif "VOILUTSequence" in header.dataset or "ModalityLUTSequence" in header.dataset:
            grey = _shown_by_lut(header, window)
        else:
            grey = _shown_by_numbers(_Numbers.of(header, window))
    except Exception as error:
        # A malformed LUT or window fails in many ways inside pydicom; its text may quote the header.
        found, remedy = type(error).__name__, "Use --window percentile, or leave the file out of the CSV."
        raise header.error("modality or VOI LUT", "a valid window or LUT", found, remedy) from None
    if not np.isfinite(grey).all():
        raise header.error("modality or VOI LUT", "finite numbers", "others", "Leave the file out of the CSV.")
    return grey


def blacken_padding(table: Table, header: Header) -> tuple[Table, bool]:
    """The table with padding values (C.7.5.1.1.2) at 0, and whether it would have shown any of them otherwise."""
    if header.padding is None:
        return table, False
    low, high = (min(max(edge - header.lowest, 0), len(table)) for edge in (header.padding[0], header.padding[1] + 1))
    padded = table.copy()
    padded[low:high] = 0
    return padded, bool((table[low:high] > _VISIBLE).any())


@dataclass(frozen=True, slots=True)
class _Numbers:
    """All that a table without a LUT follows from; hashable, so that images of one machine share their table."""

    lowest: int
    highest: int
    inverted: bool
    slope: float
    intercept: float
    center: float | None
    width: float | None
    function: str

    @staticmethod
    def of(header: Header, window: str) -> _Numbers:
        dataset = header.dataset
        windowed = window == "voi" and "WindowCenter" in dataset and "WindowWidth" in dataset
        return _Numbers(
            lowest=header.lowest,
            highest=header.highest,
            inverted=header.inverted,
            slope=float(dataset.get("RescaleSlope", 1)),
            intercept=float(dataset.get("RescaleIntercept", 0)),
            center=_first(dataset.WindowCenter) if windowed else None,
            width=_first(dataset.WindowWidth) if windowed else None,
            function=str(dataset.get("VOILUTFunction", "LINEAR")),
        )


def _first(value: object) -> float:
    """The first of several windows, which is the one that a viewer shows first."""
    return float(value[0] if hasattr(value, "__getitem__") else value)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def _shown_by_numbers(numbers: _Numbers) -> Table:
    values = np.arange(numbers.lowest, numbers.highest + 1, dtype=np.float64) * numbers.slope + numbers.intercept
    if numbers.center is None or numbers.width is None:
        grey = _scaled(values, min(values[0], values[-1]), max(values[0], values[-1]))
    else:
        grey = _windowed(values, numbers.center, numbers.width, numbers.function)
    return np.asarray(1 - grey if numbers.inverted else grey, np.float32)


def _windowed(values: npt.NDArray[np.float64], center: float, width: float, function: str) -> npt.NDArray[np.float64]:
    """C.11.2.1.2 and C.11.2.1.3, with 0 to 1 as the range of the output."""
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return np.asarray(values > center - 0.5, np.float64)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
    raise ValueError("no such VOI LUT Function or width")


def _scaled(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _modality(header: Header) -> tuple[npt.NDArray[np.float64], float, float]:
    """What every stored value stands for (C.11.1), and the two ends of the range of that."""
    dataset = header.dataset
    stored = np.arange(header.lowest, header.highest + 1, dtype=np.float64)
    if "ModalityLUTSequence" in dataset:
        return _look_up(stored, dataset.ModalityLUTSequence[0], header)
    values = stored * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    return values, float(min(values[0], values[-1])), float(max(values[0], values[-1]))


def _look_up(
    values: npt.NDArray[np.float64], item: Dataset, header: Header
) -> tuple[npt.NDArray[np.float64], float, float]:
    """Values through a LUT (C.11.1.1, C.11.2.1.1), and the range of its output: 0 to all of its bits."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries % 2**16 or 2**16  # C.11.1.1: 0 stands for 65,536.
    if (header.signed or values[0] < 0 or values[-1] < 0) and first >= 2**15:
        first -= 2**16  # Its VR follows what it is applied to, but it may have been written as unsigned.
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if UID(header.transfer_syntax).is_little_endian else ">"
        data = np.frombuffer(data, "u1" if len(data) < 2 * entries else f"{order}u2")
    data = np.asarray(data)[:entries]
    if len(data) < entries or not 8 <= bits <= 16:
        raise ValueError("a LUT shorter than its descriptor says, or of other bits than 8 to 16")
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return data[index].astype(np.float64), 0.0, 2.0**bits - 1


def _shown_by_lut(header: Header, window: str) -> Table:
    """With a LUT in the header."""
    dataset = header.dataset
    values, low, high = _modality(header)
    if window == "voi" and "VOILUTSequence" in dataset:
        grey = _scaled(*_look_up(values, dataset.VOILUTSequence[0], header))
    elif window == "voi" and "WindowCenter" in dataset and "WindowWidth" in dataset:
        function = str(dataset.get("VOILUTFunction", "LINEAR"))
        grey = _windowed(values, _first(dataset.WindowCenter), _first(dataset.WindowWidth), function)
    else:
        grey = _scaled(values, low, high)
    return np.asarray(1 - grey if header.inverted else grey, np.float32)


def _between_percentiles(header: Header, tissue: npt.NDArray[np.integer]) -> Table:
    values, _, _ = _modality(header)
    ends = (0.5, 99.0) if header.inverted else (1.0, 99.5)
    low, high = np.percentile(values[np.clip(tissue - header.lowest, 0, len(values) - 1)], ends)
    grey = _scaled(values, float(low), float(high))
    return np.asarray(1 - grey if header.inverted else grey, np.float32)
