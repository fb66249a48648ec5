import itertools

import numpy as np
import pytest

from mammoray import loop
from mammoray.config import Config, TrainConfig
from mammoray.errors import TrainError


def test_collect_refuses_rows_that_are_missing_or_double() -> None:
    logits = np.zeros((2, 4), dtype=np.float32)
    good = [(np.array([0, 2]), logits), (np.array([1]), logits[:1])]
    assert loop.collect(good, 3, 4).shape == (3, 4)
    for rows, parts in ((4, good), (3, [*good, (np.array([1]), logits[:1])])):
        with pytest.raises(TrainError, match="once"):
            loop.collect(parts, rows, 4)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = Config(train=TrainConfig(epochs=10, lr=1.0, warmup_epochs=2.0))
    rates = [loop.learning_rate(config, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[-1] < 0.01
