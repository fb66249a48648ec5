"""Has the network collapsed, that is, does it answer (nearly) the same whatever it sees; and what may have led there.

A collapsed network can have a fine accuracy: where 53 % of the images are of one class, answering that class is right
in 53 %. So five signs are looked at, each of them on the confusion matrix of an epoch's validation images.

Shapes: ``K`` classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mammoray import evaluate
from mammoray.config import Config
from mammoray.recipe import CollapseConfig

Record = dict[str, Any]
_MOVED = 0.02  # Share of its first value that a training loss has to change by to have moved.
_FELL = 0.1  # And to fall by, to have learned its images.
_UNEVEN = 1.5  # How many times the commonest class is the rarest where classes are imbalanced.
_SLOW = {"sgd": 1e-4}  # Learning rates below which nothing is learned in some epochs.
_SLOW_ELSE = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Collapse:
    """The judgement on an epoch."""

    collapsed: bool
    """Whether any sign is there, and the epoch is one that is judged."""
    reasons: list[str]
    """The signs in plain words; empty unless collapsed. What a record keeps as ``collapse``."""
    run_length: int
    """Collapsed epochs in a row, this one included."""
    stop: bool
    """Whether the training should stop, by --collapse-stop."""
    signs: dict[str, Any]
    """Of :func:`signs`, in every epoch."""


def signs(confusion_KK: npt.ArrayLike, class_names: tuple[str, ...], config: CollapseConfig) -> dict[str, Any]:
    """What a confusion matrix says of a collapse.

    Classes without an image cannot be predicted rightly, so they are no sign; and with fewer than two classes in the
    labels there is none at all.

    Parameters
    ----------
    confusion_KK : (K, K) counts
        Rows are the truth, columns the prediction.
    class_names : tuple of str
    config : CollapseConfig

    Returns
    -------
    dict
        ``top_class`` (its name), ``top_share`` (of all images), ``predicted_classes`` (how many),
        ``adjusted_balanced_accuracy`` (0 is chance, 1 perfect; scikit-learn's ``adjusted=True``), ``kappa``
        (quadratic), ``f1`` (by class name); ``None`` where undefined. And ``reasons``, a sentence for each threshold
        that is broken.

    Examples
    --------
    >>> found = signs([[0, 4], [0, 6]], ("AB", "CD"), CollapseConfig())
    >>> found["top_share"], found["predicted_classes"], found["adjusted_balanced_accuracy"]
    (1.0, 1, 0.0)
    >>> found["reasons"][0]
    '100 % of the images are called CD (limit 95 %)'
    """
    c_KK = np.asarray(confusion_KK, dtype=np.float64)
    truth_K, predicted_K, total = c_KK.sum(axis=1), c_KK.sum(axis=0), c_KK.sum()
    top, present = int(predicted_K.argmax()), int(np.count_nonzero(truth_K))
    found: dict[str, Any] = {
        "top_class": class_names[top],
        "top_share": float(predicted_K[top] / total) if total else None,
        "predicted_classes": int(np.count_nonzero(predicted_K)),
        "adjusted_balanced_accuracy": _adjusted(c_KK, present),
        "kappa": _value(c_KK, "kappa"),
        "f1": {name: evaluate.per_class(c_KK, k)["f1"] for k, name in enumerate(class_names)},
    }
    judged = [name for name, n in zip(class_names, truth_K, strict=True) if n]
    share = float(truth_K[top] / total) if total else 0.0
    return {**found, "reasons": _reasons(found, judged, share, config) if present > 1 else []}


def _value(c_KK: npt.NDArray[np.float64], name: str) -> float | None:
    value = float(evaluate.from_confusion(c_KK[None])[name][0])
    return value if math.isfinite(value) else None


def _adjusted(c_KK: npt.NDArray[np.float64], present: int) -> float | None:
    balanced = _value(c_KK, "balanced_accuracy")
    if balanced is None or present < 2:
        return None
    return (balanced - 1 / present) / (1 - 1 / present)


def _reasons(found: dict[str, Any], judged: list[str], share: float, config: CollapseConfig) -> list[str]:
    """A sentence for each threshold that is broken; ``share`` is the true share of the class predicted most."""
    said, name, top = [], found["top_class"], found["top_share"]
    if top > max(config.collapse_share, share):
        said.append(f"{100 * top:.3g} % of the images are called {name} (limit {100 * config.collapse_share:.3g} %)")
    wanted = min(config.collapse_classes, len(judged))
    if found["predicted_classes"] < wanted:
        said.append(f"only {found['predicted_classes']} of {len(judged)} classes predicted (at least {wanted})")
    for key, title, limit in (
        ("adjusted_balanced_accuracy", "balanced accuracy, adjusted for chance,", config.collapse_accuracy),
        ("kappa", "kappa", config.collapse_kappa),
    ):
        # Chance comes out as 1e-17 as well as 0.
        if found[key] is not None and found[key] <= limit + 1e-9:
            said.append(f"{title} is {found[key]:.2f} (limit {limit:.2f})")
    alive = [one for one in judged if found["f1"][one] > config.collapse_f1]
    if len(alive) < 2:
        of = f"every class but {alive[0]}" if alive else "every class"
        said.append(f"F1 of {of} is {config.collapse_f1:.2f} or less")
    return said


def judge(
    history: list[Record],
    confusion_KK: npt.ArrayLike,
    class_names: tuple[str, ...],
    epoch: int,
    config: CollapseConfig,
) -> Collapse:
    """Judge an epoch; before ``collapse_after`` none is collapsed.

    Parameters
    ----------
    history : list of dict
        Records of the run, with ``epoch`` and, where they were judged, ``collapse``, their reasons. That of this epoch
        may be among them or not.
    confusion_KK : (K, K) counts
    class_names : tuple of str
    epoch : int
        The epoch to judge.
    config : CollapseConfig
    """
    found = signs(confusion_KK, class_names, config)
    reasons = found["reasons"] if epoch >= config.collapse_after else []
    length = 0
    if reasons:
        before = sorted((r for r in history if r["epoch"] < epoch), key=lambda r: -int(r["epoch"]))
        sound = (i for i, record in enumerate(before) if not record.get("collapse"))
        length = 1 + next(sound, len(before))
    return Collapse(
        collapsed=bool(reasons),
        reasons=reasons,
        run_length=length,
        stop=0 < config.collapse_stop <= length,
        signs=found,
    )


def cause(history: list[Record], predicted: str, counts_K: npt.ArrayLike, config: Config) -> str:
    """Name the likely cause of a collapse, and the settings to change.

    The first that fits, those first whose trace in the losses is the clearest. It is a guess: it sees losses and
    settings, and not the images.

    Parameters
    ----------
    history : list of dict
        Records of the run, the collapsed epoch's last: ``epoch``, ``train_loss``, ``val_loss`` and ``lr``.
    predicted : str
        The class that is predicted most, ``top_class`` of :func:`signs`.
    counts_K : (K,) counts
        Training rows of each class.
    config : Config
    """
    losses = _Losses.of(history)
    counts = np.asarray(counts_K, dtype=np.float64)
    commonest = counts[config.class_names.index(predicted)] == counts.max()
    uneven = counts.max() > _UNEVEN * counts[counts > 0].min()
    sampled, weighted = config.sample.sampler != "natural", config.loss.class_weights != "none"
    rate = max((record["lr"] or 0.0 for record in history), default=0.0)
    frozen = history[-1]["epoch"] <= config.optim.freeze_epochs
    guesses = (
        (losses.rising, _TOO_FAST.format("The training loss rises")),
        (losses.falling and losses.val_rising, _OVERFIT),
        (sampled and weighted and not commonest, _TWICE.format(predicted)),
        (losses.flat and frozen, _FROZEN),
        (losses.flat and rate < _SLOW.get(config.optim.optimizer, _SLOW_ELSE), _TOO_SLOW.format(rate)),
        (uneven and commonest and not (sampled or weighted), _IMBALANCE.format(predicted)),
        (losses.falling, _OVERFIT),
        (losses.flat, _TOO_FAST.format("The training loss has not fallen since the start")),
    )
    return next((sentence for fits, sentence in guesses if fits), _UNKNOWN)


_TOO_FAST = "{}: the learning rate is too high. Lower --lr, lower --clip-grad, or lengthen --warmup-epochs."
_OVERFIT = (
    "The training loss falls and the validation collapses: overfitting, or batch norm that saw too few images at a "
    "time. Raise --batch-size, or use --freeze-norm, --ema 0.999, or more --weight-decay and --dropout."
)
_TWICE = (
    "{} is not the commonest class of the training images, and both --sampler and --class-weights favour rare ones: "
    "the imbalance is corrected twice. Leave one of them out."
)
_FROZEN = "The training loss barely moves while the backbone is frozen. Shorten --freeze-epochs, or raise --head-lr."
_TOO_SLOW = "The training loss barely moves at a learning rate of {:.0e}. Raise --lr, or shorten --warmup-epochs."
_IMBALANCE = (
    "{} is the commonest class of the training images, and nothing corrects the imbalance. "
    "Use --sampler balanced (or sqrt), or --class-weights balanced."
)
_UNKNOWN = (
    "No single cause stands out. See whether the network can learn one batch (--overfit-batch), and try a lower --lr."
)


@dataclass(frozen=True, slots=True)
class _Losses:
    """Where the losses of a run went."""

    rising: bool
    falling: bool
    flat: bool
    val_rising: bool

    @classmethod
    def of(cls, history: list[Record]) -> _Losses:
        train = [r["train_loss"] for r in history if r.get("train_loss") is not None]
        val = [r["val_loss"] for r in history if r.get("val_loss") is not None]
        # A loss of 0 or below is none of the losses here, but must not divide.
        change = (train[-1] - train[0]) / max(abs(train[0]), 1e-9) if len(train) > 1 else math.nan
        return cls(
            rising=change > _MOVED or not all(map(math.isfinite, train)),
            falling=change < -_FELL,
            flat=abs(change) <= _MOVED,
            val_rising=len(val) > 1 and val[-1] > (1 + _FELL) * min(val),
        )
