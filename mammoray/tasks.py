"""What a network learns beside the density: view, laterality and age, as targets, losses and metrics.

A target that is not known counts nowhere: its loss is 0, and it is no part of a metric.

Shapes: ``B`` images of a batch, ``N`` rows, ``J`` outputs of a task's head (:func:`outputs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional

from mammoray.catalog import cells
from mammoray.errors import ConfigError

Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.float32] | npt.NDArray[np.int64]

MISSING = -1
"""Class index of an image whose class is not known."""
_VIEWS = {"": MISSING, "CC": 0, "MLO": 1}
_OTHER_VIEW = 2
_SIDES = {"L": 0, "LEFT": 0, "R": 1, "RIGHT": 1}
_MIDDLE_AGE, _AGE_UNIT = 55.0, 15.0  # Years: about the mean and a little more than the spread of screened women.
_AGES = (18, 120)  # Others are slips of a keyboard, or codes of "not known".


def outputs(task: str) -> int:
    """How many outputs the head of a task needs: one a class, or one number.

    Examples
    --------
    >>> [outputs(task) for task in ("view", "laterality", "age")]
    [3, 2, 1]
    """
    return _TASKS[task].outputs


def targets(rows: pd.DataFrame, tasks: tuple[str, ...]) -> dict[str, Targets]:
    """What the heads should say of each row.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of a catalog, with a column of the name of each task.
    tasks : tuple of str
        Of :attr:`mammoray.recipe.ModelConfig.auxiliary`.

    Returns
    -------
    dict of str to (N,) array
        ``view``: int64, 0 CC, 1 MLO, 2 any other. ``laterality``: int64, 0 L, 1 R. Both -1 where it is not known.
        ``age``: float32, (years - 55) / 15; NaN where it is blank or no number from 18 to 120.

    """
    return {task: _TASKS[task].read(cells(rows, task)) for task in tasks}


def check(rows: pd.DataFrame, tasks: tuple[str, ...]) -> None:
    """Refuse a task that nothing can be learned of.

    Raises
    ------
    ConfigError
        A task of which no row has a target.
    """
    for task, values in targets(rows, tasks).items():
        if not known(values).any():
            remedy = f"Leave {task} out of --auxiliary, or give the table a column {task}."
            raise ConfigError(f"--auxiliary {task}", _TASKS[task].expected, f"none in {len(rows)} rows", remedy)


def _view(cells_N: pd.Series) -> npt.NDArray[np.int64]:
    views = cells_N.map(_VIEWS).fillna(_OTHER_VIEW)
    return np.asarray(views, dtype=np.int64)


def _laterality(cells_N: pd.Series) -> npt.NDArray[np.int64]:
    return np.asarray(cells_N.map(_SIDES).fillna(MISSING), dtype=np.int64)


def _age(cells_N: pd.Series) -> Floats:
    years = pd.to_numeric(cells_N, errors="coerce").astype(np.float64)
    return np.asarray((years.where(years.between(*_AGES)) - _MIDDLE_AGE) / _AGE_UNIT, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    outputs: int
    expected: str
    """What the column should hold."""
    read: Callable[[pd.Series], Targets]
    """Cells, as text in capitals, to targets."""


_TASKS = {
    "view": _Task(outputs=3, expected="views such as CC and MLO", read=_view),
    "laterality": _Task(outputs=2, expected="sides, L or R", read=_laterality),
    "age": _Task(outputs=1, expected="ages from 18 to 120 years", read=_age),
}


def known(targets_N: Targets) -> npt.NDArray[np.bool_]:
    """Which rows have a target, (N,) bool."""
    return np.isfinite(targets_N) if targets_N.dtype.kind == "f" else targets_N != MISSING


def flipped(task: str, target_B: torch.Tensor, mirrored_B: torch.Tensor) -> torch.Tensor:
    """Targets of images of which some were mirrored left to right: those change sides.

    Parameters
    ----------
    task : str
    target_B : (B,) int64 or float32
        Of :func:`targets`.
    mirrored_B : (B,) bool

    Examples
    --------
    >>> flipped("laterality", torch.tensor([0, 1, 1, -1]), torch.tensor([True, True, False, True])).tolist()
    [1, 0, 1, -1]
    """
    if task != "laterality":
        return target_B
    return torch.where(mirrored_B & (target_B != MISSING), 1 - target_B, target_B)


def per_image(task: str, outputs_BJ: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Loss of each image: cross-entropy; of the age smooth L1, which few wrong ages cannot lead.

    0 where the target is not known, so that the mean over all images, and over all workers, is one of the global batch.

    Parameters
    ----------
    task : str
    outputs_BJ : (B, J) floating point
        Taken to float32 first.
    target_B : (B,) int64 or float32
        Of :func:`targets`.

    Returns
    -------
    (B,) float32

    References
    ----------
    Girshick, "Fast R-CNN" (ICCV 2015), for smooth L1; here quadratic up to a unit of 15 years.
    """
    outputs_BJ = outputs_BJ.float()
    if task != "age":
        return functional.cross_entropy(outputs_BJ, target_B, ignore_index=MISSING, reduction="none")
    is_known = torch.isfinite(target_B)
    # The loss itself must not see a NaN: its gradient would be NaN even where the loss is then put to 0.
    target_B = torch.where(is_known, target_B, 0.0)
    loss_B = functional.smooth_l1_loss(outputs_BJ[:, 0], target_B, reduction="none")
    return torch.where(is_known, loss_B, 0.0)


def metrics(task: str, outputs_NJ: Floats, targets_N: Targets) -> dict[str, float | None]:
    """How well a task is learnt, over the rows with a target; None where there is none.

    Parameters
    ----------
    task : str
    outputs_NJ : (N, J) float32
    targets_N : (N,) int64 or float32
        Of :func:`targets`.

    Returns
    -------
    dict
        ``view_accuracy`` or ``laterality_accuracy``, 0 to 1; ``age_mae``, the mean absolute error in years.

    Examples
    --------
    >>> metrics("age", np.zeros((3, 1), np.float32), np.array([1, -2, np.nan], np.float32))
    {'age_mae': 22.5}
    """
    have = known(targets_N)
    name = "age_mae" if task == "age" else f"{task}_accuracy"
    if not have.any():
        return {name: None}
    outputs_NJ, targets_N = outputs_NJ[have], targets_N[have]
    if task == "age":
        return {name: _AGE_UNIT * float(np.abs(outputs_NJ[:, 0].astype(np.float64) - targets_N).mean())}
    return {name: float((outputs_NJ.argmax(axis=1) == targets_N).mean())}
