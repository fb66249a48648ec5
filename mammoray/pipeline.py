"""The main job, in the order in which data flows: catalog, split, decode, train, evaluate, report.

It owns the run's folder: every file in it is written here, or by the module that is handed the folder here.
"""

from __future__ import annotations

import json
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
    claim,
    cluster,
    evaluate,
    idle,
    ingest,
    labels,
    plain,
    prepare,
    report,
    split,
)
from mammoray.config import Config
from mammoray.errors import ConfigError
from mammoray.mirror import Mirror, mirrored, place
from mammoray.scale import Scale
from mammoray.storage import Place

Say = Callable[[str], None]
_EVALUATE = "evaluate: the best checkpoint, on validation and test images"


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
    with mirrored(source.outdir, place(source.outdir, scale.storage)) as copy:
        return _run(source, prepare.shared(config, scale), scale, say, copy)


def _run(source: Source, config: Config, scale: Scale, say: Say, copy: Mirror) -> dict[str, Any]:
    outdir = source.outdir
    data, parts, identity = read(source, config, say)
    if claim.is_finished(outdir, identity):
        say(f"{outdir} already holds this run, finished; nothing is done again")
        report.write_report(outdir)
        return read_metrics(outdir)
    claim.take(copy, identity)
    say(
        f"split: digest {parts.digest}, "
        + ", ".join(f"{fold} {n['patients']}" for fold, n in split.counts(parts, data.rows)["folds"].items())
        + f" {_groups(data)}"
    )
    for note in parts.notes:
        say(f"split: {note}")
    if config.evaluate.breasts:
        evaluate.breasts_of(labelled(data))
    _write_inputs(outdir, config, data, parts)
    started = datetime.now(timezone.utc)
    # Only now: whatever is wrong with the paths, the table or the split is said before Ray takes its seconds to start.
    with cluster.connect(scale.address):
        _check_training(config, scale, outdir)
        begun = time.monotonic()
        decoded = _decode(source, config, data, say)
        inputs = _Inputs(data, parts, decoded, identity, started, time.monotonic() - begun, copy)
        return _train_and_judge(source, config, scale, say, inputs)


def read(source: Source, config: Config, say: Say) -> tuple[catalog.Catalog, split.Split, str]:
    """Catalog and split, and the identity of the run that they and the settings make."""
    for note in idle.notes(config):
        say(note)
    data = prepare.read_catalog(source.csv, source.dicom_root, config, say)
    parts = split.make(data.rows, config.split, config.classes, config.seed)
    _require_test(parts, config)
    files = cache.file_keys(labelled(data), data.root)
    return data, parts, plain.digest(what_counts(config), parts.digest, sorted(files))


def _require_test(parts: split.Split, config: Config) -> None:
    if config.train.train_on == "train_and_val" and not (parts.rows["fold"] == "test").any():
        remedy = "Use --train-on train, or a split with test patients, such as --folds or --test-share."
        raise ConfigError("--train-on train_and_val", "test patients, who alone are left to judge by", "none", remedy)


@dataclass(frozen=True, slots=True)
class _Inputs:
    data: catalog.Catalog
    parts: split.Split
    decoded: ingest.Decoded
    identity: str
    started: datetime
    decode_seconds: float
    copy: Mirror


def _groups(data: catalog.Catalog) -> str:
    return "patients" if data.grouped_by == "patient_id" else f"groups by {data.grouped_by}"


def what_counts(config: Config) -> dict[str, Any]:
    """The settings that decide the result: not where the cache lies, nor how often to try again."""
    settings = plain.to_dict(config)
    settings["ingest"], settings["data"] = {}, {}  # What they lead to is in the split and the files.
    # How long to wait, what to keep and whom to tell does not change what is computed.
    for name in ("max_failures", "time_limit", "keep", "checkpoint_minutes", "trackers", "profile"):
        settings["train"].pop(name)
    # Which patients stand in these files is in the split's digest.
    for name in ("split_file", "test_file"):
        settings["split"].pop(name, None)
    return settings


def read_metrics(outdir: Path) -> dict[str, Any]:
    """The content of metrics.json."""
    content: dict[str, Any] = json.loads((outdir / "metrics.json").read_text(encoding="utf-8"))
    return content


def _write_inputs(outdir: Path, config: Config, data: catalog.Catalog, parts: split.Split) -> None:
    (outdir / "config.toml").write_text(plain.to_toml(config), encoding="utf-8")
    folds = parts.rows.set_index("image_id")["fold"]
    data.rows.assign(fold=data.rows["image_id"].map(folds)).to_parquet(outdir / "catalog.parquet", index=False)
    split.save(parts, outdir, data.rows, data.grouped_by)


def _decode(source: Source, config: Config, data: catalog.Catalog, say: Say) -> ingest.Decoded:
    decoded = prepare.decode(labelled(data), data.root, source.outdir, config, say)
    audit.write((*data.findings, *audit.of_labels(data), *audit.of_failures(decoded.failures)), source.outdir)
    ingest.check_enough(decoded, config.ingest)
    return decoded


def labelled(data: catalog.Catalog) -> pd.DataFrame:
    """The catalog's rows that have a label."""
    return data.rows[data.rows["label"].notna()]


def _check_training(config: Config, scale: Scale, outdir: Path) -> None:
    from mammoray import train

    train.check(config, scale, outdir)


