from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammoray import catalog
from mammoray.catalog import Catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError, LabelError
from tests import trees


def build(root: Path, classes: Any = "density", **settings: Any) -> Catalog:
    return catalog.build(None, root, DataConfig(**settings), classes)


def by_path(data: Catalog, column: str) -> dict[str, Any]:
    values = data.rows[column].astype(object).where(data.rows[column].notna(), None)
    return dict(zip(data.rows["path"], values, strict=True))


def reasons(data: Catalog) -> list[tuple[str, str, str]]:
    return sorted((finding.severity, finding.reason, finding.file) for finding in data.findings)


class TestRsna:
    def test_every_row_has_its_label_its_place_and_its_line(self, tmp_path: Path) -> None:
        data = build(trees.rsna(tmp_path))
        assert by_path(data, "label") == {"10/101.dcm": "A", "10/102.dcm": "A", "11/111.dcm": "D", "12/121.dcm": None}
        first = data.rows.iloc[0].to_dict()
        assert {**first, "mtime_ns": 0} == {
            "image_id": "101", "patient_id": "10", "laterality": "L", "view": "CC", "label": "A", "path": "10/101.dcm",
            "size": 0, "mtime_ns": 0, "site_id": "1", "machine_id": "49", "implant": "0", "age": "61.0",
            "line": 2,
        }  # fmt: skip
        assert data.root.endswith("train_images")
        assert (data.grouped_by, data.leak, data.findings) == ("patient_id", None, ())

    def test_an_age_stands_as_the_table_writes_it_and_is_blank_where_it_has_none(self, tmp_path: Path) -> None:
        ages = by_path(build(trees.rsna(tmp_path / "rsna")), "age")
        assert ages == {"10/101.dcm": "61.0", "10/102.dcm": "61.0", "11/111.dcm": "50.0", "12/121.dcm": ""}
        table = ["patient_id,Age,class", "000123,61,2", "000124,,4"]
        assert list(build(trees.study(tmp_path / "study", table)).rows["age"]) == ["61"] * 3 + [""]
        for tree in (trees.irma, trees.study, trees.folders):
            assert set(build(tree(tmp_path / tree.__name__)).rows["age"]) == {""}

    def test_cancer_is_a_label_of_its_own_for_all_rows(self, tmp_path: Path) -> None:
        labels = by_path(build(trees.rsna(tmp_path), "cancer"), "label")
        assert list(labels.values()) == ["negative", "cancer", "negative", "negative"]

    def test_the_test_table_has_rows_without_labels(self, tmp_path: Path) -> None:
        trees.table(
            tmp_path,
            "test.csv",
            [
                "site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id",
                "2,5,51,L,CC,60,0,29,5_L",
            ],
        )
        data = catalog.build(
            tmp_path / "test.csv", trees.touch(tmp_path, ["test_images/5/51.dcm", "train_images/1/2.dcm"])
        )
        assert by_path(data, "label") == {"5/51.dcm": None}
        assert data.findings == ()

    def test_other_columns_may_be_named_for_the_label_the_group_and_the_machine(self, tmp_path: Path) -> None:
        data = build(
            trees.rsna(tmp_path), "cancer", label_column="biopsy", group_column="site_id", machine_column="view"
        )
        assert list(data.rows["patient_id"]) == ["1", "1", "1", "2"]
        assert list(data.rows["machine_id"]) == ["CC", "MLO", "CC", "CC"]
        assert data.grouped_by == "site_id"
        with pytest.raises(CatalogError, match=r"the column nurse \(--group-column\)"):
            build(tmp_path, group_column="nurse")

    def test_a_blank_group_is_an_error_with_its_lines(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match=r"age.*the patient of every row.*1 blank cells, in lines 5"):
            build(trees.rsna(tmp_path), group_column="age")

    def test_a_wrong_label_is_an_error_with_line_value_and_accepted_forms(self, tmp_path: Path) -> None:
        csv = trees.rsna(tmp_path) / "train.csv"
        csv.write_text(csv.read_text().replace(",D,93", ",X,93"))
        with pytest.raises(LabelError, match=r"train\.csv: line 4, density: expected 1 to 4, A to D.*'X'"):
            build(tmp_path)


