import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import rsna_table
from mammoray import catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError
from mammoray.synth import SynthSummary
from tests import trees


@pytest.fixture
def copy(rsna: SynthSummary, tmp_path: Path) -> Path:
    """A copy of the RSNA set that a test may spoil."""
    return Path(shutil.copytree(rsna.table.parent, tmp_path / "copy"))


def build(folder: Path) -> catalog.Catalog:
    return catalog.build(folder / "train.csv", folder)


def test_rsna_gives_one_row_per_image_with_the_files_size_and_label(rsna: SynthSummary) -> None:
    data = catalog.build(rsna.csv, rsna.root)
    table = pd.read_csv(rsna.csv, dtype=str, keep_default_na=False).sort_values("image_id", ignore_index=True)
    assert data.layout == "rsna"
    assert data.findings == ()
    assert list(data.rows.columns) == list(catalog.COLUMNS)
    assert list(data.rows["image_id"]) == list(table["image_id"])
    assert list(data.rows["label"].fillna("")) == list(table["density"])
    assert all(Path(data.root, row.path).stat().st_size == row.size for row in data.rows.itertuples())


def test_the_root_may_be_the_folder_above_train_images_or_itself(rsna: SynthSummary) -> None:
    above = catalog.build(rsna.csv, rsna.table.parent)
    inside = catalog.build(rsna.csv, rsna.table.parent / "train_images")
    assert above.rows.equals(inside.rows)


def test_irma_uses_every_image_of_an_exam_keeps_leading_zeros_and_excludes_class_5(irma: SynthSummary) -> None:
    data = catalog.build(irma.csv, irma.root)
    table = pd.read_csv(irma.csv, dtype=str)
    five = set(table.loc[table["Classification"] == "5", "AccessionNumber"])
    files = sorted(p.relative_to(data.root).as_posix() for p in Path(data.root).rglob("*.dcm"))
    assert data.layout == "irma"
    assert sorted(data.rows["path"]) == [f for f in files if f.split("/")[0] not in five]
    assert all(len(p) == 6 for p in data.rows["patient_id"])
    assert {f.image_id.split("/")[0] for f in data.findings} == five
    assert any("accession" in limit for limit in data.limits)


