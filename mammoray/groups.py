"""Which images may not be divided by a split: groups that a table names, and those that names of files show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from mammoray import storage
from mammoray.errors import CatalogError

_NAMED = 5
_LEAVES = "a patient, who may then stand on both sides of the split and flatter the metrics"


def require(frame: pd.DataFrame, column: str, where: str) -> None:
    """Refuse rows without a group: a split could not keep them together.

    Parameters
    ----------
    frame : pandas.DataFrame
        With ``column`` and ``line``.
    column : str
    where : str
        What errors call the column.

    Raises
    ------
    CatalogError
        With the first lines.
    """
    blank = frame[column].isna() | (frame[column] == "")
    if blank.any():
        lines = ", ".join(map(str, frame.loc[blank, "line"].head(_NAMED)))
        found = f"{int(blank.sum())} blank cells, in lines {lines}"
        raise CatalogError(where, "the patient of every row", found, "Fill them in.")


def require_whole(frame: pd.DataFrame, known: Sequence[str], where: str) -> None:
    """Refuse groups that divide a patient whom the table names.

    Parameters
    ----------
    frame : pandas.DataFrame
        With ``group``, ``line``, and the columns ``known``.
    known : sequence of str
        Columns that name a patient together; none, where no patient is known. Blank cells name nobody.
    where : str
        What errors call the column of the groups.

    Raises
    ------
    CatalogError
        With lines of the first such patient.
    """
    keys = list(known)
    if not keys:
        return
    named = frame[(frame[keys] != "").all(axis=1)]
    pairs = named.drop_duplicates([*keys, "group"])
    divided = pairs[pairs.duplicated(keys, keep=False)]
    if len(divided):
        first = divided[(divided[keys] == divided[keys].iloc[0]).all(axis=1)]
        lines = ", ".join(map(str, first["line"].head(_NAMED)))
        found = f"{len(divided.drop_duplicates(keys))} patients in several, such as that of lines {lines}"
        remedy = "Name a column that is coarser than the patient, or leave --group-column out."
        raise CatalogError(where, "all images of a patient in one group", found, remedy)


def bare(patient: str) -> str:
    """An id without what spreadsheets change: spaces and zeros in front, capitals, and ``.0`` at the end.

    Examples
    --------
    >>> bare("007"), bare("7.0"), bare(" P1 ")
    ('7', '7', 'p1')
    """
    return patient.strip().lstrip("0").casefold().removesuffix(".0")


def alike(patients: Iterable[str]) -> list[list[str]]:
    """Ids that differ only in what :func:`bare` leaves out, together and sorted: perhaps one patient.

    Examples
    --------
    >>> alike(["007", "8", "7"])
    [['007', '7']]
    """
    spelt: dict[str, list[str]] = {}
    for patient in sorted(set(patients)):
        spelt.setdefault(bare(patient), []).append(patient)
    return [names for names in spelt.values() if len(names) > 1]


def weak(key: str) -> str:
    """What results say where a group may hold less than a patient."""
    return f"Patients are not known in these data: images are grouped by {key}, which may divide {_LEAVES}."


def weak_group(path: str) -> str:
    """The strictest group that a file's name shows where no patient is known.

    The name up to the number in its brackets, without side and view: one woman's images carry the same number in the
    folders of her sides and views. The letter in front stays, as it is the density, and a woman has one. The file
    itself where there is no such number.

    Examples
    --------
    >>> weak_group("DleftCC/d_left_cc (10).png"), weak_group("DrightMLO/d_right_mlo (10).png")
    ('d(10)', 'd(10)')
    >>> weak_group("p_d_left_cc(10)_3.png"), weak_group("A/7.png")
    ('p_d(10)', 'A/7.png')
    """
    found = re.match(r"(.*?)[ _]*\((\d+)\)", storage.split(path)[1].lower())
    if found is None:
        return path
    kind = re.sub(r"[ _]*(left|right|cc|mlo|ml|lm)(?=[ _]|$)", "", found[1])
    return f"{kind}({int(found[2])})"
