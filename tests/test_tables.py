import gzip
from pathlib import Path

import pytest

from mammoray import tables
from mammoray.errors import CatalogError, StorageError

WANTED = {"exam": "AccessionNumber", "cell": "Classification"}


def read(folder: Path, content: bytes, name: str = "t.csv") -> list[dict[str, object]]:
    (folder / name).write_bytes(content)
    table = tables.open_table(str(folder / name))
    records: list[dict[str, object]] = tables.read(table, WANTED).to_dict("records")
    return records


PLAIN = "AccessionNumber,Classification\n000702,3\n000706,1\n"
ROWS = [{"exam": "000702", "cell": "3", "line": 2}, {"exam": "000706", "cell": "1", "line": 3}]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", "|").encode(),
        PLAIN.replace("000702,3", '"000702"," 3"').encode(),
        b"Classification,Date,AccessionNumber\n3,x,000702\n1,y,000706\n",
    ],
    ids=["plain", "bom", "utf-16", "crlf", "semicolons", "tabs", "bars", "quotes and spaces", "other columns"],
)
def test_one_table_however_it_is_written(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == ROWS


def test_a_compressed_table_is_read_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, gzip.compress(PLAIN.encode()), "t.csv.gz") == ROWS


def test_latin_1_is_read_as_such_and_known_to_be(tmp_path: Path) -> None:
    content = "AccessionNumber;Médico;Classification\n000702;João;3\n".encode("latin-1")
    assert read(tmp_path, content) == ROWS[:1]
    assert tables.open_table(str(tmp_path / "t.csv")).encoding == "latin-1"
    assert tables.open_table(str(tmp_path / "t.csv")).columns[1] == "Médico"


def test_empty_lines_are_left_out_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    rows = read(tmp_path, b"\n\nAccessionNumber,Classification\n\n000702,3\n\n,\n000706,1\n")
    assert [(row["exam"], row["line"]) for row in rows] == [("000702", 5), ("000706", 8)]


def test_columns_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Patient_ID, Density \n1,A\n")
    table = tables.open_table(str(tmp_path / "t.csv"))
    assert (table.find("patient_id"), table.find("label", "density"), table.find("view")) == (
        "Patient_ID",
        "Density",
        None,
    )


def test_rows_of_another_length_are_an_error_with_their_lines_and_no_content(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"2 fields.*found 1 in line 3, 3 in line 5\.") as caught:
        read(tmp_path, b"AccessionNumber,Classification\n1,2\nMaria\n3,4\nMaria,5,6\n")
    assert "Maria" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0\1\2\3\0", b",,\n1,2,3\n"])
def test_an_empty_or_binary_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CatalogError, match="a table with a header"):
        read(tmp_path, content)


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"distinct columns.*density"):
        read(tmp_path, b"patient_id,Density,density\n1,A,B\n")


def test_a_missing_file_and_a_uri_that_leads_nowhere_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.csv.*FileNotFound.*--csv"):
        tables.open_table(str(tmp_path / "none.csv"))
    with pytest.raises(StorageError, match="--csv"):
        tables.open_table("nowhere://x/t.csv")


def test_only_the_wanted_columns_are_kept_in_memory(tmp_path: Path) -> None:
    wide = "AccessionNumber,Classification," + ",".join(f"c{i}" for i in range(50))
    lines = [f"{i:06d},{1 + i % 4}," + ",".join(["0123456789"] * 50) for i in range(2000)]
    (tmp_path / "t.csv").write_text("\n".join([wide, *lines]))
    frame = tables.read(tables.open_table(str(tmp_path / "t.csv")), WANTED)
    assert len(frame) == 2000
    assert frame.memory_usage(deep=True).sum() < (tmp_path / "t.csv").stat().st_size / 10
