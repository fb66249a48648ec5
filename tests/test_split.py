from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammoray import split
from mammoray.config import SplitConfig
from mammoray.errors import LeakError, SplitError


def table(patients: dict[str, int], images: int = 4) -> pd.DataFrame:
    """``patients`` per class letter, each with up to ``images`` images."""
    rows = []
    for letter, count in patients.items():
        for i in range(count):
            patient = f"{letter}{i:04d}"
            rows += [(f"{patient}-{k}", patient, letter) for k in range(1 + i % images)]
    return pd.DataFrame(rows, columns=["image_id", "patient_id", "label"])


def make(rows: pd.DataFrame, seed: int = 0, **settings: Any) -> split.Split:
    return split.make(rows, SplitConfig(**settings), "density", seed)


sizes = st.fixed_dictionaries({letter: st.integers(5, 40) for letter in "ABCD"})


@given(sizes, st.integers(3, 5), st.integers(0, 99), st.randoms(use_true_random=False))
def test_every_row_is_placed_once_no_patient_twice_and_order_does_not_matter(
    patients: dict[str, int], folds: int, seed: int, random: Random
) -> None:
    rows = table(patients)
    made = make(rows, seed, folds=folds)
    assert sorted(made.rows["image_id"]) == sorted(rows["image_id"])
    assert (made.rows.groupby("patient_id")["fold"].nunique() == 1).all()
    order = list(range(len(rows)))
    random.shuffle(order)
    again = make(rows.iloc[order][["label", "image_id", "patient_id"]], seed, folds=folds)
    assert again.digest == made.digest


@given(sizes, st.integers(3, 5), st.integers(0, 99))
def test_the_parts_of_a_class_differ_by_at_most_one_patient(patients: dict[str, int], folds: int, seed: int) -> None:
    rows = table(patients)
    tests = [make(rows, seed, folds=folds, fold=k).rows.query("fold == 'test'") for k in range(folds)]
    assert sorted(pd.concat(tests)["image_id"]) == sorted(rows["image_id"]), "each patient is tested once"
    for letter, count in patients.items():
        per_part = [t[t["label"] == letter]["patient_id"].nunique() for t in tests]
        assert max(per_part) - min(per_part) <= 1, (letter, count, per_part)


@given(sizes, st.integers(0, 99))
def test_one_patient_more_moves_at_most_one_other_per_border(patients: dict[str, int], seed: int) -> None:
    before = make(table(patients), seed).rows.drop_duplicates("patient_id").set_index("patient_id")["fold"]
    grown = pd.concat(
        [table(patients), pd.DataFrame([("new-0", "new", "B")], columns=["image_id", "patient_id", "label"])]
    )
    after = make(grown, seed).rows.drop_duplicates("patient_id").set_index("patient_id")["fold"]
    assert (after[before.index] != before).sum() <= 4


def test_the_seed_changes_the_split_for_real() -> None:
    rows = table({"A": 50, "B": 50, "C": 50, "D": 50})
    first, second = make(rows, 0).rows, make(rows, 1).rows
    assert (first["fold"] != second["fold"]).mean() > 0.3


def test_density_and_binary_share_one_split() -> None:
    rows = table({"A": 9, "B": 9, "C": 9, "D": 9})
    assert split.make(rows, SplitConfig(), "density", 0).digest == split.make(rows, SplitConfig(), "binary", 0).digest


def test_the_digest_is_the_one_of_all_machines() -> None:
    assert make(table({"A": 7, "B": 8, "C": 9, "D": 6})).digest == "23438428c8c1af99"


def test_rows_without_a_label_stay_out() -> None:
    rows = table({"A": 5, "B": 5, "C": 5, "D": 5})
    blank = pd.DataFrame([("x-0", "x", None)], columns=rows.columns)
    assert make(pd.concat([rows, blank])).digest == make(rows).digest


def test_a_class_that_does_not_occur_is_no_error() -> None:
    assert set(make(table({"A": 6, "B": 6, "C": 6})).rows["label"]) == {"A", "B", "C"}


def test_a_class_with_too_few_patients_is_an_error_that_says_what_would_do() -> None:
    rows = table({"A": 10, "B": 10, "C": 10, "D": 4})
    with pytest.raises(SplitError, match=r"4 of class D.*--folds 4"):
        make(rows)
    assert make(rows, folds=4).digest
    assert split.make(rows, SplitConfig(), "binary", 0).digest


def test_no_labels_at_all_are_an_error() -> None:
    with pytest.raises(SplitError, match="without one"):
        make(pd.DataFrame([("1", "p", None)], columns=["image_id", "patient_id", "label"]))


def test_a_patient_in_two_folds_is_named() -> None:
    rows = pd.DataFrame({"patient_id": ["p1", "p1", "p2"], "fold": ["train", "test", "val"]})
    with pytest.raises(LeakError, match="p1 in test and train"):
        split.check(rows)


class TestSplitFile:
    @pytest.fixture
    def rows(self) -> pd.DataFrame:
        return table({"A": 6, "B": 6, "C": 6, "D": 6})

    def load(self, rows: pd.DataFrame, given_rows: pd.DataFrame, tmp_path: Path) -> split.Split:
        file = tmp_path / "split.csv"
        given_rows.to_csv(file, index=False)
        return split.make(rows, SplitConfig(split_file=file), "density", 99)

    def test_a_saved_split_is_honoured_whatever_the_seed(self, rows: pd.DataFrame, tmp_path: Path) -> None:
        made = make(rows, 5)
        assert self.load(rows, made.rows, tmp_path).digest == made.digest

    def test_a_leak_in_the_file_is_refused_by_name(self, rows: pd.DataFrame, tmp_path: Path) -> None:
        spoiled = make(rows).rows.copy()
        patient = spoiled.groupby("patient_id").size().idxmax()
        first = spoiled.index[spoiled["patient_id"] == patient][0]
        spoiled.loc[first, "fold"] = "test" if spoiled.loc[first, "fold"] != "test" else "train"
        with pytest.raises(LeakError, match=str(patient)):
            self.load(rows, spoiled, tmp_path)

    def test_a_file_of_other_data_says_what_differs(self, rows: pd.DataFrame, tmp_path: Path) -> None:
        made = make(rows).rows
        with pytest.raises(SplitError, match="1 images in the data only"):
            self.load(rows, made.iloc[1:], tmp_path)
        with pytest.raises(SplitError, match="1 images in the file only"):
            self.load(rows.drop(rows.index[rows["image_id"] == made["image_id"][0]]), made, tmp_path)

    def test_unknown_folds_and_missing_columns_are_errors(self, rows: pd.DataFrame, tmp_path: Path) -> None:
        with pytest.raises(SplitError, match="'dev'"):
            self.load(rows, make(rows).rows.assign(fold="dev"), tmp_path)
        with pytest.raises(SplitError, match="image_id, patient_id, fold"):
            self.load(rows, make(rows).rows.drop(columns="fold"), tmp_path)
