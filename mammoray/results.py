"""What a search has come to: its table of trials, the best settings, the page, and the best model on the test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FrozenTrial, TrialState
from torch.utils.flop_counter import FlopCounterMode

from mammoray import learner, pipeline, plain, prepare, records, studypage
from mammoray import study as studies
from mammoray.config import Config, TuneConfig
from mammoray.controller import read_history
from mammoray.errors import MammorayError
from mammoray.mirror import Mirror
from mammoray.pipeline import Say, Source
from mammoray.population import PARENT
from mammoray.scale import Scale
from mammoray.trial import SETTINGS

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
TRIALS = "trials"
"""Folder of the trials in that of a search."""
BEST = "best"
"""Folder of the best settings' model, trained again."""
_FACTS = ("epoch", "epochs", "seconds", "epoch_seconds", "start_seconds", "images_per_second", "gflops")


def trial_folder(outdir: Path, number: int) -> Path:
    """Of a trial."""
    return outdir / TRIALS / f"{number:04d}"


def gflops(config: Config) -> float:
    """Cost of predicting one image: multiplications and additions of matrix products and convolutions, in billions."""
    net = learner.blank(config).eval().to("meta")
    image = torch.zeros(1, 1, config.decode.height, config.decode.width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.log_probabilities(image)
    return round(float(counter.get_total_flops()) / 1e9, 6)


def table(study: optuna.Study, search: TuneConfig) -> pd.DataFrame:
    """A row for each trial of the study's own, the content of trials.parquet.

    Returns
    -------
    pandas.DataFrame
        ``number``, ``state`` (complete, pruned, failed, running), ``score`` (of a pruned trial its last value),
        ``epoch`` (the best), ``epochs``, ``seconds``, ``epoch_seconds``, ``start_seconds`` (until the first batch),
        ``images_per_second``, ``gflops``, ``reason``, ``folder``, of a population ``parent`` (the trial that it went on
        from), and each drawn parameter.
    """
    trials = [
        t for t in study.get_trials(deepcopy=False) if not studies.is_foreign(t) and t.state != TrialState.WAITING
    ]
    names = sorted({name for trial in trials for name in trial.params})
    rows = [
        {
            "number": trial.number,
            "state": _STATES.get(trial.state, "running"),
            "score": _score(trial, search),
            **{name: trial.user_attrs.get(name) for name in _FACTS},
            "reason": trial.user_attrs.get("reason", ""),
            "folder": str(trial_folder(Path(), trial.number)),
            **({PARENT: trial.user_attrs[PARENT]} if PARENT in trial.user_attrs else {}),
            **{name: trial.params.get(name) for name in names},
        }
        for trial in trials
    ]
    kin = [PARENT] if any(PARENT in row for row in rows) else []
    columns = ["number", "state", "score", *_FACTS, "reason", "folder", *kin, *names]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(("score", *_FACTS), "float64"))


def _score(trial: FrozenTrial, search: TuneConfig) -> float | None:
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[search.objectives.index("score")])
    steps = trial.intermediate_values
    return float(steps[max(steps)]) if steps else None


def facts(study: optuna.Study, search: TuneConfig, config: Config, split_digest: str) -> dict[str, Any]:
    """What is known of the search: best and default trial, metric, sampler; see :func:`mammoray.studypage.render`."""
    level = "patient" if config.train.monitor_level == "patient" else "image"
    objectives = studies.objectives(search, config)
    return {
        "title": "Search",
        "metric": f"validation {config.train.monitor.replace('_', ' ')} per {level}",
        "direction": objectives[search.objectives.index("score")][1],
        "objectives": [list(one) for one in objectives],
        "sampler": search.search,
        "pruner": search.scheduler,
        "best": studies.best_number(study, search, config),
        "default": studies.default_number(study),
        "notes": [],
        "seed": config.seed,
        "split_digest": split_digest,
        "test": None,
    }


def write(copy: Mirror, study: optuna.Study, search: TuneConfig, config: Config, known: dict[str, Any]) -> None:
    """Write trials.parquet, best.toml and study.html, and remove the checkpoints of trials that were ended early.

    Parameters
    ----------
    copy : Mirror
        Of the search's folder.
    known : dict
        Of :func:`facts`.
    """
    trials, outdir = table(study, search), copy.folder
    for row in trials[trials["state"] == "pruned"].itertuples():
        for part in [f"fold-{fold}/" for fold in range(search.folds_per_trial)] if search.folds_per_trial > 1 else [""]:
            copy.remove(f"{row.folder}/{part}checkpoints")
    # Choices of several types in one column have no Parquet type.
    mixed = [name for name in trials if trials[name].map(type).nunique() > 1 and trials[name].dtype == object]
    trials.astype(dict.fromkeys(mixed, "string")).to_parquet(outdir / "trials.parquet", index=False)
    if known["best"] is not None:
        text = (trial_folder(outdir, known["best"]) / SETTINGS).read_text(encoding="utf-8")
        (outdir / "best.toml").write_text(
            f"# Trial {known['best']} of a search, the best one.\n{text}", encoding="utf-8"
        )
    # The page's policy knows its scripts by their digests: their line ends must stay.
    (outdir / "study.html").write_text(studypage.render(study, trials, known), encoding="utf-8", newline="\n")


