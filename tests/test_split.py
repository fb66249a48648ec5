from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks import rsna_table
from mammoray import deal, split
from mammoray.config import Classes, SplitConfig
from mammoray.errors import SplitError


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


def of_patient(made: split.Split) -> pd.Series:
    return made.rows.drop_duplicates("patient_id").set_index("patient_id")["fold"]


def moved(before: split.Split, after: split.Split) -> int:
    old = of_patient(before)
    return int((of_patient(after)[old.index] != old).sum())


def labelled(table: pd.DataFrame, classes: str) -> pd.DataFrame:
    """An RSNA table as the catalog's rows: density letters, or negative and cancer."""
    label = table["density"].replace("", None) if classes == "density" else table["cancer"].map(CANCER)
    return table.assign(label=label)


CANCER = {"0": "negative", "1": "cancer"}


@pytest.fixture(scope="module")
def rsna_rows() -> pd.DataFrame:
    return rsna_table.make(0)


sizes = st.fixed_dictionaries({letter: st.integers(5, 40) for letter in "ABCD"})


@settings(deadline=None)
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


@settings(deadline=None)
@given(sizes, st.integers(3, 5), st.integers(0, 99))
def test_the_parts_of_a_class_differ_by_at_most_one_patient(patients: dict[str, int], folds: int, seed: int) -> None:
    rows = table(patients)
    tests = [make(rows, seed, folds=folds, fold=k).rows.query("fold == 'test'") for k in range(folds)]
    assert sorted(pd.concat(tests)["image_id"]) == sorted(rows["image_id"]), "each patient is tested once"
    for letter, count in patients.items():
        per_part = [t[t["label"] == letter]["patient_id"].nunique() for t in tests]
        assert max(per_part) - min(per_part) <= 1, (letter, count, per_part)


@settings(deadline=None)
@given(sizes, st.integers(0, 99), st.randoms(use_true_random=False))
def test_pandas_and_arrow_columns_rows_and_index_in_any_order_give_one_digest(
    patients: dict[str, int], seed: int, random: Random
) -> None:
    rows = table(patients).assign(site_id="1", age=50.0)
    rows["machine_id"] = [f"{int(p[1:]) % 3}" for p in rows["patient_id"]]
    blank = rows.iloc[:5].assign(image_id=[f"blank-{i}" for i in range(5)], label=None)
    rows = pd.concat([rows, blank])  # With repeated labels in the index.
    columns, order = list(rows.columns), list(range(len(rows)))
    random.shuffle(columns)
    random.shuffle(order)
    shuffled = rows.iloc[order][columns]
    digests = {
        split.make(form, SplitConfig(), "density", seed).digest
        for form in (
            rows,
            shuffled,
            shuffled.astype({"label": "category", "patient_id": "string", "machine_id": object}),
            pa.Table.from_pandas(shuffled, preserve_index=False),
            pa.Table.from_pandas(shuffled),
        )
    }
    assert len(digests) == 1


@settings(deadline=None)
@given(sizes, st.integers(0, 99))
def test_one_patient_more_moves_no_more_others_than_the_bound(patients: dict[str, int], seed: int) -> None:
    rows = table(patients)
    grown = pd.concat([rows, pd.DataFrame([("new-0", "new", "B")], columns=["image_id", "patient_id", "label"])])
    assert moved(make(rows, seed), make(grown, seed)) <= deal.bound(cells=1, parts=5)


def test_the_seed_changes_the_split_for_real() -> None:
    rows = table({"A": 50, "B": 50, "C": 50, "D": 50})
    tests = [{p for p, fold in of_patient(make(rows, seed)).items() if fold == "test"} for seed in range(20)]
    shared = [len(a & b) / len(a) for i, a in enumerate(tests) for b in tests[:i]]
    assert abs(np.mean(shared) - 1 / 5) < 0.01, "as many as by chance"
    assert max(shared) < 0.5


def test_density_and_binary_share_one_split() -> None:
    rows = table({"A": 9, "B": 9, "C": 9, "D": 9})
    assert split.make(rows, SplitConfig(), "density", 0).digest == split.make(rows, SplitConfig(), "binary", 0).digest