def _train_and_judge(source: Source, config: Config, scale: Scale, say: Say, inputs: _Inputs) -> dict[str, Any]:
    from mammoray import predict, records, showcase, train

    outdir, decoded = source.outdir, inputs.decoded
    rows = in_folds(decoded.rows, inputs.parts, config)
    split.check(rows)
    fitted = train.fit(_learned(rows, config), inputs.parts.digest, config, scale, outdir, say, copy=inputs.copy)
    alone = config.train.train_on == "train_and_val"
    say("evaluate: the last checkpoint, on test images" if alone else _EVALUATE)
    held_out = rows[rows["fold"].isin(["test"] if alone else ["val", "test"])].reset_index(drop=True)
    gpu = bool(train.plan(scale).use_gpu)
    p_NK = predict.predict(held_out, fitted.best, config.decode, gpu, config.speed.precision)
    predictions = predict.table(held_out, p_NK, config.class_names)
    predictions.to_parquet(outdir / "predictions.parquet", index=False)
    metrics = evaluate.judge(predictions, config.class_names, config.evaluate, config.seed)
    metrics["possible_leak"] = inputs.data.leak
    metrics["learned"] = [fitted.history[0], fitted.history[-1]]
    claim.write_json(outdir / "metrics.json", metrics)
    showcase.judged(held_out, predictions, config).to_parquet(outdir / "examples.parquet", index=False)
    varied = showcase.augmented(rows[rows["fold"] == "train"].reset_index(drop=True), config)
    varied.to_parquet(outdir / "augmented.parquet", index=False)
    best = records.best_epoch(fitted.history, config.train)
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
            *_known(config),
        ],
    }
    # The report reads run.json; only after it is there may the run be called finished.
    claim.write_json(outdir / "run.json", {**facts, "finished": False})
    report.write_report(outdir)
    claim.write_json(outdir / "run.json", facts)
    with train.tracking(inputs.parts.digest, config, scale, outdir, say) as trackers:
        trackers.close(metrics)
    return metrics


def in_folds(rows: pd.DataFrame, parts: split.Split, config: Config) -> pd.DataFrame:
    """The rows that are in a fold, with it and the index of their class, sorted by image."""
    placed = rows.merge(parts.rows[["image_id", "fold"]], on="image_id", validate="one_to_one")
    target = labels.class_index(placed["label"], config.classes)
    return placed.assign(target=target).sort_values("image_id", ignore_index=True)


def _learned(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The rows as a training sees them: those of fold val stand in fold train too where they are learned from."""
    if config.train.train_on == "train":
        return rows
    also = rows[rows["fold"] == "val"].assign(fold="train")
    return pd.concat([rows, also]).sort_values("image_id", kind="stable", ignore_index=True)


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


def _known(config: Config) -> list[str]:
    if config.train.train_on == "train":
        return []
    return [
        "The validation patients were learned from as well (--train-on train_and_val): the validation figures of the "
        "epochs are of images that the network knows, and say nothing of others. All else is of the test patients."
    ]


def dry_run(source: Source, config: Config, scale: Scale, say: Say = print) -> bool:
    """Say what :func:`run` would do, need and take, after all checks that it makes; nothing is written.

    Returns
    -------
    bool
        True.
    """
    from mammoray import controller, dryrun

    outdir, config = source.outdir, prepare.shared(config, scale)
    data, parts, identity = read(source, config, say)
    if claim.is_finished(outdir, identity):
        say(f"{outdir} already holds this run, finished: it would not be done again")
        return True
    claim.require_writable(outdir)
    done = max(0, len(controller.read_history(outdir)) - 1)
    with cluster.connect(scale.address):
        _check_training(config, scale, outdir)
        files = dryrun.files(labelled(data), data.root, config, prepare.cache_path(outdir, config))
        found = dryrun.facts(_learned(in_folds(data.rows, parts, config), config), files, config, scale, done)
    for line in dryrun.lines(found, split.counts(parts, data.rows)):
        say(line)
    return True


def overfit(source: Source, config: Config, scale: Scale, say: Say = print) -> bool:
    """See whether the network can learn the first batch by heart; writes nothing but these images into the cache.

    Returns
    -------
    bool
        Whether it can.
    """
    from mammoray import sanity

    config = prepare.shared(config, scale)
    data, parts, _ = read(source, config, say)
    rows = _learned(in_folds(data.rows, parts, config), config)
    training = rows[rows["fold"] == "train"].reset_index(drop=True)
    order = sanity.first_batch(training, config)
    with cluster.connect(scale.address):
        _check_training(config, scale, source.outdir)
        decoded = prepare.decode(training.iloc[np.unique(order)], data.root, source.outdir, config, say)
        ingest.check_enough(decoded, config.ingest)
        batch = sanity.load(training, order, decoded.rows, config)
        verdict = sanity.run(training, batch, config, scale, say)
    for line in sanity.lines(verdict, training["target"].to_numpy()[batch["row"]], config):
        say(line)
    return verdict.learned


def headline(metrics: dict[str, Any]) -> list[str]:
    """Lines for the end of a run: what was reached on held-out patients, and from where."""
    fold = evaluate.judged(metrics["folds"])
    test = metrics["folds"][fold]
    lines = []
    for level in ("image", "patient"):
        values = ", ".join(
            f"{name} {evaluate.with_interval(test[level][name])}" for name in ("kappa", "accuracy", "auc")
        )
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
        which = "validation images" + ("" if "val" in metrics["folds"] else ", which were learned from too")
        lines.append(f"learned, on {which}, epoch 0 (untrained) -> {last['epoch']}: {gap}")
    return lines


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
