"""Patient to fold: the one split rule, used by a laptop, a cluster, every trial and every test.

A patient's class is the commonest of its labels, the denser one on a tie; one image with cancer makes it ``cancer``.
The patients stand in the order of ``sha256(seed, patient_id)`` and are dealt by :mod:`mammoray.deal`, class by class,
and in a class by site and machine. Guarantees:

- all images of a patient are in one fold, and every labelled image is in one;
- in every class, parts differ by at most one patient (hold-out: each is less than one from its share);
- images of a class are then brought as close to the shares as swaps of patients can; in cells of a class, site and
  machine, parts stay within two patients of their shares, within one where images do not ask for more;
- the result depends on the seed and on the set of (image_id, patient_id, label, site_id, machine_id) alone: not on the
  order of rows and columns, the number of workers, the machine, or ``--classes binary``;
- one patient more moves at most :func:`mammoray.deal.bound` others.

scikit-learn's ``StratifiedGroupKFold`` also groups and stratifies, but depends on the order of rows, its seed decides
only between patients with equally many images, and a new patient moves most others.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mammoray import deal, groups
from mammoray.config import CLASS_NAMES, LABELS, Classes, SplitConfig
from mammoray.errors import SplitError
from mammoray.labels import class_index
from mammoray.splitfile import FOLDS, Split, check, counts, digest, load, locked_patients, save, verify

__all__ = ["FOLDS", "Split", "check", "counts", "digest", "load", "make", "save", "verify"]

_CELL = ("site_id", "machine_id")
_SHARES = 10_000


def make(rows: pd.DataFrame | pa.Table, config: SplitConfig, classes: Classes, seed: int) -> Split:
    """Split the labelled rows of a catalog; rows without a label are left out.

    Parameters
    ----------
    rows : pandas.DataFrame or pyarrow.Table
        With ``image_id``, ``patient_id`` and ``label`` (A to D; ``negative`` or ``cancer``; missing), in any order;
        and ``site_id`` and ``machine_id`` where they are known.
    config : SplitConfig
        Folds, shares, a fixed test set, or a file with a finished split.
    classes : {"density", "binary", "cancer"}
        Which labels there are. Density and binary have one split; they differ in which classes have to have enough
        patients.
    seed : int
        Another seed gives another split.

    Raises
    ------
    SplitError
        A class has too few patients, the rows cannot be split, or a file does not fit them.
    LeakError
        A loaded split has a patient in two folds.
    """
    labelled = _labelled(rows, classes)
    if config.split_file is not None:
        return _from_file(labelled, config.split_file, classes)
    if config.test_file is None:
        return _finish(labelled, _deal(labelled, config, classes, seed), classes)
    locked = locked_patients(config.test_file)
    return _around(labelled, locked, config, classes, seed)


def _labelled(rows: pd.DataFrame | pa.Table, classes: Classes) -> pd.DataFrame:
    """The labelled rows as text, sorted by image, site and machine blank where they are not known."""
    table = rows.to_pandas() if isinstance(rows, pa.Table) else rows
    columns = ["image_id", "patient_id", "label", *(name for name in _CELL if name in table)]
    labelled = table.loc[table["label"].notna().to_numpy(), columns]
    _require_rows(labelled, len(table), classes)
    labelled = labelled.assign(**{name: labelled[name].astype("string").fillna("") for name in columns[3:]}).astype(str)
    absent = {name: "" for name in _CELL if name not in table}
    return labelled.assign(**absent).sort_values("image_id", ignore_index=True)


def _require_rows(labelled: pd.DataFrame, images: int, classes: Classes) -> None:
    if labelled.empty:
        found = f"{images} images without one"
        raise SplitError("the catalog", "images with a label", found, "Check the label column of --csv.")
    unknown = sorted({str(label) for label in labelled["label"].unique()} - set(LABELS[classes]))
    if unknown:
        remedy = "Use the --classes of these labels."
        raise SplitError("the catalog: label", ", ".join(LABELS[classes]), ", ".join(unknown[:10]), remedy)
    blank = int((labelled["patient_id"].isna() | (labelled["patient_id"].astype(str) == "")).sum())
    if blank:
        found, remedy = f"{blank} labelled images without one", "Fill it in, or remove these rows."
        raise SplitError("the catalog: patient_id", "the patient of every labelled image", found, remedy)
    repeated = labelled.loc[labelled.duplicated("image_id"), "image_id"]
    if len(repeated):
        found = f"{len(repeated)} repeated, such as {repeated.iloc[0]}"
        raise SplitError("the catalog: image_id", "every image once", found, "Remove the copies.")


def _from_file(labelled: pd.DataFrame, path: Path, classes: Classes) -> Split:
    given = load(path)
    verify(labelled, given, str(path))
    folds = given.rows.set_index("image_id")["fold"]
    return _finish(labelled, labelled["image_id"].map(folds), classes)


def _around(labelled: pd.DataFrame, locked: set[str], config: SplitConfig, classes: Classes, seed: int) -> Split:
    """Deal the patients that are not locked into the test set."""
    inside = labelled["patient_id"].isin(locked)
    present = labelled.loc[inside, "patient_id"].nunique()
    where = str(config.test_file)
    if not present:
        found = f"none of its {len(locked)} patients among them"
        raise SplitError(where, "test patients with labelled images in these data", found, "Check --test-file.")
    others = labelled[~inside]
    _require_no_lookalike(others, locked - set(labelled["patient_id"]), where)
    if others.empty:
        raise SplitError(where, "patients left to train and validate with", "none", "Shorten --test-file.")
    absent = len(locked) - present
    notes = (f"{absent} of the {len(locked)} patients of --test-file have no labelled image in these data.",)
    folds = _deal(others, config, classes, seed)
    if config.test_patients == "leave_out":
        left_out = {"images": int(inside.sum()), "patients": int(present)}
        said = f"{present} patients of --test-file take no part."
        return _finish(others, folds, classes, notes=(*notes[: bool(absent)], said), left_out=left_out)
    every = pd.Series("test", index=labelled.index)
    every[others.index] = folds
    return _finish(labelled, every, classes, notes=notes[: bool(absent)], required=("train", "val"))


def _require_no_lookalike(others: pd.DataFrame, absent: set[str], where: str) -> None:
    """Refuse a test patient who is in the data under another spelling: she would be trained on."""
    near = {groups.bare(patient) for patient in absent}
    names = sorted({patient for patient in others["patient_id"].unique() if groups.bare(patient) in near})
    if names:
        found = f"{len(names)} with other zeros, spaces or capitals: {', '.join(names[:5])}"
        raise SplitError(where, "test patients spelt as in the data", found, "Correct --test-file.")


def _finish(
    labelled: pd.DataFrame,
    folds: pd.Series,
    classes: Classes,
    *,
    notes: tuple[str, ...] = (),
    left_out: dict[str, int] | None = None,
    required: tuple[str, ...] = FOLDS,
) -> Split:
    rows = labelled[["image_id", "patient_id", "label"]].assign(fold=folds).reset_index(drop=True)
    check(rows)
    lacking = _check_classes(rows, classes, required)
    return Split(rows=rows, digest=digest(rows), notes=(*notes, *lacking), left_out=left_out)


def _deal(labelled: pd.DataFrame, config: SplitConfig, classes: Classes, seed: int) -> pd.Series:
    """Fold of each row."""
    names, weights = _parts(config)
    code_R, patients = pd.factorize(labelled["patient_id"])
    rank_P = np.argsort(np.argsort([_order_key(seed, str(patient)) for patient in patients]))
    of_R = rank_P[code_R]
    images_PL = np.zeros((len(patients), len(LABELS[classes])), dtype=np.int64)
    label_R = labelled["label"].map({label: i for i, label in enumerate(LABELS[classes])}).to_numpy(dtype=np.int64)
    np.add.at(images_PL, (of_R, label_R), 1)
    class_P = _class_of(images_PL, classes)
    _check_enough(class_P, config, classes, len(weights))
    part_P = deal.deal(class_P, _cell_of(labelled, of_R), images_PL, weights)
    return pd.Series(np.array(names, dtype=object)[part_P[of_R]], index=labelled.index)


def _parts(config: SplitConfig) -> tuple[list[str], list[int]]:
    """Fold and weight of each part that the patients are dealt into."""
    dealt = FOLDS if config.test_file is None or config.test_patients == "leave_out" else FOLDS[:2]
    if config.val_share is not None:
        val, test = (round(share * _SHARES) for share in (config.val_share, config.test_share or 0))
        weights = {"train": _SHARES - val - test, "val": val, "test": test}
        given = {fold: weights[fold] for fold in dealt if weights[fold]}
        divisor = math.gcd(*given.values())
        return list(given), [weight // divisor for weight in given.values()]
    names = ["train"] * config.folds
    for offset, fold in enumerate(reversed(dealt[1:])):  # The part after the one that tests validates.
        names[(config.fold + offset) % config.folds] = fold
    return names, [1] * config.folds


def _order_key(seed: int, patient_id: str) -> str:
    return hashlib.sha256(f"{seed}:{patient_id}".encode()).hexdigest()


def _class_of(images_PL: deal.Ints, classes: Classes) -> deal.Ints:
    """Class of each patient, as an index of its label."""
    if classes == "cancer":
        return np.asarray((images_PL[:, 1] > 0).astype(np.int64))
    # argmax takes the first maximum: reversed columns make it the denser class, which is the rarer mistake to lose.
    return np.asarray(images_PL.shape[1] - 1 - images_PL[:, ::-1].argmax(axis=1))


def _cell_of(labelled: pd.DataFrame, of_R: deal.Ints) -> deal.Ints:
    """Cell of each patient: the commonest site and machine of its images, the first by name on a tie."""
    cell_R = labelled.groupby(list(_CELL), sort=True).ngroup().to_numpy()
    pairs = pd.DataFrame({"patient": of_R, "cell": cell_R}).value_counts().reset_index()
    pairs = pairs.sort_values(["patient", "count", "cell"], ascending=[True, False, True]).drop_duplicates("patient")
    return np.asarray(pairs["cell"].to_numpy(dtype=np.int64))


def _check_enough(class_P: deal.Ints, config: SplitConfig, classes: Classes, parts: int) -> None:
    index = class_P // 2 if classes == "binary" else class_P
    few = {CLASS_NAMES[classes][i]: int(n) for i, n in enumerate(np.bincount(index)) if 0 < n < parts}
    if few:
        given = f"--folds {config.folds}" if config.val_share is None else f"{parts} (training and the shares)"
        found = ", ".join(f"{n} of class {name}" for name, n in few.items())
        remedy = _possible(min(few.values()), np.bincount(class_P, minlength=4), config, classes, parts)
        raise SplitError("the split", f"at least {given} patients of every class", found, remedy)


def _possible(smallest: int, sizes_L: deal.Ints, config: SplitConfig, classes: Classes, parts: int) -> str:
    ways = []
    if config.val_share is None and smallest >= 3:
        ways.append(f"--folds {smallest}")
    if config.val_share is not None and smallest == parts - 1 == 2:
        ways.append("--val-share without --test-share")
    merged = [int(n) for n in (sizes_L[:2].sum(), sizes_L[2:].sum()) if n]
    if classes == "density" and min(merged) >= parts:
        ways.append("--classes binary")
    return f"Use {' or '.join(ways)}." if ways else "Add patients of this class, or remove it from the data."


def _check_classes(rows: pd.DataFrame, classes: Classes, required: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a fold that lacks a class of the data; of a fold that is not required, only say it. Empty folds pass."""
    present = class_index(rows["label"], classes)
    notes = []
    for fold in FOLDS:
        inside = (rows["fold"] == fold).to_numpy()
        missing = sorted(set(present) - set(present[inside]))
        if not missing or (fold == "test" and not inside.any()):
            continue
        names = ", ".join(CLASS_NAMES[classes][int(i)] for i in missing)
        if fold in required:
            remedy = "Choose fewer --folds, larger shares, another --seed, or correct --split-file."
            raise SplitError(f"fold {fold}", "images of every class in the data", f"none of class {names}", remedy)
        notes.append(f"The fixed {fold} set has no image of class {names}.")
    return tuple(notes)
