"""What is written down of an epoch, and what follows from it: the score, whether to stop, a line for people.

Shapes: ``N`` rows, ``K`` classes, ``J`` outputs of an auxiliary head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammoray import collapse, evaluate, optim, sample, tasks
from mammoray.config import CLASS_NAMES, Config
from mammoray.errors import TrainError
from mammoray.model import DENSITY
from mammoray.recipe import TrainConfig

Arrays = dict[str, npt.NDArray[Any]]
Record = dict[str, Any]
History = list[Record]


def collect(parts: list[tuple[npt.NDArray[np.int64], Arrays]], rows: int) -> Arrays:
    """Put (row numbers, outputs of each head) of all workers in order.

    Raises
    ------
    TrainError
        Unless every row came exactly once.
    """
    numbers = np.concatenate([n for n, _ in parts]) if parts else np.empty(0, dtype=np.int64)
    if not np.array_equal(np.sort(numbers), np.arange(rows)):
        raise TrainError(
            "the evaluation",
            f"each of {rows} rows once",
            f"{len(numbers)} rows, {len(set(numbers.tolist()))} different",
            "Please report this.",
        )
    order = np.argsort(numbers)
    return {head: np.concatenate([outputs[head] for _, outputs in parts])[order] for head in parts[0][1]}


def record(
    config: Config,
    epoch: int,
    train_loss: float | None,
    outputs: Arrays,
    rows: pd.DataFrame,
    train_counts_K: npt.NDArray[np.int64],
    history: History,
    clock: dict[str, float],
) -> Record:
    """One line of history.jsonl.

    Parameters
    ----------
    train_loss : float or None
        Mean over the epoch's images; None for epoch 0, the untrained network.
    outputs : dict
        Of :func:`collect`: the classes' log-probabilities, (N, K), and (N, J) of each auxiliary head.
    rows : pandas.DataFrame
        The validation rows: ``target, patient_id``, and what the auxiliary tasks want.
    train_counts_K : (K,) int64
        Training images of each class.
    history : list
        The records before.
    clock : dict
        ``seconds`` of training, ``data_seconds`` of them spent waiting for batches, ``val_seconds``.
    """
    labels, p_NK = rows["target"].to_numpy(), evaluate.softmax(outputs[DENSITY])
    values = {f"val_{name}": value for name, value in evaluate.metrics(labels, p_NK).items()}
    for name, value in evaluate.metrics(*_patients(config, rows, labels, p_NK)).items():
        values[f"val_patient_{name}"] = value
    for task, wanted in tasks.targets(rows, config.model.auxiliary).items():
        values |= {f"val_{name}": value for name, value in tasks.metrics(task, outputs[task], wanted).items()}
    steps = sample.steps_per_epoch(int(train_counts_K.sum()), config.sample.batch_size)
    rate = optim.rate(config.optim, max(0, epoch * steps - 1), steps, config.train.epochs, drops(history, config))
    images = steps * config.sample.batch_size
    new: Record = {
        "epoch": epoch,
        "train_loss": train_loss,
        **values,
        "lr": rate if epoch else 0.0,
        **{name: round(seconds, 3) for name, seconds in clock.items()},
        "images_per_second": round(images / clock["seconds"], 2) if epoch else None,
    }
    return new | _verdict(config, new, _counts(labels, p_NK), train_counts_K, history)


def _counts(labels_N: npt.NDArray[np.int64], p_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Counts, (K, K): rows are the truth, columns the prediction."""
    ones = np.ones((1, len(labels_N)))
    counts: npt.NDArray[np.float64] = evaluate.confusion(labels_N, p_NK.argmax(axis=1), ones, p_NK.shape[1])[0]
    return counts


