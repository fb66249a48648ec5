"""The main job, in the order in which data flows: catalog, split, decode, train, evaluate, report.

It owns the run's folder: every file in it is written here, or by the module that is handed the folder here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammoray import (
    __version__,
    audit,
    cache,
    catalog,
    cluster,
    evaluate,
    ingest,
    labels,
    plain,
    prepare,
    report,
    split,
)
from mammoray.config import Config, Scale
from mammoray.errors import ConfigError, RunFolderError
from mammoray.storage import Place

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the data lie; paths as every node of the cluster sees them."""

    csv: Place | None
    """Path or URI of the table, None where the layout has none or it lies below the root."""
    dicom_root: Place
    """Path or URI of the images."""
    outdir: Path


def run(source: Source, config: Config, scale: Scale, say: Say = print) -> dict[str, Any]:
    """From a CSV and DICOMs to a trained, evaluated model and its report.

    A run that was interrupted goes on where it stood when it is started again; a finished one is only read.

    Returns
    -------
    dict
        The content of metrics.json.
    """
    outdir = source.outdir
    data = prepare.read_catalog(source.csv, source.dicom_root, config, say)
    parts = split.make(data.rows, config.split, config.classes, config.seed)
    files = cache.file_keys(data.rows, data.root)[data.rows["label"].notna()]
    identity = plain.digest(_what_counts(config), parts.digest, sorted(files))
    if _claim(outdir, identity):
        say(f"{outdir} already holds this run, finished; nothing is done again")
        report.write_report(outdir)
        return _read_metrics(outdir)
    say(
        f"split: digest {parts.digest}, "
        + ", ".join(f"{fold} {n['patients']}" for fold, n in split.counts(parts, data.rows)["folds"].items())
        + f" {_groups(data)}"
    )
    for note in parts.notes:
        say(f"split: {note}")
    _write_inputs(outdir, config, data, parts)
    started = datetime.now(timezone.utc)
    # Only now: whatever is wrong with the paths, the table or the split is said before Ray takes its seconds to start.
    with cluster.connect(scale.address):
        _check_training(config, scale, outdir)
        begun = time.monotonic()
        decoded = _decode(source, config, data, say)
        inputs = _Inputs(data, parts, decoded, identity, started, time.monotonic() - begun)
        return _train_and_judge(source, config, scale, say, inputs)


@dataclass(frozen=True, slots=True)
class _Inputs:
    data: catalog.Catalog
    parts: split.Split
    decoded: ingest.Decoded
    identity: str
    started: datetime
    decode_seconds: float


def _groups(data: catalog.Catalog) -> str:
    return "patients" if data.grouped_by == "patient_id" else f"groups by {data.grouped_by}"


def _what_counts(config: Config) -> dict[str, Any]:
    """The settings that decide the result: not where the cache lies, nor how often to try again."""
    settings = plain.to_dict(config)
    settings["ingest"], settings["data"] = {}, {}  # What they lead to is in the split and the files.
    settings["train"].pop("max_failures")
    # Which patients stand in these files is in the split's digest.
    for name in ("split_file", "test_file"):
        settings["split"].pop(name, None)
    return settings


def _claim(outdir: Path, identity: str) -> bool:
    """Take the output folder for this run; True when it holds this very run, finished.

    A run that has not trained an epoch yet may be replaced by another: nothing is lost but a typing error.
    """
    marker = outdir / "run.json"
    held = _read_marker(marker)
    if held is not None and held["identity"] == identity:
        return bool(held["finished"]) and (outdir / "metrics.json").exists()
    if held is not None and (held["finished"] or (outdir / "history.jsonl").exists()):
        found = f"another run ({held['identity']}): other settings, another split or other files"
        remedy = "Choose another --outdir, or remove the folder."
        raise RunFolderError(str(outdir), f"an empty folder, or this run ({identity})", found, remedy)
    if held is None and outdir.is_dir() and any(_is_foreign(path) for path in outdir.iterdir()):
        raise RunFolderError(
            str(outdir), "an empty folder, or a run of mammoray", "other files", "Choose another --outdir."
        )
    try:
        shutil.rmtree(outdir / "checkpoints", ignore_errors=True)
        outdir.mkdir(parents=True, exist_ok=True)
        _write_json(marker, {"version": __version__, "identity": identity, "finished": False})
    except OSError as error:
        found = type(error).__name__
        raise RunFolderError(str(outdir), "a folder that can be written", found, "Choose another --outdir.") from error
    return False


def _is_foreign(path: Path) -> bool:
    return path.suffix != ".partial" and path.name not in prepare.FILES


