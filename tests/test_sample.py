import itertools
from typing import get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammoray import sample
from mammoray.recipe import SampleConfig

LABELS = np.repeat([0, 1, 2, 3], [5, 50, 40, 2]).astype(np.int64)
SAMPLERS = get_type_hints(SampleConfig)["sampler"].__args__


def order(config: SampleConfig, seed: int = 0, epoch: int = 1, patients: object = None) -> np.ndarray:
    who = np.arange(len(LABELS)).astype(object) if patients is None else np.asarray(patients, dtype=object)
    weights = sample.row_weights(LABELS, who, config)
    return sample.epoch_order(LABELS, weights, config.batch_size, seed, epoch)


def test_a_natural_epoch_has_whole_batches_and_every_row_at_least_once() -> None:
    drawn = order(SampleConfig(batch_size=16))
    assert len(drawn) == 7 * 16 == sample.steps_per_epoch(len(LABELS), 16) * 16
    counts = np.bincount(drawn, minlength=len(LABELS))
    assert counts.min() == 1
    assert counts.max() == 2
    assert counts.sum() - len(LABELS) == 15


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sample_by", ["image", "patient"])
def test_seed_and_epoch_decide_the_order(sampler: str, sample_by: str) -> None:
    config = SampleConfig(sampler=sampler, sample_by=sample_by, batch_size=8)  # type: ignore[arg-type]
    first = order(config, 3, 1)
    assert np.array_equal(first, order(config, 3, 1))
    assert not np.array_equal(first, order(config, 3, 2))
    assert not np.array_equal(first, order(config, 4, 1))
    assert len(first) % 8 == 0


def test_an_epoch_is_a_shuffle_of_all_rows_and_not_of_neighbourhoods() -> None:
    labels = np.zeros(10_000, dtype=np.int64)
    drawn = sample.epoch_order(labels, np.full(10_000, 1e-4), 100, 0, 1)
    # A row's place says nothing of where it stood: the correlation of 10,000 pairs has a deviation of 0.01.
    assert abs(np.corrcoef(np.arange(10_000), drawn)[0, 1]) < 0.05
    first_half = np.isin(np.arange(5_000), drawn[:5_000]).sum()
    assert 2_300 < first_half < 2_700


def shares(config: SampleConfig) -> np.ndarray:
    drawn = LABELS[order(config)]
    return np.bincount(drawn, minlength=4) / len(drawn)


def test_balanced_gives_each_class_its_share_to_a_row_in_every_epoch() -> None:
    for epoch in range(20):
        drawn = LABELS[order(SampleConfig(sampler="balanced"), epoch=epoch)]
        counts = np.bincount(drawn)
        assert counts.max() - counts.min() <= 1, epoch


def test_alpha_goes_from_natural_to_balanced_and_sqrt_is_its_middle() -> None:
    natural = np.bincount(LABELS) / len(LABELS)
    assert shares(SampleConfig(sampler="balanced", alpha=0.0)) == pytest.approx(natural, abs=0.01)
    n = np.sqrt(np.bincount(LABELS))
    for config in (SampleConfig(sampler="sqrt"), SampleConfig(sampler="balanced", alpha=0.5)):
        assert shares(config) == pytest.approx(n / n.sum(), abs=0.01)


def test_the_effective_number_lies_between_natural_and_balanced() -> None:
    natural = np.bincount(LABELS) / len(LABELS)
    assert shares(SampleConfig(sampler="effective", beta=0.0)) == pytest.approx(natural, abs=0.01)
    assert shares(SampleConfig(sampler="effective", beta=0.999999)) == pytest.approx(np.full(4, 0.25), abs=0.01)
    middle = shares(SampleConfig(sampler="effective", beta=0.95))
    # Cui et al. 2019, equation 2, of classes of 5, 50, 40 and 2.
    weight = (1 - 0.95) / (1 - 0.95 ** np.array([5, 50, 40, 2]))
    expected = weight * np.array([5, 50, 40, 2])
    assert middle == pytest.approx(expected / expected.sum(), abs=0.01)


def test_by_patient_each_patient_comes_equally_often() -> None:
    # Of class 1, one patient has 14 images and others 4.
    patients = [f"a{i}" for i in range(5)] + ["big"] * 14 + [f"p{i // 4}" for i in range(36)] + [
        f"c{i // 4}" for i in range(40)
    ] + ["d", "d"]  # fmt: skip
    config = SampleConfig(sample_by="patient", batch_size=97)
    drawn = np.concatenate([np.asarray(patients)[order(config, epoch=e, patients=patients)] for e in range(30)])
    names, counts = np.unique(drawn, return_counts=True)
    assert len(names) == 26
    expected = len(drawn) / 26
    assert np.abs(counts - expected).max() < 0.25 * expected
    by_image = np.asarray(patients)[order(SampleConfig(batch_size=97), patients=patients)]
    assert (by_image == "big").sum() == 14


def test_by_patient_and_balanced_the_classes_are_equal_too() -> None:
    patients = [f"p{i // 3}" for i in range(len(LABELS))]
    counts = np.bincount(LABELS[order(SampleConfig(sampler="balanced", sample_by="patient"), patients=patients)])
    assert counts.max() - counts.min() <= 1


def test_a_class_without_rows_has_no_weight() -> None:
    assert sample.class_weights(np.array([4.0, 0.0]), "effective", 1.0, 0.9)[1] == 0


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2]))
def test_the_parts_of_a_batch_are_all_of_it_once(images: int, workers: int, unit: int) -> None:
    parts = [sample.part(images * unit, workers, rank, unit) for rank in range(workers)]
    assert parts[0][0] == 0
    assert parts[-1][1] == images * unit
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    sizes = [last - first for first, last in parts]
    assert max(sizes) - min(sizes) <= unit
    assert all(size % unit == 0 for size in sizes)
