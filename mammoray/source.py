"""What the readers of the layouts share: the table with its tree, what comes of them, and rows that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mammoray import groups, labels, tables
from mammoray.config import Classes, DataConfig
from mammoray.errors import CatalogError
from mammoray.findings import Finding, each
from mammoray.layouts import Tree
from mammoray.tables import Table

COLUMNS = (
    "image_id", "patient_id", "laterality", "view", "label", "site_id", "machine_id", "implant", "age", "line", "path",
)  # fmt: skip
"""What a reader makes of a row."""
NAMED = 5
"""Lines that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a layout says of its images.

    Attributes
    ----------
    frame : pandas.DataFrame
        :data:`COLUMNS`, a row per image, in any order; ``label`` of the classes asked for or missing, ``line`` 0 where
        there is no table, ``path`` from the tree's root; a file that is not there is no fault of the reader.
    tree : Tree
        The part of the tree that the layout is about.
    grouped_by : str
        What stands in ``patient_id``: the coarsest key known.
    findings : list of Finding
    limits : tuple of str
        What a reader of the results has to know.
    leak : str or None
        Why the metrics may leak: what may stand on both sides of a split.
    """

    frame: pd.DataFrame
    tree: Tree
    grouped_by: str
    findings: list[Finding]
    limits: tuple[str, ...] = ()
    leak: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a reader reads."""

    table: Table
    tree: Tree
    config: DataConfig
    classes: Classes

    def column(self, flag: str, given: str | None, *usual: str) -> str | None:
        """Name in the header of a column: the one of the flag, which must be there, or the first usual one, if any."""
        found = self.table.find(*((given,) if given is not None else usual))
        if found is None and given is not None:
            where, have = f"{self.table.name}: header", ", ".join(self.table.columns)
            raise CatalogError(where, f"the column {given} ({flag})", have, f"Correct {flag}.")
        return found

    def read(self, ids: Mapping[str, str | None], *label: str) -> pd.DataFrame:
        """Columns of the table by their names here; those that it does not have are blank.

        Parameters
        ----------
        ids : mapping
            Name here -> name in the header, or None.
        *label : str
            Usual names of the label's column.
        """
        config = self.config
        wanted = {
            **ids,
            "group": self.column("--group-column", config.group_column),
            "cell": self.column("--label-column", config.label_column, *label),
            "laterality": self.column("--laterality-column", config.laterality_column, "laterality"),
            "view": self.column("--view-column", config.view_column, "view", "view_position"),
            "site_id": self.column("--site-column", config.site_column, "site_id"),
            "machine_id": self.column("--machine-column", config.machine_column, "machine_id"),
            "implant": self.table.find("implant"),
            "age": self.table.find("age"),
        }
        frame = tables.read(self.table, {name: column for name, column in wanted.items() if column is not None})
        for name, column in wanted.items():
            if column is None:
                frame[name] = pd.Series("", index=frame.index, dtype="string")
        return frame

    def parse(self, frame: pd.DataFrame, *label: str) -> pd.Series:
        """Labels of the column ``cell``, which was read from the label's column."""
        name = self.column("--label-column", self.config.label_column, *label)
        return labels.parse(frame["cell"].rename(name), frame["line"], self.table.name, self.classes)

    def grouped(self, frame: pd.DataFrame, usual: str, known: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
        """Rows whose ``patient_id`` is the column of ``--group-column``, where there is one, and that column's name.

        Parameters
        ----------
        frame : pandas.DataFrame
            With ``group``, of :meth:`read`.
        usual : str
            What stands in ``patient_id`` otherwise.
        known : sequence of str
            Columns of ``frame`` that name a patient together: no group may divide one.
        """
        column = self.column("--group-column", self.config.group_column)
        if column is None:
            return frame, usual
        where = f"{self.table.name}: {column}"
        groups.require(frame, "group", where)
        groups.require_whole(frame, known, where)
        return frame.assign(patient_id=frame["group"]), column

    @property
    def cancer(self) -> bool:
        """Whether the cancer label is asked for."""
        return self.classes == "cancer"


def one_meaning(frame: pd.DataFrame, key: Sequence[str], table: str) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows without copies of themselves.

    Raises
    ------
    CatalogError
        Rows with the same key that say different things.
    """
    keys = list(key)
    repeated = frame[frame.duplicated(keys, keep=False)]
    if repeated.empty:
        return frame, []
    # A patient may have two exams and so two ages: then her age is not known.
    if "age" in frame:
        frame = frame.assign(age=frame["age"].mask(frame.groupby(keys)["age"].transform("nunique") > 1, ""))
    distinct = repeated.drop(columns=["line", "age"], errors="ignore").drop_duplicates()
    differing = distinct[distinct.duplicated(keys, keep=False)]
    if len(differing):
        first = differing.sort_values(keys)[keys].iloc[0]
        same = (repeated[keys] == first).all(axis=1)
        lines = ", ".join(map(str, repeated.loc[same, "line"].head(NAMED)))
        count = len(differing.drop_duplicates(keys))
        named = " ".join(first)
        raise CatalogError(
            f"{table}: lines {lines}",
            f"one meaning of id {named}",
            f"rows that differ ({count} such ids in all)",
            "Keep the right ones.",
        )
    counts = repeated.groupby(keys, sort=True).size()
    return frame.drop_duplicates(keys), each(list(counts.items()), _copies)


def _copies(case: tuple[Any, int]) -> Finding:
    key, count = case
    return Finding(
        severity="warning",
        image_id="/".join(key) if isinstance(key, tuple) else str(key),
        reason="the row stands in the CSV more than once",
        expected="1 row",
        found=f"{count} equal rows",
        what_to_do="Remove the copies; one of them is used.",
    )


def with_ids(frame: pd.DataFrame, ids: Sequence[str]) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows that have all ids, and findings for the others."""
    blank = (frame[list(ids)] == "").any(axis=1)

    def lacking(line: int) -> Finding:
        return Finding(
            severity="error", tag=", ".join(ids), reason="the row does not say its image", expected="no blank",
            found=f"a blank in line {line}", what_to_do="Fill it in, or remove the row from the CSV.",
        )  # fmt: skip

    return frame[~blank], each(list(frame.loc[blank, "line"]), lacking)


def within(tree: Tree, folder: str, *ignored: str) -> tuple[Tree, list[Finding]]:
    """The part of the tree in a folder, where it holds images, and a finding per other folder that does.

    Parameters
    ----------
    tree : Tree
    folder : str
        Of the layout, in the root.
    *ignored : str
        Other folders that the layout has.
    """
    if not any(path.startswith(f"{folder}/") for path in tree.files):
        return tree, []
    tops = Counter(path.split("/", 1)[0] if "/" in path else "" for path in tree.files)

    def beside(top: str) -> Finding:
        return Finding(
            severity="warning", file=f"{top or '.'}/", reason=f"images beside {folder} are not looked at",
            expected=f"images in {folder}/", found=f"{tops[top]} images",
            what_to_do=f"Move them into {folder}/ if they are wanted.",
        )  # fmt: skip

    return tree.below(folder), each(sorted(set(tops) - {folder, *ignored}), beside)


def image_ids(paths: pd.Series) -> pd.Series:
    """Paths without their suffixes, or with them where two files differ in nothing else."""
    stems = paths.map(stem)
    return stems.where(~stems.duplicated(keep=False), paths)


def stem(path: str) -> str:
    """A path without the suffix of its file."""
    return path.rpartition(".")[0]