class TestIrma:
    def test_every_image_of_an_exam_has_its_label_and_the_zeros_stay(self, tmp_path: Path) -> None:
        data = build(trees.irma(tmp_path))
        assert by_path(data, "label") == {
            "000702/IM0001.dcm": "C",
            "000702/sub/IM0002.dcm": "C",
            "000706/IM0001.dcm": "A",
            "000717/IM0001.DCM": "D",
        }
        assert set(data.rows["patient_id"]) == {"000702", "000706", "000717"}
        assert data.leak is not None and "accession" in data.leak

    def test_class_5_is_left_out_and_counted_or_kept_without_a_label(self, tmp_path: Path) -> None:
        root = trees.irma(tmp_path)
        assert reasons(build(root)) == [("note", "class 5 is excluded", "000711/IM0001.dcm")]
        kept = build(root, class_5="keep")
        assert by_path(kept, "label")["000711/IM0001.dcm"] is None
        assert reasons(kept) == [("note", "class 5 is kept, without a label", "000711/IM0001.dcm")]

    def test_the_first_image_of_an_exam_only_on_request_and_said(self, tmp_path: Path) -> None:
        data = build(trees.irma(tmp_path), exam_images="first")
        assert "000702/IM0001.dcm" in by_path(data, "label") and len(data.rows) == 3
        assert ("note", "only the first image of the exam is used", "000702/") in reasons(data)

    def test_lost_zeros_are_no_match_but_a_hint(self, tmp_path: Path) -> None:
        csv = trees.irma(tmp_path) / "classificacao.csv"
        csv.write_text(csv.read_text().replace("000706", "706"))
        data = build(tmp_path)
        lost = next(finding for finding in data.findings if finding.reason == "the row has no folder")
        assert (lost.image_id, lost.severity) == ("706", "error")
        assert "000706" in lost.what_to_do
        assert ("warning", "the folder has no row", "000706/") in reasons(data)

    def test_one_exam_with_two_classes_is_an_error_with_both_lines(self, tmp_path: Path) -> None:
        with (trees.irma(tmp_path) / "classificacao.csv").open("a") as csv:
            csv.write("000706,2\n")
        with pytest.raises(CatalogError, match=r"lines 3, 6: expected one meaning of id 000706"):
            build(tmp_path)

    def test_there_is_no_cancer_label_unless_a_column_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="--label-column"):
            build(trees.irma(tmp_path), "cancer")


class TestStudy:
    def test_rows_name_images_through_their_folders(self, tmp_path: Path) -> None:
        data = build(trees.study(tmp_path))
        assert list(data.rows["patient_id"]) == ["000123"] * 3 + ["000124"]
        assert by_path(data, "label")["patient_000124/study_1/series_1/im1.dcm"] == "D"
        assert by_path(data, "view")["patient_000123/study_1/series_2/im1.dcm"] == "MLO"
        assert data.leak is None

    @pytest.mark.parametrize(
        "rows",
        [
            ["patient_id,class", "000123,2", "000124,4"],
            ["patient_id,study_id,class", "000123,1,2", "000123,2,2", "patient_000124,study_1,4"],
            ["series_id,study_id,patient_id,Label", "1,1,000123,b", "2,1,000123,b", "1,2,000123,b", "1,1,000124,d"],
        ],
    )
    def test_a_row_may_speak_of_a_whole_patient_study_or_series(self, rows: list[str], tmp_path: Path) -> None:
        data = build(trees.study(tmp_path, rows))
        assert list(data.rows["label"]) == ["B", "B", "B", "D"]

    def test_rows_without_images_and_images_without_rows_are_listed(self, tmp_path: Path) -> None:
        data = build(trees.study(tmp_path, ["patient_id,study_id,class", "000123,1,2", "000199,1,2"]))
        assert reasons(data) == [
            ("error", "the row has no file", "000199/1"),
            ("warning", "the folder has no row", "patient_000123/study_2/series_1/"),
            ("warning", "the folder has no row", "patient_000124/study_1/series_1/"),
        ]


