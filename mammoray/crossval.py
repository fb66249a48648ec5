"""A patient-grouped K-fold cross-validation: the main job, once for each part of the patients."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mammoray import claim, cluster, evaluate, pipeline, plain, prepare
from mammoray.config import Config
from mammoray.errors import ConfigError, RunFolderError
from mammoray.mirror import Mirror, place
from mammoray.scale import Scale


def run(source: pipeline.Source, config: Config, scale: Scale, say: pipeline.Say = print) -> dict[str, Any]:
    """Run every fold of the split, each in its own folder, and judge the test predictions of all together.

    Patients of ``--test-file`` take no part in it: neither training, validation nor test of any fold.

    Returns
    -------
    dict
        As of :func:`mammoray.pipeline.run`, over all patients: each is tested once, by a model that has not seen it.

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
    copy = Mirror(source.outdir, place(source.outdir, scale.storage))
    config, scale = prepare.shared(config, scale), plain.replace(scale, storage=copy.copy)
    with cluster.connect(scale.address):  # One session for all folds.
        tables = [_test_fold(source, config, scale, say, fold) for fold in range(config.split.folds)]
    predictions = pd.concat(tables, ignore_index=True)
    predictions.to_parquet(source.outdir / "predictions.parquet", index=False)
    metrics = evaluate.judge(predictions, config.class_names, config.evaluate, config.seed)
    metrics["possible_leak"] = pipeline.read_metrics(source.outdir / "fold-0")["possible_leak"]
    claim.write_json(source.outdir / "metrics.json", metrics)
    copy.push(("predictions.parquet", "metrics.json"))
    return metrics


def _test_fold(source: pipeline.Source, config: Config, scale: Scale, say: pipeline.Say, fold: int) -> pd.DataFrame:
    """Run one fold in its own folder; returns its test predictions."""
    say(f"fold {fold} of {config.split.folds}")
    part = pipeline.Source(csv=source.csv, dicom_root=source.dicom_root, outdir=source.outdir / f"fold-{fold}")
    locked = "test" if config.split.test_file is None else "leave_out"
    changed = plain.replace(
        config,
        split=plain.replace(config.split, fold=fold, test_patients=locked),
        ingest=plain.replace(config.ingest, cache=prepare.cache_path(source.outdir, config)),
    )
    pipeline.run(part, changed, scale, say)
    table = pd.read_parquet(part.outdir / "predictions.parquet")
    return table[table["fold"] == "test"]
