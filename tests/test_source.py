from pathlib import Path

import pandas as pd
import pytest

from mammoray import catalog, source
from mammoray.catalog import Catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError
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
