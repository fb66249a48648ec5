"""Patient to fold: the one split rule, used by a laptop, a cluster, every trial and every test.

The rule: the patients of each class stand in the order of ``sha256(seed, patient_id)``; the k-th of ``folds`` equal
parts of that order is part k. Guarantees:

- all images of a patient are in one fold (a patient's class is the commonest of its labels, the denser one on a tie);
- in every class, parts differ by at most one patient, and so do the totals up to one patient a class;
- the result depends on the seed and on the set of (image_id, patient_id, label) alone: not on the order of rows, on the
  number of workers, on the machine, or on ``--classes``;
- one patient more moves at most ``folds - 1`` others of its class, those at the borders between parts.

scikit-learn's ``StratifiedGroupKFold`` also groups and stratifies, but depends on the order of rows, and a new patient
can move all others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammoray.config import CLASS_NAMES, Classes, SplitConfig
from mammoray.errors import LeakError, SplitError
from mammoray.labels import DENSITIES, class_index

FOLDS = ("train", "val", "test")
COLUMNS = ("image_id", "patient_id", "label", "fold")
_NAMED = 10


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
    """

    rows: pd.DataFrame
    digest: str


def make(rows: pd.DataFrame, config: SplitConfig, classes: Classes, seed: int) -> Split:
    """Split the labelled rows of a catalog; rows without a label are left out.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``image_id``, ``patient_id`` and ``label`` (A to D or missing), in any order.
    config : SplitConfig
        Number of parts, the part that tests, or a file with a finished split.
    classes : {"density", "binary"}
        Decides only which classes have to have enough patients.
    seed : int
        Another seed gives another split.

    Raises
    ------
    SplitError
        A class has too few patients, or a loaded split does not fit the data.
    LeakError
        A loaded split has a patient in two folds.
    """
    labelled = rows.loc[rows["label"].notna(), ["image_id", "patient_id", "label"]].sort_values(
        "image_id", ignore_index=True
    )
    if labelled.empty:
        raise SplitError(
            "the catalog",
            "images with a density label",
            f"{len(rows)} images without one",
            "Check the label column of --csv.",
        )
    if config.split_file is not None:
        folds = _load(config.split_file, labelled)
    else:
        folds = labelled["patient_id"].map(_deal(_class_of_patient(labelled), config, classes, seed))
    result = labelled.assign(fold=folds)
    check(result)
    _check_classes(result, classes)
    return Split(rows=result, digest=digest(result))


def _class_of_patient(labelled: pd.DataFrame) -> pd.Series:
    """Density letter of each patient, indexed by patient_id."""
    counts = (
        labelled.groupby(["patient_id", "label"])
        .size()
        .unstack(fill_value=0)
        .reindex(columns=list(DENSITIES), fill_value=0)
    )
    # idxmax takes the first maximum: reversed columns make it the denser class, which is the rarer mistake to lose.
    return counts[list(reversed(DENSITIES))].idxmax(axis=1)


def _order_key(seed: int, patient_id: str) -> str:
    return hashlib.sha256(f"{seed}:{patient_id}".encode()).hexdigest()


def _deal(of_patient: pd.Series, config: SplitConfig, classes: Classes, seed: int) -> dict[str, str]:
    _check_enough(of_patient, config, classes)
    names = {config.fold: "test", (config.fold + 1) % config.folds: "val"}
    folds: dict[str, str] = {}
    for stagger, letter in enumerate(DENSITIES):
        patients = sorted((str(p) for p in of_patient.index[of_patient == letter]), key=lambda p: _order_key(seed, p))
        # The stagger spreads the remainders of the classes over different parts; integers keep it exact everywhere.
        width = len(patients) * len(DENSITIES)
        for rank, patient in enumerate(patients):
            part = (rank * len(DENSITIES) + stagger) * config.folds // width
            folds[patient] = names.get(part, "train")
    return folds


