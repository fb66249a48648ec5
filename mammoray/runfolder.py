"""A finished run's folder: its files, read and checked.

Damaged, missing or foreign files are refused here, each by its name and the place in it, so that
:mod:`mammoray.report` can say what they hold without a doubt of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from mammoray.config import Config
from mammoray.errors import ConfigError, RunFolderError
from mammoray.evaluate import judged
from mammoray.plain import load_toml

Json = dict[str, Any]
T = TypeVar("T")

FOLDS = {"train": "Training", "val": "Validation", "test": "Test"}
LEVELS = {"image": "by image", "patient": "by patient", "breast": "by breast"}
"""The last only where it was asked for."""
METRICS = {
    "kappa": "Quadratic weighted kappa",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auc": "AUC, macro one-vs-rest",
    "f1": "F1, macro",
}
REMEDY = "Restore the file from where the run was made, or train again into a new folder."

# What each JSON file must hold: a type or a tuple of types, [shape of each item], {key: shape}; EACH is any key.
EACH = "*"
REAL = (int, float)
MAYBE = (int, float, type(None))
_COUNT = {"images": int, "patients": int}
_INTERVAL = {"value": MAYBE, "low": MAYBE, "high": MAYBE}
_LEVEL = {
    "n": int,
    "majority_accuracy": MAYBE,
    "confusion": [[int]],
    "per_class": {EACH: {"precision": MAYBE, "recall": MAYBE, "f1": MAYBE, "n": int}},
    **dict.fromkeys(METRICS, _INTERVAL),
}
RUN = {
    **dict.fromkeys(("version", "layout", "started", "split_digest", "device"), str),
    **dict.fromkeys(("num_workers", "decoded", "failed", "parameters", "best_epoch"), int),
    "seconds": {EACH: REAL},
    "limits": [str],
}
SPLIT = {
    "digest": str,
    "grouped_by": str,
    "folds": {fold: {**_COUNT, "classes": {EACH: _COUNT}} for fold in FOLDS},
    "unlabelled": _COUNT,
}
AUDIT = {
    "findings": int,
    "by_severity": {EACH: int},
    "by_reason": [{"severity": str, "reason": str, "count": int, "what_to_do": str}],
}
EPOCH = {
    "epoch": int,
    **dict.fromkeys(("train_loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_kappa", "val_auc"), MAYBE),
    **dict.fromkeys(("lr", "seconds", "images_per_second"), MAYBE),
}
COLLAPSE = {"collapse": [str], "collapse_cause": (str, type(None))}  # An epoch may have them.
METRICS_FILE = {
    "classes": [str],
    "intervals": {"level": REAL, "method": str, "resamples": int},
    "folds": {EACH: dict.fromkeys(("image", "patient"), _LEVEL)},
}
PREDICTIONS = ("image_id", "patient_id", "fold", "label", "predicted")
EXAMPLES = ("image_id", "fold", "label", "predicted", "probability", "height", "width", "pixels")
AUGMENTED = ("image_id", "variant", "height", "width", "pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """The files of a finished run, read and checked."""

    name: str
    """The folder's name, which is the run's."""
    config: Config
    """config.toml"""
    run: Json
    """run.json"""
    split: Json
    """split.json"""
    audit: Json
    """audit.json"""
    history: list[Json]
    """history.jsonl, ascending in epoch."""
    metrics: Json
    """metrics.json"""
    predictions: pd.DataFrame
    """predictions.parquet"""
    examples: list[Json]
    """examples.parquet, one dictionary a row."""
    augmented: list[Json]
    """augmented.parquet, likewise; empty where there is none, as in runs of older versions."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the model's outputs."""
        names: list[str] = self.metrics["classes"]
        return names

    @property
    def fold(self) -> str:
        """The fold that the run is judged on."""
        return judged(self.metrics["folds"])

    @property
    def levels(self) -> list[str]:
        """What it is judged by: image, patient, and breast where that was asked for."""
        return [level for level in LEVELS if level in self.judged]

    @property
    def judged(self) -> Json:
        """That fold's metrics, by level."""
        levels: Json = self.metrics["folds"][self.fold]
        return levels


def read_run(outdir: Path) -> RunFolder:
    """Read and check the files of a finished run.

    Raises
    ------
    RunFolderError
        For a file that is missing, damaged, or from another run than the rest.
    """
    if not outdir.is_dir():
        raise RunFolderError(str(outdir), "the folder of a finished run", "no such folder", "Check the path.")
    # The page only points at it, but a page that points at nothing is a false one.
    if not (outdir / "audit.csv").is_file():
        raise RunFolderError(str(outdir / "audit.csv"), "the list of the audit's findings", "no such file", REMEDY)
    augmented = outdir / "augmented.parquet"
    folder = RunFolder(
        name=outdir.resolve().name,
        config=_read(outdir / "config.toml", "the run's settings", load_toml),
        run=_read_json(outdir / "run.json", RUN),
        split=_read_json(outdir / "split.json", SPLIT),
        audit=_read_json(outdir / "audit.json", AUDIT),
        history=_read_history(outdir / "history.jsonl"),
        metrics=_read_json(outdir / "metrics.json", METRICS_FILE),
        predictions=_read_parquet(outdir / "predictions.parquet", PREDICTIONS),
        examples=_read_images(outdir / "examples.parquet", EXAMPLES),
        augmented=_read_images(augmented, AUGMENTED) if augmented.exists() else [],
    )
    _require_one_run(folder, outdir)
    return folder


