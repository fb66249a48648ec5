import pandas as pd
import pytest

from mammoray import labels
from mammoray.errors import LabelError


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("1", "A"),
        ("2.0", "B"),
        (" 3 ", "C"),
        ("4", "D"),
        ("a", "A"),
        ("D", "D"),
        (" c", "C"),
        ("I", "A"),
        ("II", "B"),
        ("III", "C"),
        ("iv", "D"),
        ("", None),
        (" ", None),
    ],
)
def test_densities_in_all_forms_met_in_the_wild(text: str, label: str | None) -> None:
    assert labels.parse_density(text, "here") == label


@pytest.mark.parametrize("text", ["0", "5", "E", "1.5", "AB", "nan", "V", "1,0", "-1", "IIII"])
def test_any_other_density_is_an_error_with_place_and_value(text: str) -> None:
    with pytest.raises(LabelError, match=f"line 9.*1 to 4, A to D, I to IV.*{text}"):
        labels.parse_density(text, "line 9")


@pytest.mark.parametrize(
    ("text", "label"), [("0", "negative"), ("1", "cancer"), ("1.0", "cancer"), ("False", "negative"), ("", None)]
)
def test_cancer_is_zero_or_one(text: str, label: str | None) -> None:
    assert labels.parse_cancer(text, "here") == label


@pytest.mark.parametrize("text", ["2", "yes", "A", "0.5"])
def test_any_other_cancer_label_is_an_error(text: str) -> None:
    with pytest.raises(LabelError, match="0 or 1"):
        labels.parse_cancer(text, "line 9")


def test_class_lines_count_from_zero_and_know_no_fifth_class() -> None:
    assert [labels.parse_class_line(str(i), "") for i in range(4)] == list("ABCD")
    for wrong in ("4", "A", "", "-1"):
        with pytest.raises(LabelError, match="0 to 3"):
            labels.parse_class_line(wrong, "featureS.txt: line 2")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("A", "A"),
        ("d", "D"),
        ("3", "C"),
        ("IV", "D"),
        ("class_2", "B"),
        ("Density-4", "D"),
        ("BIRADS 1", "A"),
        ("bi-rads_iii", "C"),
        ("DleftCC", None),
        ("train", None),
        ("5", None),
        ("AB", None),
        ("Iv2", None),
    ],
)
def test_a_folder_says_its_class_or_none(name: str, label: str | None) -> None:
    assert labels.parse_folder(name) == label


def test_a_column_names_the_first_wrong_cells_by_line_and_counts_the_rest() -> None:
    cells = pd.Series(["A", "x", "2", *["y"] * 9], name="density")
    lines = pd.Series(range(2, 14))
    with pytest.raises(LabelError) as caught:
        labels.parse(cells, lines, "t.csv", "density")
    assert caught.value.where == "t.csv: line 3, density"
    assert caught.value.found == "'x' in line 3, 'y' in line 5, 'y' in line 6, 'y' in line 7, 'y' in line 8, and 5 more"


def test_the_same_cells_mean_the_same_in_four_classes_and_in_two() -> None:
    every = pd.Series(list("ABCD"))
    assert labels.class_index(every, "density").tolist() == [0, 1, 2, 3]
    assert labels.class_index(every, "binary").tolist() == [0, 0, 1, 1]
    assert labels.class_index(pd.Series(["negative", "cancer"]), "cancer").tolist() == [0, 1]