def _read_marker(marker: Path) -> dict[str, Any] | None:
    """The content of a run's marker, or None where there is none."""
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
        return {"identity": held["identity"], "finished": held["finished"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        found, remedy = f"a damaged file ({type(error).__name__})", "Choose another --outdir, or remove the folder."
        raise RunFolderError(str(marker), "the marker of a run", found, remedy) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _read_metrics(outdir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((outdir / "metrics.json").read_text(encoding="utf-8"))
    return content


def _write_inputs(outdir: Path, config: Config, data: catalog.Catalog, parts: split.Split) -> None:
    (outdir / "config.toml").write_text(plain.to_toml(config), encoding="utf-8")
    folds = parts.rows.set_index("image_id")["fold"]
    data.rows.assign(fold=data.rows["image_id"].map(folds)).to_parquet(outdir / "catalog.parquet", index=False)
    split.save(parts, outdir, data.rows, data.grouped_by)


def _decode(source: Source, config: Config, data: catalog.Catalog, say: Say) -> ingest.Decoded:
    labelled = data.rows[data.rows["label"].notna()]
    decoded = prepare.decode(labelled, data.root, source.outdir, config, say)
    audit.write((*data.findings, *audit.of_labels(data), *audit.of_failures(decoded.failures)), source.outdir)
    ingest.check_enough(decoded, config.ingest)
    return decoded


def _check_training(config: Config, scale: Scale, outdir: Path) -> None:
    from mammoray import train

    train.check(config, scale, outdir)


def _train_and_judge(source: Source, config: Config, scale: Scale, say: Say, inputs: _Inputs) -> dict[str, Any]:
    from mammoray import predict, train

    outdir, decoded = source.outdir, inputs.decoded
    rows = decoded.rows.merge(inputs.parts.rows[["image_id", "fold"]], on="image_id", validate="one_to_one")
    rows = rows.assign(target=labels.class_index(rows["label"], config.classes)).sort_values(
        "image_id", ignore_index=True
    )
    split.check(rows)
    fitted = train.fit(rows, inputs.parts.digest, config, scale, outdir, say)
    say("evaluate: the best checkpoint, on validation and test images")
    gpu = bool(train.plan(scale).use_gpu)
    held_out = rows[rows["fold"] != "train"].reset_index(drop=True)
    p_NK = predict.predict(held_out, fitted.best, gpu=gpu, bf16=config.train.precision == "bf16")
    predictions = _table(held_out, p_NK, config)
    predictions.to_parquet(outdir / "predictions.parquet", index=False)
    metrics = evaluate.judge(predictions, config.class_names, config.evaluate.bootstrap, config.seed)
    metrics["possible_leak"] = inputs.data.leak
    metrics["learned"] = [fitted.history[0], fitted.history[-1]]
    _write_json(outdir / "metrics.json", metrics)
    _write_examples(outdir, held_out, predictions, config)
    best = train.best_epoch(fitted.history, config.train.monitor)
    facts = {
        "version": __version__,
        "identity": inputs.identity,
        "finished": True,
        "layout": inputs.data.layout,
        "num_workers": scale.num_workers,
        "decoded": len(decoded.rows),
        "failed": len(decoded.failures),
        "parameters": predict.parameters(fitted.best),
        "best_epoch": best,
        "started": inputs.started.isoformat(timespec="seconds"),
        "seconds": {
            "decode": round(inputs.decode_seconds, 1),
            "train": round(sum(record["seconds"] for record in fitted.history), 1),
        },
        "split_digest": inputs.parts.digest,
        "device": "cuda" if gpu else "cpu",
        "limits": [
            *inputs.data.limits,
            *inputs.parts.notes,
            *_absent(inputs.parts, config),
            *_untested(inputs.parts),
        ],
    }
    # The report reads run.json; only after it is there may the run be called finished.
    _write_json(outdir / "run.json", {**facts, "finished": False})
    report.write_report(outdir)
    _write_json(outdir / "run.json", facts)
    return metrics


def _absent(parts: split.Split, config: Config) -> list[str]:
    present = set(labels.class_index(parts.rows["label"], config.classes).tolist())
    absent = [name for k, name in enumerate(config.class_names) if k not in present]
    return (
        [
            f"No image of class {', '.join(absent)} is in these data: the model cannot know it, "
            "and the metrics are over the other classes."
        ]
        if absent
        else []
    )


def _untested(parts: split.Split) -> list[str]:
    if (parts.rows["fold"] == "test").any():
        return []
    return [
        "No patients were set aside for a test: all figures are of the validation patients, by which the best epoch "
        "was chosen, and so are too good."
    ]


def _table(rows: pd.DataFrame, p_NK: Any, config: Config) -> pd.DataFrame:
    names = np.array(config.class_names)
    return pd.DataFrame(
        {
            "image_id": rows["image_id"],
            "patient_id": rows["patient_id"],
            "fold": rows["fold"],
            "label": names[rows["target"].to_numpy()],
            "predicted": names[p_NK.argmax(axis=1)],
            **{f"p_{name}": p_NK[:, k] for k, name in enumerate(names)},
        }
    )


def _write_examples(outdir: Path, rows: pd.DataFrame, predictions: pd.DataFrame, config: Config) -> None:
    """Judged images for the report's montage: half of them wrong where there are as many, spread over the classes."""
    test = predictions[predictions["fold"] == evaluate.judged(predictions["fold"].unique())]
    wrong = _spread(test[test["label"] != test["predicted"]], config.evaluate.examples // 2)
    right = _spread(test[test["label"] == test["predicted"]], config.evaluate.examples - len(wrong))
    chosen = predictions.loc[[*wrong, *right]]
    where = rows.loc[chosen.index]
    images = cache.load_pixels(where["shard"].tolist(), where["position"].to_numpy(), config.decode)
    shown = (images >> (config.decode.depth - 8)).astype(np.uint8)
    table = chosen[["image_id", "fold", "label", "predicted"]].assign(
        probability=[row[f"p_{row['predicted']}"] for _, row in chosen.iterrows()],
        height=config.decode.height,
        width=config.decode.width,
        pixels=[image.tobytes() for image in shown],
    )
    table.to_parquet(outdir / "examples.parquet", index=False)


def _spread(rows: pd.DataFrame, count: int) -> list[int]:
    """Index of ``count`` rows, dealt over the classes in turn; deterministic."""
    turn = rows.sort_values("image_id").groupby("label").cumcount()
    return [int(i) for i in turn.sort_values(kind="stable").index[:count]]


def crossval(source: Source, config: Config, scale: Scale, say: Say = print) -> dict[str, Any]:
    """Run every fold of the split, each in its own folder, and judge the test predictions of all together.

    Patients of ``--test-file`` take no part in it: neither training, validation nor test of any fold.

    Returns
    -------
    dict
        As of :func:`run`, over all patients: each is tested once, by a model that has not seen it.

    Raises
    ------
    ConfigError
        For one finished split or one fold, which a cross-validation makes itself.
    RunFolderError
        The output folder holds something other than these folds.
    """
    for name in ("split_file", "val_share", "fold"):
        if getattr(config.split, name) not in (None, 0):
            flag = "--" + name.replace("_", "-")
            remedy = f"Leave {flag} out, or use train."
            raise ConfigError(flag, "no such setting: every fold is run in turn", "one", remedy)
    own = {*(f"fold-{fold}" for fold in range(config.split.folds)), "predictions.parquet", "metrics.json"}
    other = sorted(path.name for path in source.outdir.glob("*") if path.name not in own and path.suffix != ".partial")
    if other:
        found = ", ".join(other[:5])
        raise RunFolderError(str(source.outdir), "an empty folder, or these folds", found, "Choose another --outdir.")
    with cluster.connect(scale.address):  # One session for all folds.
        tables = [_test_fold(source, config, scale, say, fold) for fold in range(config.split.folds)]
    predictions = pd.concat(tables, ignore_index=True)
    predictions.to_parquet(source.outdir / "predictions.parquet", index=False)
    metrics = evaluate.judge(predictions, config.class_names, config.evaluate.bootstrap, config.seed)
    metrics["possible_leak"] = _read_metrics(source.outdir / "fold-0")["possible_leak"]
    _write_json(source.outdir / "metrics.json", metrics)
    return metrics


def _test_fold(source: Source, config: Config, scale: Scale, say: Say, fold: int) -> pd.DataFrame:
    """Run one fold in its own folder; returns its test predictions."""
    say(f"fold {fold} of {config.split.folds}")
    part = Source(csv=source.csv, dicom_root=source.dicom_root, outdir=source.outdir / f"fold-{fold}")
    locked = "test" if config.split.test_file is None else "leave_out"
    changed = plain.replace(
        config,
        split=plain.replace(config.split, fold=fold, test_patients=locked),
        ingest=plain.replace(config.ingest, cache=prepare.cache_path(source.outdir, config)),
    )
    run(part, changed, scale, say)
    table = pd.read_parquet(part.outdir / "predictions.parquet")
    return table[table["fold"] == "test"]


def headline(metrics: dict[str, Any]) -> list[str]:
    """Lines for the end of a run: what was reached on held-out patients, and from where."""
    fold = evaluate.judged(metrics["folds"])
    test = metrics["folds"][fold]
    lines = []
    for level in ("image", "patient"):
        values = ", ".join(f"{name} {_with_interval(test[level][name])}" for name in ("kappa", "accuracy", "auc"))
        lines.append(f"{fold}, per {level} (n = {test[level]['n']}): {values}")
    lines.append(f"always the commonest class: accuracy {test['image']['majority_accuracy']:.3f}")
    if metrics.get("possible_leak"):
        lines.append(f"POSSIBLY LEAKING: {metrics['possible_leak']}")
    if "learned" in metrics:
        first, last = metrics["learned"]
        gap = ", ".join(
            f"{name} {_text(first['val_' + name])} -> {_text(last['val_' + name])}"
            for name in ("kappa", "accuracy", "loss")
        )
        lines.append(f"learned, on validation images, epoch 0 (untrained) -> {last['epoch']}: {gap}")
    return lines


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _with_interval(metric: dict[str, float | None]) -> str:
    interval = "" if metric["low"] is None else f" [{_text(metric['low'])}, {_text(metric['high'])}]"
    return _text(metric["value"]) + interval