class TestCsv:
    def rows(self, tmp_path: Path, *lines: str, header: str = "image_path,density_label,patient_id") -> Path:
        trees.table(tmp_path, "t.csv", [header, *lines])
        return trees.touch(tmp_path / "set", ["a/1.dcm", "a/2.png", "b/3.tif"])

    def build(self, tmp_path: Path, **settings: Any) -> Catalog:
        return catalog.build(tmp_path / "t.csv", tmp_path / "set", DataConfig(**settings))

    def test_paths_may_be_relative_absolute_or_of_windows(self, tmp_path: Path) -> None:
        self.rows(tmp_path, "a/1.dcm,1,p1", f"{tmp_path}/set/a/2.png,B,p1", "b\\3.tif,iv,p2")
        data = self.build(tmp_path)
        assert by_path(data, "label") == {"a/1.dcm": "A", "a/2.png": "B", "b/3.tif": "D"}
        assert by_path(data, "patient_id") == {"a/1.dcm": "p1", "a/2.png": "p1", "b/3.tif": "p2"}
        assert (data.layout, data.leak, data.grouped_by) == ("csv", None, "patient_id")

    def test_paths_that_leave_the_root_are_errors_in_the_list_and_no_files(self, tmp_path: Path) -> None:
        (tmp_path / "secret.dcm").write_bytes(b"x")
        away = ("../secret.dcm", "/etc/passwd", "a/../../secret.dcm", "s3://bucket/1.dcm", f"{tmp_path}/secret.dcm")
        self.rows(tmp_path, "a/../a/1.dcm,1,p1", *(f"{path},1,p9" for path in away))
        data = self.build(tmp_path)
        assert list(data.rows["path"]) == ["a/1.dcm"]
        outside = {f.file for f in data.findings if f.reason == "the path leads out of the root"}
        assert outside == set(away)

    def test_any_column_can_be_named(self, tmp_path: Path) -> None:
        self.rows(tmp_path, "p1;1;R;a/1.dcm", "p2;2;L;a/2.png", header="Frau;Dichte;Seite;Bild")
        data = self.build(
            tmp_path, path_column="bild", label_column="Dichte", group_column="Frau", laterality_column="Seite"
        )
        assert by_path(data, "laterality") == {"a/1.dcm": "R", "a/2.png": "L"}
        assert list(data.rows["label"]) == ["A", "B"]
        assert (data.grouped_by, data.leak) == ("Frau", None)

    def test_without_a_patient_the_grouping_is_the_strictest_known_and_results_may_leak(self, tmp_path: Path) -> None:
        self.rows(tmp_path, "a/1.dcm,1,77", "a/2.png,2,77", header="image_path,label,accession")
        data = self.build(tmp_path)
        assert list(data.rows["patient_id"]) == ["77", "77"]
        assert data.leak is not None and "accession" in data.leak and data.limits == (data.leak,)
        self.rows(tmp_path, "a/1.dcm,1", "a/2.png,2", header="image_path,label")
        data = self.build(tmp_path)
        assert list(data.rows["patient_id"]) == ["a/1.dcm", "a/2.png"]
        assert data.leak is not None and "file" in data.leak

    def test_a_table_without_labels_is_good_for_prediction(self, tmp_path: Path) -> None:
        self.rows(tmp_path, "a/1.dcm,p1", header="path,patient")
        assert self.build(tmp_path).rows["label"].isna().all()

    def test_one_image_with_two_labels_is_an_error(self, tmp_path: Path) -> None:
        self.rows(tmp_path, "a/1.dcm,1,p1", "a/./1.dcm,2,p1")
        with pytest.raises(CatalogError, match=r"lines 2, 3: expected one meaning of id a/1\.dcm"):
            self.build(tmp_path)


def test_rows_are_plain_text_and_numbers_on_every_version_of_pandas(tmp_path: Path) -> None:
    rows = build(trees.rsna(tmp_path)).rows
    assert {str(rows[name].dtype) for name in ("size", "mtime_ns", "line")} == {"int64"}
    assert isinstance(rows["label"].dtype, pd.StringDtype)
    assert all(isinstance(value, str) for value in rows["patient_id"])
