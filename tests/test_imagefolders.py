from pathlib import Path

import pytest

from mammoray import catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError, LabelError
from tests import trees


def build(root: Path) -> catalog.Catalog:
    return catalog.build(None, root, DataConfig())


def test_mamografias_takes_labels_from_class_lines_and_side_and_view_from_names(tmp_path: Path) -> None:
    rows = build(trees.mamografias(tmp_path)).rows
    assert rows[["path", "label", "laterality", "view"]].to_numpy().tolist() == [
        ["DleftCC/d_left_cc (1).png", "A", "L", "CC"],
        ["DleftCC/d_left_cc (10).png", "A", "L", "CC"],
        ["DrightMLO/d_right_mlo (10).png", "A", "R", "MLO"],
        ["GrightMLO/g_right_mlo (10).png", "D", "R", "MLO"],
    ]


def test_the_same_index_in_several_folders_is_one_group_and_results_may_leak(tmp_path: Path) -> None:
    data = build(trees.mamografias(tmp_path))
    assert list(data.rows["patient_id"]) == ["d(1)", "d(10)", "d(10)", "g(10)"]
    assert data.leak is not None and data.leak in data.limits


def test_all_patches_of_one_source_image_are_one_group(tmp_path: Path) -> None:
    data = build(trees.patches(tmp_path))
    assert data.layout == "patches"
    assert dict(zip(data.rows["path"], data.rows["patient_id"], strict=True)) == {
        "p_d_left_cc(10)_1.png": "p_d(10)",
        "p_d_left_cc(10)_2.png": "p_d(10)",
        "p_g_right_mlo(7).png": "p_g(7)",
    }
    assert list(data.rows["label"]) == ["A", "A", "D"]
    assert data.leak is not None


def test_the_innermost_folder_that_names_a_class_counts(tmp_path: Path) -> None:
    trees.touch(trees.folders(tmp_path), ["A/2/x.png"])
    data = build(tmp_path)
    assert dict(zip(data.rows["path"], data.rows["label"], strict=True)) == {
        "A/2/x.png": "B",
        "test/IV/three.tif": "D",
        "train/A/one.png": "A",
        "train/density_2/two.jpg": "B",
    }
    assert ("no folder says the class", "train/other/four.png") in [(f.reason, f.file) for f in data.findings]
    assert data.leak is not None


def test_names_without_an_image_and_images_without_a_name_are_listed(tmp_path: Path) -> None:
    trees.patches(tmp_path)
    with (tmp_path / "featureS.txt").open("a") as file:
        file.write("p_lost(3)\n1\np_g_right_mlo(7)\n3\n")
    trees.touch(tmp_path, ["p_new(4).png"])
    found = {(f.severity, f.reason, f.file, f.image_id) for f in build(tmp_path).findings}
    assert found == {
        ("error", "the row has no file", "p_lost(3).png", "p_lost(3).png"),
        ("warning", "the file has no row", "p_new(4).png", ""),
        ("warning", "the image is listed more than once", "featureS.txt", "p_g_right_mlo(7)"),
    }


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("p_x(1)\n", CatalogError, r"featureS\.txt: expected a name and a class line in turn, found 7 lines"),
        ("p_x(1)\n4\n", LabelError, r"featureS\.txt: line 8: expected a class from 0 to 3, found '4'"),
        ("p_g_right_mlo(7)\n2\n", CatalogError, r"featureS\.txt: p_g_right_mlo\(7\).*D in line 5 and C in line 7"),
    ],
)
def test_a_spoiled_list_is_an_error_with_its_line(
    more: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    trees.patches(tmp_path)
    with (tmp_path / "featureS.txt").open("a") as file:
        file.write(more)
    with pytest.raises(error, match=message):
        build(tmp_path)


def test_there_are_no_cancer_labels_in_these_layouts(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="--classes density"):
        catalog.build(None, trees.patches(tmp_path), DataConfig(), "cancer")


def test_images_without_a_number_are_counted_where_the_grouping_is_said(tmp_path: Path) -> None:
    names = ["p_d_left_cc_10_1", "p_d_left_cc_10_2", "p_g_right_mlo(7)"]
    trees.features(tmp_path, "", dict.fromkeys(names, 0))
    data = catalog.build(None, trees.touch(tmp_path, [f"{name}.png" for name in names]))
    assert data.leak is not None and "2 without such a number by nothing" in data.leak