def _patients(
    config: Config, rows: pd.DataFrame, labels: npt.NDArray[np.int64], p_NK: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    views = evaluate.side_and_view(rows) if config.evaluate.average == "views" else None
    any_counts = config.class_names == CLASS_NAMES["cancer"]
    _, of_patients, p_PK = evaluate.group_level(rows["patient_id"], labels, p_NK, views, any_counts)
    return of_patients, p_PK


def _verdict(
    config: Config,
    new: Record,
    counts_KK: npt.NDArray[np.float64],
    train_counts_K: npt.NDArray[np.int64],
    history: History,
) -> Record:
    """Whether the network has collapsed, and whether to stop after this epoch."""
    names = config.class_names
    found = collapse.judge(history, counts_KK, names, new["epoch"], config.collapse)
    signs, f1 = found.signs, found.signs["f1"]
    cause = collapse.cause([*history, new], signs["top_class"], train_counts_K, config) if found.collapsed else None
    return {
        **{f"val_{name}": signs[name] for name in ("top_share", "predicted_classes", "adjusted_balanced_accuracy")},
        **{f"val_f1_{name}": f1[name] for name in names},
        "collapse": found.reasons,
        "collapse_cause": cause,
        "stopped": _stop([*history, new], found.stop, config),
    }


def _stop(history: History, collapsed: bool, config: Config) -> str | None:
    """Why the training ends with the last record, or None where it goes on."""
    train, epoch = config.train, history[-1]["epoch"]
    if epoch == 0:
        return None
    if collapsed:
        return f"the network has collapsed in {config.collapse.collapse_stop} epochs in a row (--collapse-stop)"
    stale = optim.stale(scores(history, train), train.min_delta)
    if train.patience and stale >= train.patience:
        return f"no better {train.monitor} in {stale} epochs (--patience)"
    spent = [entry["seconds"] + entry["val_seconds"] for entry in history]
    if train.time_limit and epoch < train.last_epoch and sum(spent) + max(spent[1:]) > 60 * train.time_limit:
        return f"the next epoch would end after {train.time_limit:g} minutes (--time-limit)"
    return None


def scores(history: History, config: TrainConfig) -> list[float | None]:
    """The monitored value after each trained epoch, higher being better; None where it is undefined."""
    prefix = "val_patient_" if config.monitor_level == "patient" else "val_"
    values = [entry[prefix + config.monitor] for entry in history if entry["epoch"]]
    return [None if v is None else -v if config.monitor == "loss" else v for v in values]


def drops(history: History, config: Config) -> int:
    """How often the plateau schedule has lowered the learning rate."""
    return optim.drops(scores(history, config.train), config.optim.plateau_patience, config.train.min_delta)


def score(entry: Record, config: TrainConfig) -> float:
    """Higher is better; unequal for unequal epochs, because Ray keeps the checkpoints of the highest scores.

    Where the validation images are learned from, they can choose no epoch: a later one counts as better.
    """
    epoch: int = entry["epoch"]
    if epoch == 0:
        return -2e9
    if config.train_on == "train_and_val":
        return float(epoch)
    value = scores([entry], config)[0]
    return -1e9 - epoch if value is None else value - 1e-9 * epoch


def best_epoch(history: History, config: TrainConfig) -> int:
    """Epoch with the highest score; the first of equals; never epoch 0, which has not learned."""
    epoch: int = history[int(np.argmax([score(entry, config) for entry in history]))]["epoch"]
    return epoch


def describe(entry: Record, config: Config) -> list[str]:
    """Lines about an epoch, for people."""
    shown = [
        ("train loss", entry["train_loss"]),
        *((name.removeprefix("val_"), entry[name]) for name in ("val_loss", "val_kappa", "val_accuracy", "val_auc")),
    ]
    numbers = ", ".join(
        f"{'val ' if i else ''}{name} {value:.3f}" for i, (name, value) in enumerate(shown) if value is not None
    )
    speed = f", {entry['images_per_second']:.0f} images/s" if entry["images_per_second"] else " (untrained network)"
    head = f"epoch {entry['epoch']}/{config.train.last_epoch}"
    lines = [f"{head}: {numbers}{speed}"]
    if entry["collapse"]:
        lines.append(
            f"WARNING {head}: the network has collapsed: {'; '.join(entry['collapse'])}. {entry['collapse_cause']}"
        )
    if entry["stopped"]:
        lines.append(f"{head}: stopped: {entry['stopped']}")
    return lines
