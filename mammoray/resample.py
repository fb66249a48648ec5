"""A level of the pyramid to the decoded size: grey by table, then the mean over each output pixel.

An output pixel is the mean over its own square of the stored image: of the stored pixels (an area resize), or of the
surface that linear interpolation lays through the samples of a reduced level. So any box and any scale are possible,
and the half-pixel phase of the wavelet levels, whose sample ``i`` stands at stored pixel ``2**r * i`` and not in the
middle of ``2**r`` pixels, is accounted for exactly.

Shapes: ``h, w`` the level, ``H, W`` the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mammoray.compiled import compiled

Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def resample(
    level: npt.NDArray[Any],
    r: int,
    table: npt.NDArray[np.float32],
    lowest: int,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """Resample a box of an image.

    Parameters
    ----------
    level : (h, w) integers
        Level ``r`` of the wavelet pyramid.
    table : (n,) float32
        What a value is shown as, at ``value - lowest``; its ends hold for all values beyond them.
    box : (top, left, bottom, right)
        Edges in pixels of the stored image: its first pixel reaches from 0 to 1.
    size : (H, W)

    Returns
    -------
    (H, W) float32
    """
    top, left, bottom, right = box
    first_rows, row_weights = _taps(top, bottom, size[0], r)
    first_columns, column_weights = _taps(left, right, size[1], r)
    out = np.empty(size, np.float32)
    _resample(level, table, lowest, first_rows, row_weights, first_columns, column_weights, out)
    return out


def _taps(start: float, stop: float, count: int, r: int) -> Taps:
    """First sample and weights, (count,) and (count, k), of each output pixel along one axis."""
    edges = (np.linspace(start, stop, count + 1) - 0.5) / 2**r  # In samples; sample i stands at i.
    centre, width = (edges[:-1, None] + edges[1:, None]) / 2, (stop - start) / count / 2**r
    if r == 0:
        width = max(width, 1.0)  # Where it enlarges: the mean over one stored pixel's width interpolates linearly.
    low, high = centre - width / 2, centre + width / 2
    first = np.floor(low[:, 0]).astype(np.int64)
    samples = first[:, None] + np.arange(int(np.ceil(width)) + 2)
    integral = _integral_of_step if r == 0 else _integral_of_triangle
    weights = (integral(high - samples) - integral(low - samples)) / width
    return first, np.ascontiguousarray(weights, np.float32)


def _integral_of_step(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Integral, up to x, of a stored pixel at 0: it is a mean over its own square."""
    return np.clip(x + 0.5, 0, 1)


def _integral_of_triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Integral, up to x, of what linear interpolation makes of the sample at 0."""
    x = np.clip(x, -1, 1)
    return np.where(x < 0, (1 + x) ** 2 / 2, 1 - (1 - x) ** 2 / 2)


@compiled
def _resample(
    level: npt.NDArray[Any],
    table: npt.NDArray[np.float32],
    lowest: int,
    first_rows: npt.NDArray[np.int64],
    row_weights: npt.NDArray[np.float32],
    first_columns: npt.NDArray[np.int64],
    column_weights: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> None:
    """Rows first: their sums run along memory. Samples beyond a border are those at it."""
    h, w = level.shape
    left = min(max(first_columns[0], 0), w - 1)
    right = min(max(first_columns[-1] + column_weights.shape[1], 1), w)
    kept = row_weights.shape[1] + 1  # Rows of grey that are still needed, in a ring.
    ring = np.empty((kept, w), np.float32)
    held = np.full(kept, -1, np.int64)
    mean = np.empty(w, np.float32)
    for i in range(out.shape[0]):
        mean[left:right] = 0
        for k in range(row_weights.shape[1]):
            weight = row_weights[i, k]
            if weight == 0:
                continue
            row = min(max(first_rows[i] + k, 0), h - 1)
            slot = row % kept
            if held[slot] != row:
                for j in range(left, right):
                    value: Any = np.int64(level[row, j]) - lowest
                    ring[slot, j] = table[min(max(value, 0), len(table) - 1)]
                held[slot] = row
            for j in range(left, right):
                mean[j] += weight * ring[slot, j]
        for j in range(out.shape[1]):
            total = np.float32(0)
            for k in range(column_weights.shape[1]):
                total += column_weights[j, k] * mean[min(max(first_columns[j] + k, left), right - 1)]
            out[i, j] = total
