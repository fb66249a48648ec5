"""Cells of a table to classes: the one place that knows how a label may be written.

The label of an image is a BI-RADS density letter, A to D, or, with ``--classes cancer``, ``negative`` or ``cancer``.
What the model's outputs stand for (:data:`mammoray.config.CLASS_NAMES`) follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammoray.config import CLASS_NAMES, LABELS, Classes
from mammoray.errors import LabelError

DENSITIES = LABELS["density"]
EXCLUDED = "5"
"""IRMA's fifth class, which has no density: "undefined", or a non-standard incidence."""
_ROMAN = {"I": "A", "II": "B", "III": "C", "IV": "D"}
_NAMED = 5


def parse_density(value: str, where: str) -> str | None:
    """Density class of a cell: A to D, or ``None`` for a blank.

    Accepted are 1 to 4, 1.0 to 4.0, A to D and a to d, I to IV, with spaces around.

    Raises
    ------
    LabelError
        For anything else.

    Examples
    --------
    >>> parse_density(" 1.0", "row 1"), parse_density("IV", "row 2"), parse_density("b", "row 3")
    ('A', 'D', 'B')
    """
    text = value.strip().upper()
    if not text:
        return None
    text = text.removesuffix(".0")
    if text in DENSITIES:
        return text
    if text in _ROMAN:
        return _ROMAN[text]
    if text in {"1", "2", "3", "4"}:
        return DENSITIES[int(text) - 1]
    raise LabelError(where, "1 to 4, A to D, I to IV, or a blank", repr(value), "Correct the CSV or remove the row.")


def parse_cancer(value: str, where: str) -> str | None:
    """``negative`` or ``cancer`` for 0 or 1 (also 0.0, 1.0, false, true), ``None`` for a blank.

    Raises
    ------
    LabelError
        For anything else.

    Examples
    --------
    >>> parse_cancer("1", "row 1"), parse_cancer("False", "row 2"), parse_cancer(" ", "row 3")
    ('cancer', 'negative', None)
    """
    text = value.strip().lower().removesuffix(".0")
    if text in ("", "0", "1", "false", "true"):
        return None if not text else LABELS["cancer"][text in ("1", "true")]
    raise LabelError(where, "0 or 1 (false or true), or a blank", repr(value), "Correct the CSV or remove the row.")


def parse_class_line(value: str, where: str) -> str:
    """Density class of a class line of a ``featureS.txt``: 0 to 3 are A to D.

    Raises
    ------
    LabelError
        For anything else.
    """
    if value.strip() in {"0", "1", "2", "3"}:
        return DENSITIES[int(value)]
    raise LabelError(where, "a class from 0 to 3", repr(value), "Correct the file.")


def parse_folder(name: str) -> str | None:
    """Density class that a folder's name says: a label alone, or one behind ``class``, ``density`` or ``birads``.

    Examples
    --------
    >>> parse_folder("B"), parse_folder("density_4"), parse_folder("BI-RADS III"), parse_folder("DleftCC")
    ('B', 'D', 'C', None)
    """
    found = re.fullmatch(r"(?:(?:class|classe|density|densidade|bi-?rads)[ _-]*)?([1-4a-d]|i{1,3}|iv)", name.lower())
    return parse_density(found[1], name) if found else None


def parse(cells: pd.Series, lines: pd.Series, table: str, classes: Classes) -> pd.Series:
    """Labels of a column, parsed once per distinct cell.

    Parameters
    ----------
    cells : Series of str
        Its name is the column's.
    lines : Series of int
        Where each stands in the table.
    table : str
        What errors call the table.

    Returns
    -------
    Series of str
        Labels of :data:`mammoray.config.LABELS`, missing where the cell is blank.

    Raises
    ------
    LabelError
        Names the first rows at fault, and how many there are.
    """
    read: Callable[[str, str], str | None] = parse_cancer if classes == "cancer" else parse_density
    meaning: dict[str, str | None] = {}
    wrong: dict[str, LabelError] = {}
    for value in cells.unique():
        try:
            meaning[value] = read(value, "")
        except LabelError as error:
            wrong[value] = error
    if wrong:
        at_fault = lines[cells.isin(list(wrong))].sort_values().index
        named = ", ".join(f"{cells[i]!r} in line {lines[i]}" for i in at_fault[:_NAMED])
        more = f", and {len(at_fault) - _NAMED} more" if len(at_fault) > _NAMED else ""
        first = wrong[cells[at_fault[0]]]
        where = f"{table}: line {lines[at_fault[0]]}, {cells.name}"
        raise LabelError(where, first.expected, named + more, "Correct these rows or remove them.")
    return cells.map(meaning).astype("string")


def class_index(labels: pd.Series, classes: Classes) -> npt.NDArray[np.int64]:
    """Index of each label among the model's outputs, (N,) int64: A to D are 0 to 3, or 0, 0, 1, 1 for binary."""
    names = LABELS[classes]
    codes: npt.NDArray[np.int64] = labels.map({name: i for i, name in enumerate(names)}).to_numpy(dtype=np.int64)
    return codes * len(CLASS_NAMES[classes]) // len(names)
