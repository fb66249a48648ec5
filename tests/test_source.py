from pathlib import Path

import pandas as pd
import pytest

from mammoray import catalog, source
from mammoray.catalog import Catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError
from mammoray.layouts import Tree
from mammoray.tables import open_table
from tests import trees


def build(root: Path, csv: Path | None = None, **settings: str) -> Catalog:
    return catalog.build(csv, root, DataConfig(**settings))  # type: ignore[arg-type]


def irma_of_two_women(tmp_path: Path) -> Path:
    rows = ["AccessionNumber,Classification,Woman", "000702,3,w1", "000706,1,w1", "000711,5,w1", "000717,4,w2"]
    trees.table(trees.irma(tmp_path), "classificacao.csv", rows)
    return tmp_path


def test_a_column_of_women_groups_exams_and_ends_the_warning_of_a_leak(tmp_path: Path) -> None:
    data = build(irma_of_two_women(tmp_path), group_column="woman")
    assert list(data.rows["patient_id"]) == ["w1", "w1", "w1", "w2"]
    assert (data.grouped_by, data.leak, data.limits) == ("Woman", None, ())


def test_a_column_groups_patients_of_the_study_layout(tmp_path: Path) -> None:
    rows = ["patient_id,class,family", "000123,2,f", "000124,4,f"]
    assert set(build(trees.study(tmp_path, rows), group_column="family").rows["patient_id"]) == {"f"}


@pytest.mark.parametrize("layout", [trees.rsna, trees.irma, trees.study])
def test_a_group_column_that_is_not_there_is_an_error_in_every_layout(layout: object, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"the column nurse \(--group-column\)"):
        build(layout(tmp_path), group_column="nurse")  # type: ignore[operator]


@pytest.mark.parametrize("layout", [trees.mamografias, trees.patches, trees.folders])
def test_a_column_is_refused_where_there_is_no_table(layout: object, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="--group-column"):
        build(layout(tmp_path), group_column="patient_id")  # type: ignore[operator]


def test_a_group_that_divides_a_patient_is_an_error_in_every_layout(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="1 patients in several, such as that of lines 2, 3"):
        build(trees.rsna(tmp_path / "rsna"), group_column="image_id")
    with pytest.raises(CatalogError, match="all images of a patient in one group"):
        build(trees.study(tmp_path / "study"), group_column="study_id")
    root = trees.touch(tmp_path / "csv", ["1.dcm", "2.dcm"])
    csv = trees.table(tmp_path, "t.csv", ["path,patient_id,exam", "1.dcm,p,1", "2.dcm,p,2"])
    with pytest.raises(CatalogError, match="all images of a patient in one group"):
        build(root, csv, group_column="exam")


def test_equal_rows_of_two_groups_are_an_error(tmp_path: Path) -> None:
    with (irma_of_two_women(tmp_path) / "classificacao.csv").open("a") as file:
        file.write("000702,3,w2\n")
    with pytest.raises(CatalogError, match="lines 2, 6: expected one meaning of id 000702"):
        build(tmp_path, group_column="Woman")


def test_rows_that_do_not_say_their_image_are_listed_with_their_lines(tmp_path: Path) -> None:
    csv = trees.rsna(tmp_path / "rsna") / "train.csv"
    csv.write_text(csv.read_text().replace("1,10,101,", "1,,101,").replace("1,11,111,", "1,11,,"))
    data = build(tmp_path / "rsna")
    found = [f.found for f in data.findings if f.reason == "the row does not say its image"]
    assert found == ["a blank in line 2", "a blank in line 4"]
    assert list(data.rows["image_id"]) == ["102", "121"]


def test_files_that_differ_in_their_suffix_alone_are_two_images(tmp_path: Path) -> None:
    trees.touch(trees.irma(tmp_path), ["archive/000706/IM0001.png"])
    rows = build(tmp_path).rows
    assert rows["image_id"].is_unique
    assert {"000706/IM0001.dcm", "000706/IM0001.png", "000702/IM0001"} < set(rows["image_id"])


def test_images_after_the_first_of_an_exam_are_not_said_to_have_no_row(tmp_path: Path) -> None:
    reasons = {finding.reason for finding in build(trees.irma(tmp_path), exam_images="first").findings}
    assert reasons == {"only the first image of the exam is used", "class 5 is excluded"}


