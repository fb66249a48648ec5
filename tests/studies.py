"""Studies of real Optuna over an invented score, and their trials as trials.parquet holds them."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pandas as pd

from mammoray.studypage import FIXED

METRIC = "validation kappa per image"
ARCHITECTURES = ("efficientnet_b0", "resnet18", "convnext_atto")
EPOCHS = 6
DEFAULT = {"optim.lr": 3e-4, "model.arch": "efficientnet_b0", "model.dropout": 0.2, "sample.sampler": "none"}
_STATES = {"FAIL": "failed"}


class BrokenTrialError(Exception):
    """Ends a trial as a failed one."""


def draw(trial: optuna.Trial, choices: tuple[str, ...] = ARCHITECTURES) -> float:
    """Draw settings, some of which exist for one choice of another; the best score that they can lead to."""
    rate = trial.suggest_float("optim.lr", 1e-5, 1e-2, log=True)
    arch = trial.suggest_categorical("model.arch", choices)
    score = 0.75 - 0.08 * (math.log10(rate) + 3.2) ** 2 + 0.02 * choices.index(arch)
    if arch == choices[0]:
        score -= 0.1 * trial.suggest_float("model.dropout", 0.0, 0.5)
    if trial.suggest_categorical("sample.sampler", ["none", "weighted"]) == "weighted":
        score += 0.05 * trial.suggest_float("sample.alpha", 0.0, 1.0)
    return score


def objective(trial: optuna.Trial, choices: tuple[str, ...] = ARCHITECTURES) -> float:
    """Epochs that report their best score so far; every eighth trial breaks."""
    best = draw(trial, choices)
    for epoch in range(1, EPOCHS + 1):
        trial.report(best - 0.5 * math.exp(-epoch / 2), epoch)
        if trial.number % 8 == 5:
            trial.set_user_attr("reason", "CUDA out of memory: 3.2 GiB wanted, 1.1 GiB free; lower --batch-size")
            raise BrokenTrialError
        if trial.should_prune():
            trial.set_user_attr("reason", f"worse than half of the trials after epoch {epoch}")
            raise optuna.TrialPruned
    return best - 0.5 * math.exp(-EPOCHS / 2)


def make(trials: int, storage: Any = None, name: str = "density", **changes: Any) -> optuna.Study:
    """Make a study of one objective, whose trial 0 is the default."""
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=6, n_warmup_steps=2),
    )
    if trials and not changes:
        study.enqueue_trial(DEFAULT)
    study.optimize(lambda trial: objective(trial, **changes), n_trials=trials, catch=(BrokenTrialError,))
    return study


def make_several(trials: int) -> optuna.Study:
    """Make a study of kappa and cost."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=2))
    study.optimize(lambda trial: (draw(trial), 1.0 + 3 * trial.suggest_float("model.width", 0.5, 2.0)), trials)
    return study


def frame(study: optuna.Study) -> pd.DataFrame:
    """What trials.parquet would hold."""
    names = list(dict.fromkeys(name for trial in study.trials for name in trial.params))
    rows = [_row(trial, names) for trial in study.trials]
    return pd.DataFrame(rows, columns=[*FIXED, *names])


def _row(trial: optuna.trial.FrozenTrial, names: list[str]) -> dict[str, Any]:
    done = max(trial.intermediate_values, default=0)
    score = trial.values[0] if trial.values else trial.intermediate_values.get(done, math.nan)
    state = _STATES.get(trial.state.name, trial.state.name.lower())
    return {
        "number": trial.number, "state": state, "score": score, "epoch": done, "epochs": done, "seconds": 61.5 * done,
        "start_seconds": 4.2, "images_per_second": 118.4, "gflops": 0.4, "reason": trial.user_attrs.get("reason", ""),
        "folder": f"trials/{trial.number:04d}", **{name: trial.params.get(name) for name in names},
    }  # fmt: skip


def facts(study: optuna.Study, **changes: Any) -> dict[str, Any]:
    """The facts of a page."""
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    one = len(study.directions) == 1
    return {
        "title": "density-search",
        "metric": METRIC,
        "direction": "maximize",
        "objectives": [[METRIC, "maximize"]] if one else [[METRIC, "maximize"], ["GFLOPs per image", "minimize"]],
        "sampler": "TPE, multivariate",
        "pruner": "ASHA by epochs",
        "best": study.best_trial.number if one and done else None,
        "default": 0,
        "notes": ["Trials ran one at a time."],
        "seed": 7,
        "split_digest": "9a0c41d2be77f310",
        "test": None,
        **changes,
    }