@dataclass(frozen=True, slots=True)
class _Again:
    """What a trial's settings are trained again with, and what they came to in the search."""

    config: Config
    epoch: int
    histories: list[records.History]
    best: list[int]


def _again(outdir: Path, number: int, base: Config) -> _Again:
    own = trial_folder(outdir, number)
    config = plain.load_toml(own / SETTINGS)
    histories = [read_history(folder) for folder in (own, *sorted(own.glob("fold-*"))) if read_history(folder)]
    best = [records.best_epoch(history, config.train) for history in histories]
    epoch = max(1, round(float(np.mean(best))))
    final = plain.replace(
        config,
        train=plain.replace(config.train, train_on="train_and_val", stop_epoch=epoch, patience=0),
        ingest=plain.replace(config.ingest, cache=prepare.cache_path(outdir, base)),
    )
    return _Again(final, epoch, histories, best)


def _holds(folder: Path, config: Config) -> bool:
    """Whether a folder's run is that of these settings; the search's own split and files are those of both."""
    try:
        return pipeline.what_counts(plain.load_toml(folder / SETTINGS)) == pipeline.what_counts(config)
    except (MammorayError, OSError):  # Nothing was trained there yet, or what was cannot be told.
        return False


def retrain(source: Source, number: int, base: Config, scale: Scale, say: Say, copy: Mirror) -> dict[str, Any]:
    """Train with a trial's settings on training and validation patients, and judge the model on the test patients.

    What another best trial has left is replaced.

    Parameters
    ----------
    copy : Mirror
        Of the search's folder.

    Returns
    -------
    dict
        As of :func:`retrained`.
    """
    again, part = _again(source.outdir, number, base), source.outdir / BEST
    if part.exists() and not _holds(part, again.config):
        say(f"best: {BEST}/ has the model of other settings, which were the best before; it is replaced")
        copy.remove(BEST)
    say(f"best: trial {number}, trained again on training and validation patients for {again.epoch} epochs")
    own = Source(csv=source.csv, dicom_root=source.dicom_root, outdir=part)
    return _judged(again, pipeline.run(own, again.config, scale, say))


def retrained(outdir: Path, number: int | None, base: Config) -> dict[str, Any] | None:
    """What an earlier command has found of this trial on the test patients, or None.

    Returns
    -------
    dict
        ``validation`` (of the trial), ``test``, ``low``, ``high``, ``n``, ``metric``, ``folder``.
    """
    if number is None or not (outdir / BEST / "metrics.json").exists():
        return None
    again = _again(outdir, number, base)
    return _judged(again, pipeline.read_metrics(outdir / BEST)) if _holds(outdir / BEST, again.config) else None


def _judged(again: _Again, metrics: dict[str, Any]) -> dict[str, Any]:
    train = again.config.train
    level = train.monitor_level
    judged = metrics["folds"]["test"][level]
    name = train.monitor if train.monitor in judged else "kappa"
    prefix = "val_patient_" if level == "patient" else "val_"
    values = [history[e][prefix + name] for history, e in zip(again.histories, again.best, strict=True)]
    return {
        "metric": f"{name.replace('_', ' ')} per {level}",
        "validation": float(np.mean(values)),
        "test": judged[name]["value"],
        "low": judged[name]["low"],
        "high": judged[name]["high"],
        "n": judged["n"],
        "folder": BEST,
    }


def headline(known: dict[str, Any]) -> list[str]:
    """Lines for the end of a search."""
    if known["best"] is None:
        return ["no trial was run to its end: see the reasons in trials.parquet"]
    lines = [f"best: trial {known['best']}; its settings are in best.toml, for train --config"]
    if known["test"] is None:
        lines.append("its score is that of the best of many trials on the patients that chose it, and so too good")
        return lines
    test = known["test"]
    interval = "" if test["low"] is None else f" [{test['low']:.3f}, {test['high']:.3f}]"
    lines.append(
        f"{test['metric']}: {test['validation']:.3f} on validation, by which it was chosen, "
        f"{test['test']:.3f}{interval} on {test['n']} of the untouched test set"
    )
    return lines
