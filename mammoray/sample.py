"""In which order training rows are drawn: a pure function of (labels, settings, seed, epoch).

The order is global and knows nothing of workers, so that N of them see the same batches as one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mammoray.config import SampleConfig

_STREAM = 1  # Keeps these draws apart from those of augmentation, which start from the same seed.


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps in an epoch: enough that every row is drawn at least once.

    Examples
    --------
    >>> steps_per_epoch(33, 16)
    3
    """
    return -(-rows // batch_size)


def epoch_order(labels: npt.NDArray[np.int64], config: SampleConfig, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Positions of the rows to train on in one epoch, a multiple of the batch size long.

    The last batch is topped up with the first rows of the epoch's own order: a short batch would weigh its rows more
    and upset batch norm, and a dropped one would lose rows.

    Parameters
    ----------
    labels : (N,) int64
        Class index of each row, the rows being in a fixed order.
    config : SampleConfig
        ``natural``: a permutation. ``balanced``: draws with replacement, every class equally likely.
    seed, epoch : int
        Each pair gives its own draw.

    Returns
    -------
    (S * B,) int64
        S steps of B positions each.
    """
    rng = np.random.default_rng([seed, _STREAM, epoch])
    size = steps_per_epoch(len(labels), config.batch_size) * config.batch_size
    if config.sampler == "balanced":
        per_class = np.bincount(labels)
        weights = 1.0 / per_class[labels]
        return rng.choice(len(labels), size=size, replace=True, p=weights / weights.sum()).astype(np.int64)
    return np.resize(rng.permutation(len(labels)).astype(np.int64), size)