def test_a_missing_csv_is_an_error(rsna: SynthSummary, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.csv.*FileNotFound.*--csv"):
        catalog.build(tmp_path / "none.csv", rsna.root)


def test_missing_columns_are_an_error_that_says_what_was_found(copy: Path) -> None:
    (copy / "train.csv").write_text("patient_id,image_id,breast\n1,2,A\n", encoding="utf-8")
    with pytest.raises(
        CatalogError, match=r"rsna: no column density .*in train.csv, which has patient_id, image_id, breast"
    ):
        build(copy)


def test_a_missing_root_is_an_error(rsna: SynthSummary, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="--dicom-root"):
        catalog.build(rsna.csv, tmp_path / "none")


def test_a_root_without_dicoms_is_an_error_that_says_what_was_looked_for(rsna: SynthSummary, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CatalogError, match=r"end in \.dcm.*found 1 other files"):
        catalog.build(rsna.csv, tmp_path)


def test_dicoms_of_other_ids_are_an_error(rsna: SynthSummary, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "2.dcm").write_bytes(b"")
    with pytest.raises(CatalogError, match="belong together"):
        catalog.build(rsna.csv, tmp_path)


def test_rows_without_a_file_and_files_without_a_row_are_listed_and_left_out(copy: Path) -> None:
    before = build(copy).rows
    (copy / "train_images" / before["path"][0]).unlink()
    (copy / "train_images" / "stray.dcm").write_bytes(b"")
    after = build(copy)
    assert list(after.rows["image_id"]) == list(before["image_id"][1:])
    reasons = {(f.severity, f.reason, f.file) for f in after.findings}
    assert reasons == {
        ("error", "the row has no file", before["path"][0]),
        ("warning", "the file has no row", "stray.dcm"),
    }


def test_equal_rows_are_used_once_and_listed_but_one_id_with_two_meanings_is_an_error(copy: Path) -> None:
    lines = (copy / "train.csv").read_text(encoding="utf-8").splitlines()
    (copy / "train.csv").write_text("\n".join([*lines, lines[1]]) + "\n", encoding="utf-8")
    assert [f.reason for f in build(copy).findings] == ["the row stands in the CSV more than once"]
    assert len(build(copy).rows) == len(lines) - 1
    other = lines[1].split(",")
    other[1] = "77"
    (copy / "train.csv").write_text("\n".join([*lines, ",".join(other)]) + "\n", encoding="utf-8")
    with pytest.raises(CatalogError, match=rf"lines 2, {len(lines) + 1}.*{other[2]}"):
        build(copy)


def test_a_bom_and_any_order_of_columns_and_rows_change_nothing(copy: Path) -> None:
    before = build(copy).rows
    table = pd.read_csv(copy / "train.csv", dtype=str, keep_default_na=False)
    shuffled = table[list(reversed(table.columns))].sample(frac=1.0, random_state=1)
    shuffled.to_csv(copy / "train.csv", index=False, encoding="utf-8-sig")
    after = build(copy).rows
    assert after.drop(columns="line").equals(before.drop(columns="line"))
    table = table.assign(density=table["density"]).iloc[shuffled.index]
    assert list(table["image_id"].iloc[after["line"] - 2]) == list(after["image_id"])


def test_a_suffix_in_capitals_is_the_same_file(copy: Path) -> None:
    before = build(copy).rows
    first = copy / "train_images" / before["path"][0]
    first.rename(first.with_suffix(".DCM"))
    after = build(copy)
    assert after.findings == ()
    assert list(after.rows["image_id"]) == list(before["image_id"])


def test_dangling_links_have_no_file_and_links_to_folders_are_not_followed(copy: Path) -> None:
    before = build(copy).rows
    first = copy / "train_images" / before["path"][0]
    first.unlink()
    first.symlink_to(copy / "gone.dcm")
    (first.parent / "round").symlink_to(copy / "train_images")
    after = build(copy)
    assert [f.reason for f in after.findings] == ["the row has no file"]
    assert len(after.rows) == len(before) - 1


def test_ids_that_climb_out_of_the_root_find_no_file(copy: Path) -> None:
    with (copy / "train.csv").open("a", encoding="utf-8") as csv:
        csv.write("1,../../etc,passwd,L,CC,,0,0,0,,0,A,49,False\n")
    (copy / "secret.dcm").write_bytes(b"")
    findings = build(copy).findings
    assert [(f.severity, f.reason, f.file) for f in findings if f.file != "./"] == [
        ("error", "the row's id leads out of its folder", "../../etc/passwd.dcm")
    ]


def test_a_table_of_rsnas_size_gives_the_class_table_of_the_facts(tmp_path: Path) -> None:
    table = rsna_table.make()
    table.to_csv(tmp_path / "train.csv", index=False)
    for patient, images in table.groupby("patient_id")["image_id"]:
        trees.touch(tmp_path, (f"train_images/{patient}/{image}.dcm" for image in images))
    data = catalog.build(None, tmp_path)
    assert data.findings == ()
    assert catalog.class_table(data.rows, "density").to_dict("list") == {
        "A": [3105, 553],
        "B": [12651, 2511],
        "C": [12175, 2436],
        "D": [1539, 309],
        "blank": [25236, 6104],
        "total": [54706, 11913],
    }
    cancer = catalog.class_table(catalog.build(None, tmp_path, classes="cancer").rows, "cancer")
    assert cancer["cancer"].tolist() == [1158, 486]


def test_ids_that_a_spreadsheet_may_have_changed_are_a_warning(tmp_path: Path) -> None:
    lines = ["patient_id,image_id,density", "007,1,A", "7,2,A", "8,3,B"]
    trees.table(tmp_path, "train.csv", lines)
    data = catalog.build(None, trees.touch(tmp_path, ["007/1.dcm", "7/2.dcm", "8/3.dcm"]))
    assert [(f.severity, f.found) for f in data.findings] == [("warning", "007, 7")]


def test_a_missing_quarantine_list_is_an_error_that_names_its_flag(rsna: SynthSummary, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.csv.*--quarantine"):
        catalog.build(rsna.csv, rsna.root, DataConfig(quarantine=tmp_path / "none.csv"))
