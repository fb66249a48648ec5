"""A table of labels, as people send them: a CSV of any separator and encoding, on a disk or on a storage.

Read as a stream, and only the columns that are wanted, so that ten million rows fit into memory. Every cell stays text:
identifiers have leading zeros.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mammoray import storage
from mammoray.errors import CatalogError

_SEPARATORS = (",", ";", "\t", "|")
_HEAD = 1 << 16
_BLOCK = 1 << 22
_NAMED = 5
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_REMEDY = "Check --csv."
_TEXT = pd.StringDtype("pyarrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A CSV whose header has been read.

    Attributes
    ----------
    path : str
        Path or URI.
    separator : str
    encoding : str
        utf-8, utf-16 by its byte order mark, or latin-1 for a file with a byte that is no UTF-8.
    header : int
        Line of the header, which may stand below empty ones.
    columns : tuple of str
        As the header writes them, without spaces around.
    """

    path: str
    separator: str
    encoding: str
    header: int
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """How errors call it."""
        return storage.shown(self.path)

    def find(self, *names: str) -> str | None:
        """The first of ``names`` that is a column, in whatever case; as the header writes it."""
        known = {column.lower(): column for column in self.columns}
        return next((known[name.lower()] for name in names if name.lower() in known), None)


def open_table(path: str, setting: str = "--csv") -> Table:
    """Read the header of a CSV and find its separator and encoding.

    Parameters
    ----------
    path : str
        Path or URI.
    setting : str
        The flag that it comes from, for errors.

    Raises
    ------
    CatalogError
        It cannot be read, or has no header of distinct columns.
    StorageError
        For a URI that leads nowhere.
    """
    name, remedy = storage.shown(path), f"Check {setting}."
    try:
        encoding = _encoding(path)
        head = _stream(path).read(_HEAD)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(name, "a CSV file", storage.reason(error), remedy) from None
    lines = head.decode(encoding, errors="replace").lstrip("\ufeff").splitlines()
    number, line = next(((i, line) for i, line in enumerate(lines, start=1) if line.strip()), (1, ""))
    rows = {separator: next(csv.reader(io.StringIO(line), delimiter=separator), []) for separator in _SEPARATORS}
    separator = max(_SEPARATORS, key=lambda s: len(rows[s]))
    columns = tuple(column.strip() for column in rows[separator])
    if not any(columns) or "\0" in line:
        raise CatalogError(name, "a table with a header", "an empty or binary file", remedy)
    folded = [column.lower() for column in columns]
    twice = sorted({column for column in columns if column and folded.count(column.lower()) > 1})
    if twice:
        raise CatalogError(f"{name}: header", "distinct columns", f"{', '.join(twice)} more than once", "Rename them.")
    return Table(path=path, separator=separator, encoding=encoding, header=number, columns=columns)


def _stream(path: str) -> Any:
    system, inside = storage.filesystem(path, "--csv")
    return system.open_input_stream(inside)  # Decompresses what ends in .gz, too.


def _encoding(path: str) -> str:
    """How the text is written, by its byte order mark or its first byte that is no UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _stream(path) as stream:
        block = stream.read(_BLOCK)
        marked = next((encoding for mark, encoding in _BOMS if block.startswith(mark)), None)
        if marked:
            return marked
        try:
            while block:
                decoder.decode(block)
                block = stream.read(_BLOCK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def read(table: Table, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read some columns of a table.

    Parameters
    ----------
    table : Table
    columns : mapping of str to str
        Wanted name -> name in the header.

    Returns
    -------
    pandas.DataFrame
        The wanted columns, text without spaces around, and ``line``, int64, of the file. Empty lines are left out.

    Raises
    ------
    CatalogError
        Rows with another number of fields than the header, by line.
    """
    try:
        cells = _read(table, sorted(set(columns.values())))
    except pa.ArrowInvalid as error:
        expected = f"a table of {len(table.columns)} columns"
        raise CatalogError(table.name, expected, str(error).splitlines()[0], _REMEDY) from None
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(table.name, "a CSV file", storage.reason(error), _REMEDY) from None
    first = table.header + 1
    line = np.arange(first, len(cells) + first, dtype=np.int64)
    frame = pd.DataFrame({wanted: cells[name].to_pandas().astype(_TEXT) for wanted, name in columns.items()})
    blank = (frame == "").all(axis=1).to_numpy()
    return frame.assign(line=line)[~blank].reset_index(drop=True)


def _read(table: Table, names: list[str]) -> pa.Table:
    wrong: list[str] = []

    def note(row: Any) -> str:
        wrong.append(f"{row.actual_columns} in line {row.number}")
        return "skip"

    reader = pa_csv.open_csv(
        _stream(table.path),
        # One thread: only then does pyarrow know the number of a row.
        read_options=pa_csv.ReadOptions(
            block_size=_BLOCK,
            use_threads=False,
            encoding=table.encoding,
            column_names=list(table.columns),
            skip_rows=table.header,
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=table.separator, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=note
        ),
        convert_options=pa_csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    batches = [_trimmed(batch) for batch in reader]
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        found = ", ".join(wrong[:_NAMED]) + more
        remedy = "Correct these lines: a field that holds the separator must stand in quotes."
        raise CatalogError(table.name, f"{len(table.columns)} fields in every row", found, remedy)
    return pa.Table.from_batches(batches, schema=pa.schema([(name, pa.string()) for name in names]))


def _trimmed(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pc.utf8_trim_whitespace(column) for column in batch.columns],
        schema=pa.schema([(name, pa.string()) for name in batch.schema.names]),
    )