def test_image_ids_are_paths_without_suffix_unless_two_share_one() -> None:
    assert list(source.image_ids(pd.Series(["a/1.dcm", "a/2.dcm", "a/2.png"]))) == ["a/1", "a/2.dcm", "a/2.png"]


def test_images_beside_the_folder_of_the_layout_and_files_without_a_suffix_are_listed(tmp_path: Path) -> None:
    irma = trees.touch(trees.irma(tmp_path / "irma"), ["more/1/1.dcm", "more/2/1.dcm", "archive/000702/IM0009"])
    findings = {f.file: (f.severity, f.reason, f.found) for f in build(irma).findings if f.severity == "warning"}
    assert findings == {
        "more/": ("warning", "images beside archive are not looked at", "2 images"),
        "000702/IM0009": ("warning", "the file's name has no suffix", "none"),
    }
    rsna = trees.touch(trees.rsna(tmp_path / "rsna"), ["test_images/1/2.dcm", "old/1/2.dcm"])
    assert [f.file for f in build(rsna).findings] == ["old/"]


def reading(folder: Path, *lines: str, label_column: str | None = None) -> source.Source:
    table = open_table(str(trees.table(folder, "t.csv", lines)))
    return source.Source(
        table=table, tree=Tree(str(folder)), config=DataConfig(label_column=label_column), classes="density"
    )


def frame(*rows: tuple[str, str]) -> pd.DataFrame:
    """Ids and what is said of them, in lines 2, 3, ..."""
    table = pd.DataFrame(rows, columns=["id", "said"], dtype="string")
    return table.assign(line=range(2, len(rows) + 2))


def test_columns_that_a_table_lacks_are_blank_and_its_own_are_found_in_any_case(tmp_path: Path) -> None:
    data = reading(tmp_path, "ID,VIEW,Density", "7,CC,2").read({"id": "ID"}, "density")
    assert data.iloc[0].to_dict() == {
        "line": 2, "id": "7", "cell": "2", "view": "CC", "laterality": "", "site_id": "", "machine_id": "",
        "implant": "", "age": "", "group": "",
    }  # fmt: skip


def test_a_column_that_was_asked_for_must_be_there_and_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    lines = ("density,mine", "1,4")
    assert list(reading(tmp_path, *lines, label_column="mine").read({}, "density")["cell"]) == ["4"]
    with pytest.raises(CatalogError, match=r"header: expected the column other \(--label-column\).*density, mine"):
        reading(tmp_path, *lines, label_column="other").read({}, "density")


def test_rows_without_copies_are_given_back_as_they_are() -> None:
    data = frame(("a", "1"), ("b", "1"))
    assert source.one_meaning(data, ["id"], "t.csv") == (data, [])


def test_the_first_of_equal_rows_is_kept_and_the_finding_counts_them() -> None:
    kept, findings = source.one_meaning(frame(("a", "1"), ("b", "2"), ("a", "1")), ["id"], "t.csv")
    assert list(kept["line"]) == [2, 3]
    assert [(f.severity, f.image_id, f.found) for f in findings] == [("warning", "a", "2 equal rows")]


def test_rows_that_differ_are_an_error_with_the_first_id_its_first_lines_and_the_number_of_ids() -> None:
    differing = [("b", str(i)) for i in range(7)] + [("c", "1"), ("c", "2"), ("a", "1"), ("a", "1")]
    with pytest.raises(CatalogError, match=r"lines 2, 3, 4, 5, 6: expected one meaning of id b,.*2 such ids in all"):
        source.one_meaning(frame(*differing), ["id"], "t.csv")


def test_ten_thousand_copies_of_rows_are_counted_each_id_once(tmp_path: Path) -> None:
    csv = trees.rsna(tmp_path) / "train.csv"
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([*lines, *lines[1:3] * 5000]) + "\n")
    data = catalog.build(None, tmp_path)
    assert len(data.rows) == 4
    assert [(f.image_id, f.found) for f in data.findings] == [("101", "5001 equal rows"), ("102", "5001 equal rows")]


def test_a_patient_of_two_ages_has_none_and_is_no_contradiction() -> None:
    frame = pd.DataFrame({"patient_id": ["a", "a", "b"], "age": ["50", "52", "61"], "line": [2, 3, 4]})
    kept, findings = source.one_meaning(frame, ("patient_id",), "t.csv")
    assert dict(zip(kept["patient_id"], kept["age"], strict=True)) == {"a": "", "b": "61"}
    assert len(findings) == 1
