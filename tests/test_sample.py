import numpy as np
import pytest

from mammoray import sample
from mammoray.config import SampleConfig

LABELS = np.repeat([0, 1, 2, 3], [5, 50, 40, 2]).astype(np.int64)


def test_an_epoch_has_whole_batches_and_every_row_at_least_once() -> None:
    order = sample.epoch_order(LABELS, SampleConfig(batch_size=16), 0, 1)
    assert len(order) == 7 * 16 == sample.steps_per_epoch(len(LABELS), 16) * 16
    counts = np.bincount(order, minlength=len(LABELS))
    assert counts.min() == 1
    assert counts.sum() - len(LABELS) == 15


def test_fewer_rows_than_a_batch_fill_one_batch() -> None:
    order = sample.epoch_order(LABELS[:3], SampleConfig(batch_size=16), 0, 1)
    assert len(order) == 16
    assert set(order) == {0, 1, 2}


@pytest.mark.parametrize("sampler", ["natural", "balanced"])
def test_seed_and_epoch_decide_the_order(sampler: str) -> None:
    config = SampleConfig(sampler=sampler, batch_size=8)  # type: ignore[arg-type]
    first = sample.epoch_order(LABELS, config, 3, 1)
    assert np.array_equal(first, sample.epoch_order(LABELS, config, 3, 1))
    assert not np.array_equal(first, sample.epoch_order(LABELS, config, 3, 2))
    assert not np.array_equal(first, sample.epoch_order(LABELS, config, 4, 1))


def test_balanced_draws_all_classes_equally_often() -> None:
    config = SampleConfig(sampler="balanced", batch_size=16)
    drawn = np.concatenate([LABELS[sample.epoch_order(LABELS, config, 0, epoch)] for epoch in range(100)])
    assert np.allclose(np.bincount(drawn) / len(drawn), 0.25, atol=0.02)
