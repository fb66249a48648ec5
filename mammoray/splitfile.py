"""A finished split: its rows, its digest, the check against leaks, and its two files.

``split.csv`` has a line per labelled image: ``image_id, patient_id, label, fold``. ``split.json`` beside it has the
digest, by which a later change of the table is noticed, and the counts. All ids are text: ``007`` is not ``7``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mammoray.config import LABELS
from mammoray.errors import LeakError, SplitError

FOLDS = ("train", "val", "test")
COLUMNS = ("image_id", "patient_id", "label", "fold")
_NAMED = 10
_EXAMPLES = 3
_CHECK_FILE = "Check --split-file or --test-file."


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A checked split.

    Attributes
    ----------
    rows : pandas.DataFrame
        ``image_id, patient_id, label, fold`` of every labelled image, sorted by ``image_id``; fold is train, val or
        test.
    digest : str
        16 hex digits; equal exactly when the rows are.
    notes : tuple of str
        What a reader of the results has to know about this split, as sentences.
    left_out : dict
        Counts of the images and patients that were left out on request.
    """

    rows: pd.DataFrame
    digest: str
    notes: tuple[str, ...] = ()
    left_out: dict[str, int] | None = None


def digest(rows: pd.DataFrame) -> str:
    """Digest of a split, independent of the order of rows: 16 hex digits of SHA-256 over its sorted lines."""
    lines = sorted("\t".join(map(str, line)) for line in rows[list(COLUMNS)].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check(rows: pd.DataFrame) -> None:
    """Refuse a split in which a patient stands in more than one fold.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``patient_id`` and ``fold``.

    Raises
    ------
    LeakError
        Names the patients.
    """
    pairs = rows[["patient_id", "fold"]].drop_duplicates().sort_values(["patient_id", "fold"])
    leaks = pairs[pairs.duplicated("patient_id", keep=False)].groupby("patient_id")["fold"].agg(list)
    if len(leaks):
        named = "; ".join(f"{patient} in {' and '.join(where)}" for patient, where in leaks.head(_NAMED).items())
        more = f"; and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
        raise LeakError(
            "the split",
            "every patient in one fold",
            f"{len(leaks)} patients in several: {named}{more}",
            "Move each to one fold.",
        )


def counts(split: Split, catalog_rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Images and patients per fold and class, of the unlabelled rows, and of those left out: the body of split.json."""
    present = set(split.rows["label"].dropna())
    labels = next((names for names in LABELS.values() if present <= set(names)), sorted(present))
    by_fold = {
        fold: {
            **_count(part),
            "classes": {label: _count(part[part["label"] == label]) for label in labels},
        }
        for fold in FOLDS
        for part in [split.rows[split.rows["fold"] == fold]]
    }
    body: dict[str, dict[str, Any]] = {
        "folds": by_fold,
        "unlabelled": _count(catalog_rows[catalog_rows["label"].isna()]),
    }
    return body if split.left_out is None else {**body, "left_out": split.left_out}


def _count(rows: pd.DataFrame) -> dict[str, int]:
    return {"images": len(rows), "patients": int(rows["patient_id"].nunique())}


def save(split: Split, folder: Path, catalog_rows: pd.DataFrame, grouped_by: str = "patient_id") -> None:
    """Write split.csv and split.json into ``folder``.

    Parameters
    ----------
    split : Split
    folder : Path
        It exists.
    catalog_rows : pandas.DataFrame
        All rows that the split was made from, of which those without a label are counted.
    grouped_by : str
        The column of the data set that stands in ``patient_id``.
    """
    about = {"digest": split.digest, "grouped_by": grouped_by, **counts(split, catalog_rows)}
    # The table goes first and split.json last, each in one step: a digest beside a table is always of that table.
    (folder / "split.json").unlink(missing_ok=True)
    for name, text in (
        ("split.csv", split.rows[list(COLUMNS)].to_csv(index=False, lineterminator="\n")),
        ("split.json", json.dumps(about, indent=2) + "\n"),
    ):
        partial = folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(folder / name)


def load(path: Path) -> Split:
    """Read a split.csv; the column ``label`` may be absent, and is missing in the rows then.

    Raises
    ------
    SplitError
        The file cannot be read, lacks a column, names another fold or an image twice, or has another digest than the
        split.json beside it.
    LeakError
        A patient stands in two folds.
    """
    given = _read(path, ("image_id", "patient_id", "fold"))
    _require_folds(given, path)
    repeated = given.loc[given.duplicated("image_id"), "image_id"]
    if len(repeated):
        found = f"{len(repeated)} images repeated ({_examples(repeated)})"
        raise SplitError(f"{path}: image_id", "every image once", found, "Remove the copies.")
    check(given)
    if "label" not in given:
        given["label"] = None
    rows = given[list(COLUMNS)].sort_values("image_id", ignore_index=True)
    found = digest(rows)
    _require_digest(path, found)
    return Split(rows=rows, digest=found)


def verify(rows: pd.DataFrame, split: Split, where: str = "the split") -> None:
    """Refuse a split that is not of exactly these images, and say all that changed.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``image_id, patient_id, label`` of the data; rows without a label do not count.
    split : Split
        Such as :func:`load` gives; where it knows no labels, they are not compared.
    where : str
        What to call the split in the error.

    Raises
    ------
    SplitError
        With counts and examples of the images in the data only, in the file only, of another patient, or with another
        label.
    """
    labelled = rows.loc[rows["label"].notna(), ["image_id", "patient_id", "label"]].astype(str)
    given = split.rows[["image_id", "patient_id", "label"]]
    both = labelled.merge(given, on="image_id", how="outer", suffixes=("", "_given"), indicator=True)
    same = both["_merge"] == "both"
    moved = same & (both["patient_id"] != both["patient_id_given"])
    relabelled = same & both["label_given"].notna() & (both["label"] != both["label_given"])
    problems = {
        "in the data only": both["_merge"] == "left_only",
        "in the file only": both["_merge"] == "right_only",
        "of another patient": moved,
        "with another label": relabelled,
    }
    found = [
        f"{n} images {what} ({_examples(both.loc[which, 'image_id'])})"
        for what, which in problems.items()
        if (n := int(which.sum()))
    ]
    if found:
        remedy = "Use the split of these data, or make a new one; --test-file keeps the test patients of an old one."
        raise SplitError(where, "a split of exactly these images", "; ".join(found), remedy)


def locked_patients(path: Path) -> set[str]:
    """Patients of a fixed test set: the ``patient_id`` of a CSV's rows, or of those whose ``fold`` is test.

    Raises
    ------
    SplitError
        The file cannot be read, has no such column, names another fold, or no test patient.
    LeakError
        A patient stands in two folds.
    """
    given = _read(path, ("patient_id",))
    if "fold" in given:
        _require_folds(given, path)
        check(given)
        given = given[given["fold"] == "test"]
    patients = set(given["patient_id"]) - {""}
    if not patients:
        raise SplitError(str(path), "at least one test patient", "none", "Check --test-file.")
    return patients


def _read(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    try:
        given = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        found = "no file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise SplitError(str(path), "a split.csv", found, _CHECK_FILE) from error
    if not set(needed) <= set(given.columns):
        expected = f"the columns {', '.join(needed)}"
        raise SplitError(f"{path}: header", expected, ", ".join(given.columns), _CHECK_FILE)
    return given


def _require_folds(given: pd.DataFrame, path: Path) -> None:
    unknown = sorted(set(given["fold"]) - set(FOLDS))
    if unknown:
        found = ", ".join(map(repr, unknown[:_NAMED]))
        raise SplitError(f"{path}: fold", ", ".join(FOLDS), found, "Correct the file.")


def _require_digest(path: Path, found: str) -> None:
    """Refuse a table that was changed after it was written: split.json beside it says which it was."""
    beside = path.with_name("split.json")
    try:
        expected = json.loads(beside.read_text(encoding="utf-8"))["digest"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Restore it, or use the table without it."
        raise SplitError(str(beside), "the digest of the split beside it", type(error).__name__, remedy) from error
    if found != expected:
        remedy = "Restore the file, or remove split.json if the change is meant."
        raise SplitError(str(path), f"the digest {expected} of split.json", found, remedy)


def _examples(ids: pd.Series) -> str:
    named = ", ".join(map(str, ids.head(_EXAMPLES)))
    return f"{named}, ..." if len(ids) > _EXAMPLES else named
