import json
from pathlib import Path

import pandas as pd
import pytest

from mammoray import splitfile
from mammoray.errors import LeakError, SplitError
from mammoray.splitfile import Split

ROWS = pd.DataFrame(
    [
        ("000", "007", "A", "train"),
        ("001", "007", "A", "train"),
        ("002", "7", "B", "val"),
        ("003", "NA", "B", "test"),
        ("010", "1e3", "A", "test"),
    ],
    columns=list(splitfile.COLUMNS),
)
SPLIT = Split(rows=ROWS, digest=splitfile.digest(ROWS))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    splitfile.save(SPLIT, tmp_path, ROWS)
    return tmp_path / "split.csv"


def write(path: Path, rows: pd.DataFrame) -> Path:
    rows.to_csv(path, index=False)
    return path


def test_what_is_saved_is_loaded_with_every_id_as_the_text_it_was(saved: Path) -> None:
    loaded = splitfile.load(saved)
    assert loaded.digest == SPLIT.digest
    assert loaded.rows.to_numpy().tolist() == ROWS.to_numpy().tolist()
    splitfile.verify(ROWS, loaded)


def test_the_bytes_of_the_table_are_the_same_on_every_system(saved: Path) -> None:
    assert saved.read_bytes().startswith(b"image_id,patient_id,label,fold\n000,007,A,train\n")
    about = json.loads(saved.with_name("split.json").read_text())
    assert about["digest"] == SPLIT.digest and about["grouped_by"] == "patient_id"
    assert about["folds"]["train"] == {
        "images": 2,
        "patients": 1,
        "classes": {k: {"images": 2 * (k == "A"), "patients": 1 * (k == "A")} for k in "ABCD"},
    }
    assert not list(saved.parent.glob("*.partial"))


def test_a_table_that_was_changed_by_hand_is_refused_by_its_digest(saved: Path) -> None:
    write(saved, ROWS.assign(fold=["val", "val", "train", "test", "test"]))
    with pytest.raises(SplitError, match=f"digest {SPLIT.digest} of split.json"):
        splitfile.load(saved)
    saved.with_name("split.json").unlink()
    assert splitfile.load(saved).digest != SPLIT.digest


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"digest'])
def test_a_damaged_split_json_is_refused(saved: Path, text: str) -> None:
    saved.with_name("split.json").write_text(text)
    with pytest.raises(SplitError, match=r"split\.json"):
        splitfile.load(saved)


def test_all_that_changed_in_the_data_is_listed_with_counts_and_examples(saved: Path) -> None:
    data = pd.DataFrame(
        [
            ("000", "008", "A"),
            ("001", "007", "D"),
            ("002", "7", "B"),
            *((f"new-{i}", "9", "C") for i in range(5)),
            ("blank", "9", None),
        ],
        columns=["image_id", "patient_id", "label"],
    )
    with pytest.raises(SplitError) as caught:
        splitfile.verify(data, splitfile.load(saved), "split.csv")
    assert caught.value.found == (
        "5 images in the data only (new-0, new-1, new-2, ...); 2 images in the file only (003, 010); "
        "1 images of another patient (000); 1 images with another label (001)"
    )
    assert "--test-file" in caught.value.remedy


def test_a_table_without_labels_is_held_against_images_and_patients_alone(tmp_path: Path) -> None:
    loaded = splitfile.load(write(tmp_path / "split.csv", ROWS.drop(columns="label")))
    splitfile.verify(ROWS.assign(label="D"), loaded)
    with pytest.raises(SplitError, match="1 images in the file only"):
        splitfile.verify(ROWS.iloc[1:], loaded)


def test_repeated_images_leaks_unknown_folds_and_missing_columns_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    with pytest.raises(SplitError, match=r"1 images repeated \(000\)"):
        splitfile.load(write(path, pd.concat([ROWS, ROWS.iloc[:1]])))
    with pytest.raises(LeakError, match="007 in test and train"):
        splitfile.load(write(path, ROWS.assign(fold=["train", "test", "val", "test", "test"])))
    with pytest.raises(SplitError, match="'dev'"):
        splitfile.load(write(path, ROWS.assign(fold="dev")))
    with pytest.raises(SplitError, match="image_id, patient_id, fold"):
        splitfile.load(write(path, ROWS.drop(columns="fold")))
    with pytest.raises(SplitError, match="no file"):
        splitfile.load(tmp_path / "other.csv")


def test_a_test_set_is_the_patients_of_a_list_or_the_test_fold_of_a_split(saved: Path, tmp_path: Path) -> None:
    assert splitfile.locked_patients(saved) == {"NA", "1e3"}
    assert splitfile.locked_patients(write(tmp_path / "list.csv", ROWS[["patient_id"]])) == {"007", "7", "NA", "1e3"}
    for rows in (ROWS.assign(fold="train"), ROWS[["patient_id"]].iloc[:0]):
        with pytest.raises(SplitError, match="at least one test patient"):
            splitfile.locked_patients(write(tmp_path / "none.csv", rows))


def test_a_patient_in_two_folds_is_named() -> None:
    rows = pd.DataFrame({"patient_id": ["p1", "p1", "p2"], "fold": ["train", "test", "val"]})
    with pytest.raises(LeakError, match="p1 in test and train"):
        splitfile.check(rows)


def test_the_digest_changes_with_every_cell_and_not_with_the_order() -> None:
    assert splitfile.digest(ROWS.iloc[::-1]) == SPLIT.digest
    for column in splitfile.COLUMNS:
        changed = ROWS.copy()
        changed.loc[0, column] = "x"
        assert splitfile.digest(changed) != SPLIT.digest
