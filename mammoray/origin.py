"""A checkpoint by its own folder or its run's, and which patients it has learned from, as far as that can be known.

The run's split.csv says it, of the patients by the ids of its table; its catalog.parquet says which files they were.
What follows for new rows is their fold: ``train``, ``val`` or ``test`` of that run, ``new``, or ``unknown`` where the
checkpoint stands alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mammoray import checkpoint, mirror, splitfile, storage
from mammoray.checkpoint import ModelCard
from mammoray.errors import CheckpointError, LeakError, RunFolderError
from mammoray.recipe import Seen

SEEN = ("train", "val")
"""Folds that a network has learned from, or that its best epoch was chosen by."""
NEW, UNKNOWN = "new", "unknown"
_BEST = "checkpoints/best"
_FILES = ("model.json", "model.safetensors")
_OF_RUN = ("split.csv", "split.json", "catalog.parquet")
_NAMED = 5
_GIVE = "Give the folder of a run (fold-0 of a cross-validation, best of a search), or one of its checkpoints."


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A checkpoint, and where it comes from."""

    folder: Path
    """Of the checkpoint, on this machine."""
    place: str
    """Where it lies, for people."""
    card: ModelCard
    digest: str
    """16 hex digits of SHA-256 of its weights."""
    folds: Mapping[str, str] | None = None
    """Patient -> fold of the split that it was trained by; None where that split is not there."""
    files: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Name and size in bytes -> fold, of the files that no other of its data set shares both with."""
    grouped_by: str | None = None
    """What stands for the patient in that split."""


@contextlib.contextmanager
def opened(place: str) -> Iterator[Origin]:
    """As :func:`find`, of a path or URI; what lies on a storage is on this machine for the time of a ``with`` block.

    Raises
    ------
    StorageError
        The storage does not answer.
    """
    local = storage.local_path(place)
    if local is not None:
        yield find(Path(local))
        return
    with tempfile.TemporaryDirectory(prefix="mammoray-") as folder:
        with mirror.answering(place, "--checkpoint"):
            fetched = _fetch(place, Path(folder))
        yield find(fetched, storage.shown(place))


def _fetch(place: str, folder: Path) -> Path:
    """Copy what :func:`find` reads of a run or checkpoint; returns the copy, in the run's folder where there is one."""
    run, below = place, _BEST
    if storage.is_file(storage.join(place, _FILES[0]), "--checkpoint"):
        parent, name = storage.split(place)
        above, kind = storage.split(parent)
        run, below = (above, f"{kind}/{name}") if kind == "checkpoints" else (parent, name)
    in_run = _OF_RUN if below.startswith("checkpoints/") else ()
    for name in (*(f"{below}/{name}" for name in _FILES), *in_run):
        source = storage.join(run, name)
        if storage.is_file(source, "--checkpoint"):
            storage.download(source, folder / "run" / name)
    return folder / "run" / below if (folder / "run" / below).is_dir() else folder / "run"


def find(place: Path, shown: str = "") -> Origin:
    """Read the card of a checkpoint, and the split of its run.

    Parameters
    ----------
    place : Path
        The folder of a run, whose best checkpoint counts, or of a checkpoint.
    shown : str
        Where that was copied from, for people.

    Raises
    ------
    CheckpointError
        There is none, it cannot be read, or it was trained by another split than the one of its run.
    SplitError
        The split cannot be read.
    RunFolderError
        The catalog of the run cannot be read.
    """
    folder = place if (place / _FILES[0]).is_file() else place / _BEST
    if not (folder / _FILES[0]).is_file():
        found = f"neither {_BEST} nor {_FILES[0]}" if shown or place.is_dir() else "no such folder"
        raise CheckpointError(f"--checkpoint {shown or place}", "the folder of a run or of a checkpoint", found, _GIVE)
    folder = folder.resolve()
    card = checkpoint.read_card(folder)
    shown = shown or str(folder)
    run = folder.parent.parent
    if folder.parent.name != "checkpoints" or not (run / "split.csv").is_file():
        return Origin(folder=folder, place=shown, card=card, digest=_digest(folder, shown))
    split = splitfile.load(run / "split.csv")
    if split.digest != card.split_digest:
        remedy = "Restore the run's folder, or give a copy of the checkpoint alone."
        raise CheckpointError(str(run / "split.csv"), f"the split {card.split_digest} of {shown}", split.digest, remedy)
    pairs = split.rows[["patient_id", "fold"]].drop_duplicates()
    return Origin(
        folder=folder,
        place=shown,
        card=card,
        digest=_digest(folder, shown),
        folds=dict(zip(pairs["patient_id"], pairs["fold"], strict=True)),
        files=_files(run / "catalog.parquet"),
        grouped_by=_grouped_by(run / "split.json"),
    )