def test_the_digest_is_the_one_of_all_machines() -> None:
    assert make(table({"A": 7, "B": 8, "C": 9, "D": 6})).digest == "6c91a9667da2f52d"


def test_the_digest_of_a_split_over_sites_machines_and_sizes_is_the_one_of_all_machines() -> None:
    # Made by integers alone, so that the table is the same everywhere as well.
    rows = pd.DataFrame(
        [
            (f"{p}-{k}", f"{p:05d}", "AABBBBBBCCCCCCD"[p * p % 15], f"{p % 2}", f"m{p**3 % 7}")
            for p in range(1500)
            for k in range(4 + p * p % 11 * (p % 3 // 2))
        ],
        columns=["image_id", "patient_id", "label", "site_id", "machine_id"],
    )
    found = [make(rows, 1, **settings).digest for settings in ({}, {"val_share": 0.15, "test_share": 0.1})]
    assert found == ["78e509f93b44e819", "dffb54abca360946"]


@pytest.mark.parametrize("classes", ["density", "cancer"])
class TestAgainstScikitLearn:
    """Parts no less even than those of ``StratifiedGroupKFold``, by its own criterion and by patients."""

    def check(self, rows: pd.DataFrame, classes: Classes, seed: int, folds: int = 5) -> None:
        rows = rows[rows["label"].notna()]
        ours = np.zeros(len(rows), dtype=int)
        for k in range(folds):
            made = split.make(rows, SplitConfig(folds=folds, fold=k), classes, seed).rows
            ours[rows["image_id"].isin(made.loc[made["fold"] == "test", "image_id"])] = k
        theirs = np.zeros(len(rows), dtype=int)
        sklearn_split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for k, (_, test) in enumerate(sklearn_split.split(rows, rows["label"], rows["patient_id"])):
            theirs[test] = k
        for measure in (image_unevenness, patient_unevenness):
            assert measure(rows, ours) <= measure(rows, theirs) + 1e-12, measure.__name__

    @pytest.mark.parametrize(("seed", "folds"), [(0, 5), (1, 5), (2, 10)])
    def test_on_rsna_like_tables(self, classes: Classes, seed: int, folds: int) -> None:
        self.check(labelled(rsna_table.make(seed), classes), classes, seed, folds)

    @pytest.mark.parametrize("seed", range(12))
    def test_on_small_tables_of_several_machines(self, classes: Classes, seed: int) -> None:
        self.check(small_table(classes, seed), classes, seed, folds=3 + seed % 3)

    @pytest.mark.parametrize("seed", range(3))
    def test_on_three_classes_of_twenty_patients_with_two_images(self, classes: Classes, seed: int) -> None:
        names = "ABC" if classes == "density" else ("negative", "negative", "cancer")
        rows = [(f"{p}-{i}", f"{p}", names[p % 3]) for p in range(60) for i in range(2)]
        self.check(pd.DataFrame(rows, columns=["image_id", "patient_id", "label"]), classes, seed)


def small_table(classes: Classes, seed: int) -> pd.DataFrame:
    """40 to 120 patients of 4 to 6 images, as ``mammoray synth`` makes them, on 8 machines."""
    rng = np.random.default_rng(seed)
    patients = np.arange(int(rng.integers(40, 120)))
    names = list("ABCD") if classes == "density" else ["negative", "cancer"]
    odds = [0.15, 0.4, 0.3, 0.15] if classes == "density" else [0.8, 0.2]
    label = np.concatenate([np.repeat(names, 5), rng.choice(names, len(patients), p=odds)])[: len(patients)]
    machine = rng.choice(8, len(patients), p=[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    of_image = np.repeat(patients, rng.choice([4, 5, 6], len(patients), p=[0.8, 0.17, 0.03]))
    return pd.DataFrame(
        {
            "image_id": [f"{i:04d}" for i in range(len(of_image))],
            "patient_id": [f"p{p}" for p in of_image],
            "label": label[of_image],
            "site_id": "1",
            "machine_id": machine[of_image].astype(str),
        }
    )


def image_unevenness(rows: pd.DataFrame, part_R: Any) -> float:
    """scikit-learn's: over the parts the deviation of each class's share of images, the mean over the classes."""
    counts = pd.crosstab(part_R, rows["label"].to_numpy())
    return float((counts / counts.sum()).std(ddof=0).mean())


def patient_unevenness(rows: pd.DataFrame, part_R: Any) -> float:
    """Patients by which two parts differ in a class, at most; a patient with a cancer is one of that class."""
    label = rows["label"].map(["negative", "cancer", *"ABCD"].index).to_numpy()
    patients = pd.DataFrame({"patient": rows["patient_id"].to_numpy(), "part": part_R, "label": label})
    patients = patients.groupby("patient").max()
    return float(np.ptp(pd.crosstab(patients["part"], patients["label"]).to_numpy(), axis=0).max())


class TestRsna:
    def test_sites_and_machines_are_balanced(self, rsna_rows: pd.DataFrame) -> None:
        made = split.make(labelled(rsna_rows, "cancer"), SplitConfig(), "cancer", 0).rows
        patients = made.merge(rsna_rows[["image_id", "machine_id"]], on="image_id").drop_duplicates("patient_id")
        counts = pd.crosstab(patients["machine_id"], patients["fold"])
        assert ((counts["train"] / 3 - counts["test"]).abs() <= 3).all(), "a patient a class, and the one on two"

    def test_a_new_patient_moves_few_others(self, rsna_rows: pd.DataFrame) -> None:
        rows = labelled(rsna_rows, "density")
        new = rows[rows["patient_id"] == rows.loc[rows["label"] == "B", "patient_id"].iloc[0]]
        new = new.assign(patient_id="new", image_id=new["image_id"] + "-new")
        before = make(rows)
        moves = moved(before, make(pd.concat([rows, new])))
        assert moves <= deal.bound(cells=7, parts=5)
        assert moves < 0.03 * len(of_patient(before))


def test_one_image_with_cancer_makes_a_patient_of_that_class() -> None:
    rows = pd.DataFrame(
        [(f"{p}-{i}", f"p{p}", "cancer" if p < 10 and i == 0 else "negative") for p in range(40) for i in range(4)],
        columns=["image_id", "patient_id", "label"],
    )
    made = split.make(rows, SplitConfig(), "cancer", 0).rows
    assert made[made["label"] == "cancer"].groupby("fold").size().to_dict() == {"test": 2, "train": 6, "val": 2}


@settings(deadline=None)
@given(sizes, st.integers(5, 40), st.integers(0, 40), st.integers(0, 99))
def test_hold_out_shares_are_met_within_one_patient_of_every_class(
    patients: dict[str, int], val: int, test: int, seed: int
) -> None:
    made = make(table(patients), seed, val_share=val / 100, test_share=test / 100).rows
    assert sorted(made["image_id"]) == sorted(table(patients)["image_id"])
    for letter, count in patients.items():
        inside = made[made["label"] == letter].groupby("fold")["patient_id"].nunique()
        for fold, percent in {"val": val, "test": test}.items():
            assert abs(inside.get(fold, 0) - count * percent / 100) < 1, (letter, fold)


def test_a_hold_out_without_a_test_set_has_an_empty_one() -> None:
    made = make(table({"A": 8, "B": 12}), val_share=0.25)
    assert split.counts(made, made.rows)["folds"]["test"]["patients"] == 0
    assert of_patient(made).value_counts().to_dict() == {"train": 15, "val": 5}


def test_a_class_that_is_too_small_for_the_shares_is_an_error_that_says_what_would_do() -> None:
    rows = table({"A": 40, "B": 2})
    with pytest.raises(SplitError, match=r"2 of class B.*--val-share without --test-share"):
        make(rows, val_share=0.1, test_share=0.1)
    assert make(rows, val_share=0.1).digest


class TestTestFile:
    ROWS = table({"A": 20, "B": 20, "C": 20, "D": 20})

    def file(self, tmp_path: Path, patients: list[str]) -> Path:
        path = tmp_path / "test.csv"
        path.write_text("\n".join(["patient_id", *patients]) + "\n")
        return path

    def test_an_earlier_test_set_is_honoured_while_the_data_grow_whatever_the_seed(self, tmp_path: Path) -> None:
        split.save(make(self.ROWS, 1), tmp_path, self.ROWS)
        grown = pd.concat([self.ROWS, table({"A": 30, "B": 30, "C": 30, "D": 30})]).drop_duplicates()
        made = make(grown, 2, test_file=tmp_path / "split.csv", fold=3)
        assert made.notes == ()
        tests = [{p for p, fold in of_patient(m).items() if fold == "test"} for m in (make(self.ROWS, 1), made)]
        assert tests[0] == tests[1]
        assert of_patient(made).value_counts().to_dict() == {"train": 83, "val": 21, "test": 16}

    def test_the_others_can_be_dealt_by_a_share(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, [f"{letter}{i:04d}" for letter in "ABCD" for i in range(5)])
        made = make(self.ROWS, test_file=path, val_share=0.2)
        assert of_patient(made).value_counts().to_dict() == {"train": 48, "val": 12, "test": 20}

    def test_each_fold_validates_another_part_and_none_tests(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, ["A0001", "B0001", "C0001", "D0001"])
        validated = [
            {p for p, f in of_patient(make(self.ROWS, test_file=path, fold=k)).items() if f == "val"} for k in range(5)
        ]
        assert sum(map(len, validated)) == len(set().union(*validated)) == 76

    def test_patients_that_are_left_out_stand_in_no_fold(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, ["A0001", "B0001", "C0001", "D0001", "gone"])
        made = make(self.ROWS, test_file=path, test_patients="leave_out")
        assert set(self.ROWS["patient_id"]) - set(of_patient(made).index) == {"A0001", "B0001", "C0001", "D0001"}
        assert set(made.rows["fold"]) == {"train", "val", "test"}
        assert split.counts(made, self.ROWS)["left_out"] == {"images": 8, "patients": 4}
        assert made.notes[0].startswith("1 of the 5 patients") and made.notes[1].startswith("4 patients")

    @pytest.mark.parametrize("spelling", ["a0001", " A0001", "A0001.0", "0A0001"])
    def test_a_test_patient_in_another_spelling_is_an_error_and_not_trained_on(
        self, spelling: str, tmp_path: Path
    ) -> None:
        with pytest.raises(SplitError, match=r"spelt as in the data.*1 with other zeros.*A0001"):
            make(self.ROWS, test_file=self.file(tmp_path, ["B0001", spelling]))

    def test_absent_patients_and_classes_are_said_and_no_patient_at_all_is_an_error(self, tmp_path: Path) -> None:
        made = make(self.ROWS, test_file=self.file(tmp_path, ["A0001", "0001"]))
        assert made.notes == (
            "1 of the 2 patients of --test-file have no labelled image in these data.",
            "The fixed test set has no image of class B, C, D.",
        )
        with pytest.raises(SplitError, match="none of its 2 patients"):
            make(self.ROWS, test_file=self.file(tmp_path, ["1", "2"]))
        with pytest.raises(SplitError, match="patients left to train"):
            make(self.ROWS, test_file=self.file(tmp_path, self.ROWS["patient_id"].unique().tolist()))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"label": "E"}, "label"),
        ({"label": "negative"}, "--classes"),
        ({"patient_id": None}, "patient_id"),
        ({"patient_id": ""}, "patient_id"),
        ({"image_id": "A0001-0"}, "1 repeated, such as A0001-0"),
    ],
)
def test_rows_that_cannot_be_split_are_errors(changed: dict[str, Any], named: str) -> None:
    rows = table({"A": 6, "B": 6})
    for column, value in changed.items():
        rows.loc[0, column] = value
    with pytest.raises(SplitError, match=named):
        make(rows)


class TestGivenFile:
    def test_a_saved_split_is_honoured_whatever_the_seed(self, tmp_path: Path) -> None:
        rows = table({"A": 6, "B": 6, "C": 6, "D": 6})
        made = make(rows, 5)
        split.save(made, tmp_path, rows)
        assert make(rows, 99, split_file=tmp_path / "split.csv").digest == made.digest

    def test_a_file_of_other_data_is_refused(self, tmp_path: Path) -> None:
        rows = table({"A": 6, "B": 6, "C": 6, "D": 6})
        split.save(make(rows), tmp_path, rows)
        with pytest.raises(SplitError, match="1 images in the file only"):
            make(rows.iloc[1:], split_file=tmp_path / "split.csv")


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
