from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mammoray import catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError
from tests import trees

MAKERS = {
    "rsna": trees.rsna,
    "irma": trees.irma,
    "study": trees.study,
    "mamografias": trees.mamografias,
    "patches": trees.patches,
    "folders": trees.folders,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_layout_is_recognised_from_its_root_alone_and_shows_what_by(name: str, tmp_path: Path) -> None:
    found = catalog.build(None, MAKERS[name](tmp_path / "set"))
    assert found.layout == name
    assert all(found.evidence)
    assert any(character.isdigit() or character in "ABCD" for character in "".join(found.evidence))


@pytest.mark.parametrize(
    ("name", "csv"), [("rsna", "train.csv"), ("irma", "classificacao.csv"), ("study", "metadata.csv")]
)
def test_a_table_of_any_name_in_any_place_does_as_well(name: str, csv: str, tmp_path: Path) -> None:
    root = MAKERS[name](tmp_path / "set")
    (root / csv).rename(tmp_path / "labels.txt")
    below = {"rsna": "train_images", "irma": "archive", "study": "."}[name]
    assert catalog.build(tmp_path / "labels.txt", root).layout == name
    inside = catalog.build(tmp_path / "labels.txt", root / below)
    assert inside.layout == name
    assert inside.rows["path"].tolist() == catalog.build(tmp_path / "labels.txt", root).rows["path"].tolist()


@pytest.mark.parametrize(
    ("first", "second"),
    [("rsna", "irma"), ("mamografias", "rsna"), ("patches", "mamografias")],
)
def test_a_root_with_two_sets_is_an_error_that_lists_both_and_a_flag_decides(
    first: str, second: str, tmp_path: Path
) -> None:
    MAKERS[first](tmp_path)
    MAKERS[second](tmp_path)
    with pytest.raises(CatalogError, match="--dataset") as caught:
        catalog.build(None, tmp_path)
    assert f"{first} (" in caught.value.found and f"{second} (" in caught.value.found
    for name in (first, second):
        assert catalog.build(None, tmp_path, DataConfig(dataset=name)).layout == name  # type: ignore[arg-type]


def test_patients_called_1_to_4_are_no_folders_of_classes(tmp_path: Path) -> None:
    lines = ["patient_id,image_id,density", *(f"{i},{i}0,A" for i in range(1, 5))]
    trees.table(tmp_path, "train.csv", lines)
    assert catalog.build(None, trees.touch(tmp_path, [f"{i}/{i}0.dcm" for i in range(1, 5)])).layout == "rsna"


def test_a_table_that_fits_two_layouts_is_an_error_too(tmp_path: Path) -> None:
    trees.irma(tmp_path)
    lines = ["AccessionNumber,Classification,image_path", "000706,1,archive/000706/IM0001.dcm"]
    csv = trees.table(tmp_path, "both.csv", lines)
    with pytest.raises(CatalogError, match=r"irma \(.*csv \("):
        catalog.build(csv, tmp_path)
    assert catalog.build(csv, tmp_path, DataConfig(path_column="image_path")).layout == "csv"


def edit_rsna(root: Path) -> None:
    (root / "train_images").rename(root / "pictures.d")
    for path in list((root / "pictures.d").rglob("*.dcm")):
        path.rename(root / path.name)


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (edit_rsna, {}, r"rsna: no file as \[train_images/\]<patient_id>/<image_id>.dcm, but 4 such as"),
        (lambda root: None, {"dataset": "irma"}, "irma: no column AccessionNumber and no Classification"),
        (lambda root: None, {"dataset": "patches"}, "patches: no images beside a featureS.txt"),
        (lambda root: None, {"label_column": "BI"}, "no column BI"),
    ],
)
def test_a_layout_that_does_not_fit_says_what_is_missing(
    spoil: Callable[[Path], None], flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    root = trees.rsna(tmp_path)
    spoil(root)
    with pytest.raises(CatalogError, match=message):
        catalog.build(None, root, DataConfig(**flags))


def test_a_table_for_a_layout_without_one_is_an_error(tmp_path: Path) -> None:
    root = trees.patches(tmp_path / "set")
    csv = trees.table(tmp_path, "t.csv", ["a,b", "1,2"])
    with pytest.raises(CatalogError, match="which this layout does not have"):
        catalog.build(csv, root, DataConfig(dataset="patches"))


def test_no_root_and_a_root_without_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="--dicom-root"):
        catalog.build(None, tmp_path / "none")
    with pytest.raises(CatalogError, match="found 1 other files"):
        catalog.build(None, trees.touch(tmp_path, ["notes.txt"]))


def test_one_folder_named_like_a_class_makes_no_set_of_class_folders(tmp_path: Path) -> None:
    trees.touch(tmp_path, ["4/one.dcm", *(f"{i}/{k}.dcm" for i in range(50, 60) for k in range(2))])
    with pytest.raises(CatalogError, match="only 1 of 21 images are in folders named by a class"):
        catalog.build(None, tmp_path)


def test_any_folder_of_images_is_taken_without_labels_where_that_is_allowed_and_nothing_else_fits(
    tmp_path: Path,
) -> None:
    trees.touch(tmp_path, ["p1/1.dcm", "p1/2.dcm", "p2/1.dcm", "single.dcm"])
    with pytest.raises(CatalogError):
        catalog.build(None, tmp_path)
    found = catalog.build(None, tmp_path, unlabelled=True)
    assert found.layout == "files" and found.rows["label"].isna().all()
    assert found.rows["patient_id"].tolist() == ["p1", "p1", "p2", "single.dcm"]
    assert found.leak is not None and "folder" in found.leak
    named = catalog.build(None, tmp_path, DataConfig(dataset="files"), classes="cancer")
    assert named.rows.equals(found.rows)
    assert catalog.build(None, trees.rsna(tmp_path / "set"), unlabelled=True).layout == "rsna"


def test_a_table_that_fits_nothing_is_an_error_even_where_labels_are_not_needed(tmp_path: Path) -> None:
    trees.touch(tmp_path, ["p1/1.dcm"])
    table = trees.table(tmp_path, "t.csv", ["a,b", "1,2"])
    with pytest.raises(CatalogError, match="column"):
        catalog.build(table, tmp_path, unlabelled=True)