def _digest(folder: Path, shown: str) -> str:
    try:
        return hashlib.sha256((folder / _FILES[1]).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise CheckpointError(shown, f"{_FILES[1]} beside its card", type(error).__name__, _GIVE) from error


def _files(path: Path) -> dict[tuple[str, int], str]:
    if not path.is_file():
        return {}
    try:
        rows = pd.read_parquet(path, columns=["path", "size", "fold"])
    except (OSError, ValueError) as error:
        remedy = "Restore the run's folder."
        raise RunFolderError(str(path), "the catalog of a run", type(error).__name__, remedy) from error
    keys = pd.Series(_keys(rows), index=rows.index)
    # Archives with uncompressed images called 1.dcm have many of one name and size, which tell nothing.
    alone = ~keys.duplicated(keep=False) & rows["fold"].notna()
    return dict(zip(keys[alone], rows.loc[alone, "fold"], strict=True))


def _keys(rows: pd.DataFrame) -> list[tuple[str, int]]:
    names = rows["path"].str.rpartition("/")[2]
    return list(zip(names, rows["size"].astype(int), strict=True))


def _grouped_by(path: Path) -> str | None:
    # splitfile.load has refused a damaged one.
    return json.loads(path.read_text(encoding="utf-8")).get("grouped_by") if path.is_file() else None


def folds(rows: pd.DataFrame, origin: Origin) -> pd.Series:
    """The fold of each row: of its patient or its file, whichever was learned from.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``patient_id, path, size`` of a catalog.
    origin : Origin

    Returns
    -------
    Series of str
        ``train``, ``val``, ``test``, ``new`` or ``unknown``. All rows of a patient have one, the first of these that
        any of them has.
    """
    if origin.folds is None:
        return pd.Series(UNKNOWN, index=rows.index)
    of_patient = rows["patient_id"].map(dict(origin.folds)).astype(object)
    of_file = pd.Series([origin.files.get(key) for key in _keys(rows)], index=rows.index, dtype=object)
    order = (*splitfile.FOLDS, NEW)
    ranks_of = {name: i for i, name in enumerate(order)}
    # Another table may give an id anew, and a patient may have one file that is known and others that are not.
    found = pd.concat([of.fillna(NEW).map(ranks_of) for of in (of_patient, of_file)], axis=1).min(axis=1)
    ranks = found.groupby(rows["patient_id"]).transform("min").astype(int)
    return ranks.map(dict(enumerate(order)))


def choose(rows: pd.DataFrame, origin: Origin, seen: Seen) -> pd.DataFrame:
    """Rows that a network may be applied to.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``patient_id`` and ``fold``, of :func:`folds`.
    origin : Origin
    seen : {"refuse", "leave_out", "allow"}
        What becomes of those that the network has learned from; see :class:`mammoray.recipe.ApplyConfig`.

    Raises
    ------
    LeakError
        Some were learned from, with ``refuse``; or all of them, with ``leave_out``.
    CheckpointError
        With ``leave_out``, it is not known which.
    """
    if seen == "leave_out" and origin.folds is None:
        found, remedy = "a checkpoint alone", "Give the run's folder, or leave --seen out."
        raise CheckpointError(f"--seen leave_out with {origin.place}", "the split.csv of its run", found, remedy)
    known = rows["fold"].isin(SEEN)
    rest = rows[~known]
    if seen == "allow" or not known.any():
        return rows
    if seen == "leave_out" and len(rest):
        return rest.reset_index(drop=True)
    patients = rows.loc[known, "patient_id"].drop_duplicates()
    of = f"{len(patients)} of {rows['patient_id'].nunique()} patients ({int(known.sum())} of {len(rows)} images)"
    named = ", ".join(patients.head(_NAMED)) + (", ..." if len(patients) > _NAMED else "")
    raise LeakError(
        f"the checkpoint {origin.place}",
        "patients that it has not learned from and was not chosen by",
        f"{of} of folds train and val of its split: {named}",
        "Give other rows; or use --seen leave_out to take only the rest, or --seen allow where that is meant.",
    )


def limits(origin: Origin, grouped_by: str) -> list[str]:
    """What a reader of the results has to know about where the checkpoint comes from.

    Parameters
    ----------
    origin : Origin
    grouped_by : str
        What stands for the patient in the new rows.
    """
    said = []
    if origin.folds is None:
        said.append(
            "The checkpoint stands alone, without the split.csv of its run: whether it has learned from these patients "
            "is not known."
        )
    elif origin.grouped_by not in (None, grouped_by):
        said.append(
            f"The split of the checkpoint is by {origin.grouped_by} and these rows are by {grouped_by}: only files "
            "that have kept their name and size were recognised as learned from."
        )
    else:
        said.append(
            "Whether the network has learned from a patient was told by the ids in the tables, as they stand there, "
            "and by names and sizes of files: a woman with another id is not recognised."
        )
    if origin.card.model.weights is not None:
        said.append("The training began with weights from a file; whose images those were made by is not known.")
    return said
