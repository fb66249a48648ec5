"""In which order training rows are drawn: a pure function of (rows, settings, seed, epoch).

The order is global and knows nothing of workers, so that N of them see the same batches as one; and it is a new shuffle
of all rows in each epoch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mammoray.recipe import SampleConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_STREAM = 1  # Keeps these draws apart from those of augmentation, which start from the same seed.


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps in an epoch: enough that every row can be drawn once.

    Examples
    --------
    >>> steps_per_epoch(33, 16)
    3
    """
    return -(-rows // batch_size)


def class_weights(counts_K: Floats, balance: str, alpha: float, beta: float) -> Floats:
    """How much a row of each class counts, to a common factor; 0 for a class without rows.

    Parameters
    ----------
    counts_K : (K,) float64
        Rows, or patients, of each class.
    balance : str
        ``natural``, ``none``: 1. ``balanced``: n to the power of -alpha. ``sqrt``: of -0.5. ``effective``:
        (1 - beta) / (1 - beta^n) of Cui et al., "Class-balanced loss based on effective number of samples" (CVPR 2019).

    Examples
    --------
    >>> class_weights(np.array([100.0, 25.0, 0.0]), "sqrt", 1.0, 0.0).tolist()
    [0.1, 0.2, 0.0]
    """
    present = counts_K > 0
    n = np.where(present, counts_K, 1.0)
    if balance == "effective":
        weights = np.full(n.shape, 1.0) if beta == 0 else (1 - beta) / -np.expm1(n * np.log(beta))
    else:
        weights = n ** -{"balanced": alpha, "sqrt": 0.5}.get(balance, 0.0)
    return np.where(present, weights, 0.0)


def row_weights(labels: Ints, patients: npt.NDArray[np.object_], config: SampleConfig) -> Floats:
    """Share of the draws that each row should have, (N,); they add up to 1.

    Parameters
    ----------
    labels : (N,) int64
        Class index of each row.
    patients : (N,) str
        Patient of each row.
    """
    own = np.ones(len(labels))
    if config.sample_by == "patient":
        _, codes = np.unique(patients.astype(str), return_inverse=True)
        own = 1.0 / np.bincount(codes)[codes]
    counts_K = np.bincount(labels, weights=own).astype(np.float64)
    weights = own * class_weights(counts_K, config.sampler, config.alpha, config.beta)[labels]
    total: Floats = weights / weights.sum()
    return total


def epoch_order(labels: Ints, weights: Floats, batch_size: int, seed: int, epoch: int) -> Ints:
    """Positions of the rows to train on in one epoch, in a random order.

    A row comes as often as its weight says, rounded down or up: rows of equal weight come once each, and a class that
    should have a quarter of the draws has it to a row, where independent draws would scatter it (systematic sampling:
    Madow and Madow, "On the theory of systematic sampling", Ann. Math. Stat. 15, 1944). The last batch is
    whole: a short one would weigh its rows more and upset batch norm.

    Parameters
    ----------
    labels : (N,) int64
        Class index of each row, the rows being in a fixed order.
    weights : (N,) float64
        Of :func:`row_weights`.
    batch_size : int
        Of the global batch.
    seed, epoch : int
        Each pair gives its own draw.

    Returns
    -------
    (S * batch_size,) int64
        S steps of ``batch_size`` positions each.
    """
    rng = np.random.default_rng([seed, _STREAM, epoch])
    size = steps_per_epoch(len(weights), batch_size) * batch_size
    times = np.empty(len(weights), dtype=np.int64)
    # Class by class, which makes the shares exact, and in a random order, so that no two rows are bound together.
    shuffled = np.lexsort((rng.random(len(labels)), labels))
    ends = np.cumsum(weights[shuffled]) * size
    ends[-1] = size
    times[shuffled] = np.diff(np.ceil(ends - rng.random()), prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(len(weights), dtype=np.int64), times))


def part(batch_size: int, workers: int, rank: int, unit: int = 1) -> tuple[int, int]:
    """Which images of a global batch are a worker's, or which of a worker's are in one of its passes.

    Parameters
    ----------
    batch_size : int
        A multiple of ``unit``.
    workers, rank : int
        How many parts, and which.
    unit : int
        Images that may not be divided: 2 where neighbours are mixed.

    Returns
    -------
    int, int
        The first, and the one behind the last. The parts differ by ``unit`` at most.

    Examples
    --------
    >>> [part(16, 3, rank) for rank in range(3)], part(16, 3, 0, 2)
    ([(0, 5), (5, 10), (10, 16)], (0, 4))
    """
    units = batch_size // unit
    return units * rank // workers * unit, units * (rank + 1) // workers * unit
