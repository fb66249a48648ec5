"""A row has one meaning and a group; what a table does not say is blank."""

from pathlib import Path

import pandas as pd
import pytest

from mammoray import catalog
from mammoray.config import DataConfig
from mammoray.errors import CatalogError
from mammoray.layouts import Tree
from mammoray.rows import Source, one_meaning, require_groups
from mammoray.tables import open_table
from tests import trees


def source(folder: Path, *lines: str, label_column: str | None = None) -> Source:
    table = open_table(str(trees.table(folder, "t.csv", lines)))
    return Source(table=table, tree=Tree(str(folder)), config=DataConfig(label_column=label_column), classes="density")


def frame(*rows: tuple[str, str]) -> pd.DataFrame:
    """Ids and what is said of them, in lines 2, 3, ..."""
    table = pd.DataFrame(rows, columns=["id", "said"], dtype="string")
    return table.assign(line=range(2, len(rows) + 2))


def test_columns_that_a_table_lacks_are_blank_and_its_own_are_found_in_any_case(tmp_path: Path) -> None:
    data = source(tmp_path, "ID,VIEW,Density", "7,CC,2").read({"id": "ID"}, "density")
    assert data.iloc[0].to_dict() == {
        "line": 2, "id": "7", "cell": "2", "view": "CC", "laterality": "", "site_id": "", "machine_id": "",
        "implant": "",
    }  # fmt: skip


def test_a_column_that_was_asked_for_must_be_there_and_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    lines = ("density,mine", "1,4")
    assert list(source(tmp_path, *lines, label_column="mine").read({}, "density")["cell"]) == ["4"]
    with pytest.raises(CatalogError, match=r"header: expected the column other \(--label-column\).*density, mine"):
        source(tmp_path, *lines, label_column="other").read({}, "density")


def test_rows_without_copies_are_given_back_as_they_are() -> None:
    data = frame(("a", "1"), ("b", "1"))
    assert one_meaning(data, ["id"], "t.csv") == (data, [])


def test_the_first_of_equal_rows_is_kept_and_the_finding_counts_them() -> None:
    kept, findings = one_meaning(frame(("a", "1"), ("b", "2"), ("a", "1")), ["id"], "t.csv")
    assert list(kept["line"]) == [2, 3]
    assert [(f.severity, f.image_id, f.found) for f in findings] == [("warning", "a", "2 equal rows")]


def test_rows_that_differ_are_an_error_with_the_first_id_its_first_lines_and_the_number_of_ids() -> None:
    differing = [("b", str(i)) for i in range(7)] + [("c", "1"), ("c", "2"), ("a", "1"), ("a", "1")]
    with pytest.raises(CatalogError, match=r"lines 2, 3, 4, 5, 6: expected one meaning of id b,.*2 such ids in all"):
        one_meaning(frame(*differing), ["id"], "t.csv")


@pytest.mark.parametrize("blank", ["", None])
def test_a_row_without_a_group_is_refused_with_its_line(blank: str | None, tmp_path: Path) -> None:
    data = pd.DataFrame({"patient_id": ["1", blank, "2"], "line": [2, 3, 4]}, dtype="object")
    who = source(tmp_path, "who", "1")
    with pytest.raises(CatalogError, match=r"t\.csv: who: expected the patient of every row.* blank cells, in lines 3"):
        require_groups(data, who, "who")
    assert len(require_groups(data.drop(index=1), who, "who")) == 2


def test_ten_thousand_copies_of_rows_are_counted_each_id_once(tmp_path: Path) -> None:
    csv = trees.rsna(tmp_path) / "train.csv"
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([*lines, *lines[1:3] * 5000]) + "\n")
    data = catalog.build(None, tmp_path)
    assert len(data.rows) == 4
    assert [(f.image_id, f.found) for f in data.findings] == [("101", "5001 equal rows"), ("102", "5001 equal rows")]
