from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammoray import deal

SHARES = st.one_of(
    st.integers(2, 6).map(lambda k: (1,) * k),
    st.lists(st.integers(1, 60), min_size=2, max_size=3).map(tuple),
)
Table = tuple[deal.Ints, deal.Ints, deal.Ints]


@st.composite
def tables(draw: Any, mixed: bool = False) -> Table:
    """Class, cell and images of up to 150 patients of 3 classes."""
    count, seed = draw(st.integers(20, 150)), draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    class_P, cell_P = rng.integers(0, 3, count), rng.integers(0, draw(st.integers(1, 6)), count)
    images_PL = np.zeros((count, 3), dtype=np.int64)
    images_PL[np.arange(count), class_P] = 4 + np.minimum(10, rng.geometric(0.4, count))
    if mixed:
        images_PL += rng.integers(0, 4, images_PL.shape)
    return class_P, cell_P, images_PL


def off_share(part_P: deal.Ints, weights: tuple[int, ...]) -> float:
    """Patients by which a part is off its share, at most."""
    shares = np.array(weights) / sum(weights)
    return float(np.abs(np.bincount(part_P, minlength=len(weights)) - len(part_P) * shares).max())


def unevenness(part_P: deal.Ints, images_PL: deal.Ints, weights: tuple[int, ...]) -> float:
    """Squared deviations of the parts' shares of each label's images from what they should be."""
    images_KL = np.zeros((len(weights), images_PL.shape[1]))
    np.add.at(images_KL, part_P, images_PL)
    wanted = np.array(weights)[:, None] / sum(weights)
    return float(((images_KL / np.maximum(1, images_KL.sum(axis=0)) - wanted) ** 2).sum())


@settings(deadline=None)
@given(SHARES, st.integers(0, 300), st.integers(0, 5))
def test_after_any_number_of_turns_a_part_is_less_than_one_from_its_share(
    weights: tuple[int, ...], count: int, first: int
) -> None:
    sequence = deal.turns(weights, count, first % len(weights))
    served = np.cumsum(sequence[:, None] == np.arange(len(weights)), axis=0)
    wanted = np.arange(1, count + 1)[:, None] * np.array(weights) / sum(weights)
    short = min(weights) * count < sum(weights)  # The last turns go to parts that would have none.
    assert short or (np.abs(served - wanted) < 1).all()
    assert count < len(weights) or set(sequence) == set(range(len(weights)))


@settings(deadline=None)
@given(tables(), SHARES)
def test_classes_are_less_than_one_patient_and_their_cells_less_than_two_from_their_shares(
    table: Table, weights: tuple[int, ...]
) -> None:
    class_P, cell_P, images_PL = table
    part_P = deal.deal(class_P, cell_P, images_PL, weights)
    for k in range(3):
        # A part that would have no patient of a class gets one at the cost of another.
        short = min(weights) * (class_P == k).sum() < sum(weights)
        assert off_share(part_P[class_P == k], weights) < (len(weights) if short else 1)
        for cell in () if short else np.unique(cell_P):
            assert off_share(part_P[(class_P == k) & (cell_P == cell)], weights) < 2


@settings(deadline=None)
@given(st.integers(10, 60), st.integers(2, 5), st.integers(0, 99))
def test_where_images_ask_for_nothing_the_parts_of_a_cell_differ_by_at_most_one(
    count: int, parts: int, seed: int
) -> None:
    cell_P = np.random.default_rng(seed).integers(0, 4, count)
    part_P = deal.deal(np.zeros(count, dtype=np.int64), cell_P, np.full((count, 1), 4), (1,) * parts)
    for cell in np.unique(cell_P):
        assert np.ptp(np.bincount(part_P[cell_P == cell], minlength=parts)) <= 1


@settings(deadline=None)
@given(tables(mixed=True), SHARES)
def test_swaps_only_bring_images_closer_to_the_shares_also_of_mixed_groups(
    table: Table, weights: tuple[int, ...]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deal, "SWAPS", 0)
        before = deal.deal(*table, weights)
    after = deal.deal(*table, weights)
    assert unevenness(after, table[2], weights) <= unevenness(before, table[2], weights) + 1e-9
    for k in range(3):
        those = table[0] == k
        assert off_share(after[those], weights) <= max(1, off_share(before[those], weights))


@settings(deadline=None)
@given(tables(), SHARES, st.data())
def test_one_patient_more_moves_no_more_others_than_the_bound(
    table: Table, weights: tuple[int, ...], data: st.DataObject
) -> None:
    place, label = data.draw(st.integers(0, len(table[0]))), data.draw(st.integers(0, 2))
    cell, images = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 14))
    new = (label, cell, np.eye(3, dtype=np.int64)[label] * images)
    grown = [np.insert(array, place, value, axis=0) for array, value in zip(table, new, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        for swaps in (0, 1, deal.SWAPS):
            patch.setattr(deal, "SWAPS", swaps)
            before = deal.deal(*table, weights)
            after = np.delete(deal.deal(grown[0], grown[1], grown[2], weights), place)
            cells = len(np.unique(grown[1][grown[0] == label]))
            assert (before != after).sum() <= deal.bound(cells, len(weights))
            assert (before != after)[table[0] != label].sum() == 0, "other classes stay as they were"


def test_a_large_class_is_dealt_to_the_image() -> None:
    rng = np.random.default_rng(0)
    images_PL = 4 + np.minimum(10, rng.geometric(0.5, (2000, 1)) - 1)
    part_P = deal.deal(np.zeros(2000, dtype=np.int64), rng.integers(0, 7, 2000), images_PL, (1,) * 5)
    assert np.ptp(np.bincount(part_P, weights=images_PL[:, 0])) <= 1


def test_groups_that_are_all_different_are_dealt_as_well() -> None:
    images_PL = np.random.default_rng(0).integers(1, 10_000, (3000, 2))
    weights = (7, 2, 1)
    part_P = deal.deal(images_PL.argmax(axis=1), np.zeros(3000, dtype=np.int64), images_PL, weights)
    assert unevenness(part_P, images_PL, weights) < 1e-5


def test_a_class_with_fewer_patients_than_parts_is_spread_over_as_many() -> None:
    images_PL = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]])
    part_P = deal.deal(images_PL.argmax(axis=1), np.zeros(6, dtype=np.int64), images_PL, (8, 1, 1))
    assert len(set(part_P[:2])) == 2 and set(part_P[2:]) == {0, 1, 2}