def _read(path: Path, expected: str, reader: Callable[[Path], T]) -> T:
    try:
        return reader(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(str(path), expected, "no such file", REMEDY) from error
    except ConfigError as error:
        found = "no such file" if not path.is_file() else f"{error.where}: {error.found}"
        raise RunFolderError(str(path), expected, found, REMEDY) from error
    # ValueError covers broken JSON, broken UTF-8 and pyarrow's own ArrowInvalid.
    except (OSError, ValueError) as error:
        raise RunFolderError(str(path), expected, str(error).splitlines()[0], REMEDY) from error


def _read_json(path: Path, shape: Any) -> Json:
    document: Json = _read(path, "a JSON object", lambda p: json.loads(p.read_text(encoding="utf-8")))
    _require_shape(document, shape, f"{path}", "")
    return document


def _read_history(path: Path) -> list[Json]:
    lines = _read(path, "one JSON object an epoch", lambda p: p.read_text(encoding="utf-8")).splitlines()
    if not lines:
        raise RunFolderError(str(path), "one JSON object an epoch", "an empty file", REMEDY)
    history: list[Json] = []
    for i, line in enumerate(lines, start=1):
        where = f"{path} line {i}"
        try:
            epoch = json.loads(line)
        except ValueError as error:
            raise RunFolderError(where, "one JSON object an epoch", str(error), REMEDY) from error
        _require_shape(epoch, EPOCH, where, "")
        for key in COLLAPSE.keys() & epoch:
            _require_shape(epoch[key], COLLAPSE[key], where, key)
        history.append(epoch)
    return sorted(history, key=lambda epoch: int(epoch["epoch"]))


def _read_parquet(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    frame = _read(path, "a Parquet table", pd.read_parquet)
    missing = [name for name in columns if name not in frame]
    if missing:
        raise RunFolderError(str(path), f"the columns {', '.join(columns)}", f"none named {', '.join(missing)}", REMEDY)
    return frame


def _read_images(path: Path, columns: tuple[str, ...]) -> list[Json]:
    rows: list[Json] = [
        {str(column): value for column, value in row.items()} for row in _read_parquet(path, columns).to_dict("records")
    ]
    for row in rows:
        if len(row["pixels"]) != row["height"] * row["width"]:
            where = f"{path}: image_id {row['image_id']}"
            raise RunFolderError(where, f"{row['height']} x {row['width']} pixels", f"{len(row['pixels'])}", REMEDY)
    return rows


def _require_shape(value: Any, shape: Any, where: str, at: str) -> None:
    """Check JSON against one of the shapes above; ``at`` is the dotted path down to ``value``."""

    def fail(expected: str, found: str) -> RunFolderError:
        return RunFolderError(f"{where}: {at}" if at else where, expected, found, REMEDY)

    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise fail("an object", repr(value)[:80])
        inner = dict.fromkeys(value, shape[EACH]) if EACH in shape else shape
        for key, below in inner.items():
            if key not in value:
                raise fail(f"the key {key!r}", f"only {', '.join(map(repr, value)) or 'an empty object'}")
            _require_shape(value[key], below, where, f"{at}.{key}" if at else key)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise fail("a list", repr(value)[:80])
        for i, item in enumerate(value):
            _require_shape(item, shape[0], where, f"{at}[{i}]")
    elif not isinstance(value, shape) or isinstance(value, bool):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        names = {int: "a whole number", float: "a number", str: "text", type(None): "null"}
        raise fail(" or ".join(names[kind] for kind in kinds), repr(value)[:80])


def _require_one_run(folder: RunFolder, outdir: Path) -> None:
    """Refuse files that do not fit each other: a folder that was written into twice would make a false report."""
    digests = (folder.split["digest"], folder.run["split_digest"])
    if digests[0] != digests[1]:
        raise RunFolderError(str(outdir / "split.json"), f"the digest {digests[1]} of run.json", digests[0], REMEDY)
    names = list(folder.config.class_names)
    if folder.classes != names:
        found = ", ".join(folder.classes)
        expected = f"the classes {', '.join(names)} of config.toml"
        raise RunFolderError(str(outdir / "metrics.json"), expected, found, REMEDY)
    wanted = [f"p_{name}" for name in names]
    missing = [name for name in wanted if name not in folder.predictions]
    if missing:
        where = str(outdir / "predictions.parquet")
        raise RunFolderError(where, f"the columns {', '.join(wanted)}", f"none named {', '.join(missing)}", REMEDY)
    held = "val" if folder.config.train.train_on == "train" else "test"
    if held not in folder.metrics["folds"]:
        found = ", ".join(folder.metrics["folds"]) or "none"
        raise RunFolderError(f"{outdir / 'metrics.json'}: folds", f"the fold {held}", found, REMEDY)
    for fold, levels in folder.metrics["folds"].items():
        for level, values in levels.items():
            where = f"{outdir / 'metrics.json'}"
            _require_shape(values, _LEVEL, where, f"folds.{fold}.{level}")
            _require_square(values, names, f"{outdir / 'metrics.json'}: folds.{fold}.{level}")


def _require_square(values: Json, names: list[str], where: str) -> None:
    k = len(names)
    if [len(row) for row in values["confusion"]] != [k] * k:
        raise RunFolderError(f"{where}.confusion", f"{k} rows of {k} counts", str(values["confusion"])[:80], REMEDY)
    if not set(names) <= set(values["per_class"]):
        found = ", ".join(values["per_class"]) or "none"
        raise RunFolderError(f"{where}.per_class", f"the classes {', '.join(names)}", found, REMEDY)