def _check_enough(of_patient: pd.Series, config: SplitConfig, classes: Classes) -> None:
    counts = np.bincount(class_index(of_patient, classes))
    few = {_class_name(i, classes): int(n) for i, n in enumerate(counts) if 0 < n < config.folds}
    if few:
        smallest = min(few.values())
        remedy = (
            f"Use --folds {smallest}." if smallest >= 3 else "Add patients, remove the class, or use --classes binary."
        )
        found = ", ".join(f"{n} of class {name}" for name, n in few.items())
        raise SplitError("the split", f"at least --folds {config.folds} patients of every class", found, remedy)


def _class_name(index: int, classes: Classes) -> str:
    return CLASS_NAMES[classes][index]


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
    folds = (
        rows.drop_duplicates(["patient_id", "fold"])
        .sort_values(["patient_id", "fold"])
        .groupby("patient_id")["fold"]
        .agg(list)
    )
    leaks = folds[folds.map(len) > 1]
    if len(leaks):
        named = "; ".join(f"{patient} in {' and '.join(where)}" for patient, where in leaks.head(_NAMED).items())
        more = f"; and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
        raise LeakError(
            "the split",
            "every patient in one fold",
            f"{len(leaks)} patients in several: {named}{more}",
            "Move each to one fold.",
        )


def _check_classes(rows: pd.DataFrame, classes: Classes) -> None:
    present = class_index(rows["label"], classes)
    for fold in FOLDS:
        missing = sorted(set(present) - set(present[(rows["fold"] == fold).to_numpy()]))
        if missing:
            names = ", ".join(_class_name(int(i), classes) for i in missing)
            raise SplitError(
                f"fold {fold}",
                "images of every class in the data",
                f"none of class {names}",
                "Choose fewer --folds, another --seed, or correct --split-file.",
            )


def _load(path: Path, labelled: pd.DataFrame) -> pd.Series:
    try:
        given = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SplitError(str(path), "a split.csv", f"{type(error).__name__}", "Check --split-file.") from error
    missing = [name for name in ("image_id", "patient_id", "fold") if name not in given.columns]
    if missing:
        raise SplitError(
            f"{path}: header", "the columns image_id, patient_id, fold", ", ".join(given.columns), "Check --split-file."
        )
    unknown = sorted(set(given["fold"]) - set(FOLDS))
    if unknown:
        raise SplitError(f"{path}: fold", ", ".join(FOLDS), ", ".join(map(repr, unknown)), "Correct the file.")
    check(given)
    repeated = given[given.duplicated("image_id")]
    merged = labelled.merge(given, on="image_id", how="outer", suffixes=("", "_given"), indicator=True)
    problems = {
        "repeated in the file": repeated["image_id"],
        "in the data only": merged.loc[merged["_merge"] == "left_only", "image_id"],
        "in the file only": merged.loc[merged["_merge"] == "right_only", "image_id"],
        "with another patient": merged.loc[
            (merged["_merge"] == "both") & (merged["patient_id"] != merged["patient_id_given"]), "image_id"
        ],
    }
    found = [f"{len(ids)} images {what} ({', '.join(ids.head(3))}, ...)" for what, ids in problems.items() if len(ids)]
    if found:
        raise SplitError(
            str(path),
            "a split of exactly these images",
            "; ".join(found),
            "Use the split of these data, or make a new one.",
        )
    return labelled["image_id"].map(given.set_index("image_id")["fold"])


def digest(rows: pd.DataFrame) -> str:
    """Digest of a split, independent of the order of rows: 16 hex digits of SHA-256 over its sorted lines."""
    lines = sorted("\t".join(map(str, line)) for line in rows[list(COLUMNS)].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def counts(split: Split, catalog_rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Images and patients per fold and class, and of the unlabelled rows: the body of split.json."""
    by_fold = {
        fold: {
            **_count(part),
            "classes": {letter: _count(part[part["label"] == letter]) for letter in DENSITIES},
        }
        for fold in FOLDS
        for part in [split.rows[split.rows["fold"] == fold]]
    }
    return {"folds": by_fold, "unlabelled": _count(catalog_rows[catalog_rows["label"].isna()])}


def _count(rows: pd.DataFrame) -> dict[str, int]:
    return {"images": len(rows), "patients": int(rows["patient_id"].nunique())}
