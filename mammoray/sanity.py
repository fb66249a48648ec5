"""Whether a network can learn one batch by heart: ``--overfit-batch``.

What cannot learn sixteen images will not learn sixteen thousand, and says so in a minute. The step is that of a
training (:func:`mammoray.learner.step`: loss, optimiser, precision, freezing), without what makes learning by heart
harder on purpose: augmentation, dropout, smoothed and soft labels; and without auxiliary heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray
import torch

from mammoray import board, cache, cluster, learner, losses, model, optim, sample, train
from mammoray.config import Config
from mammoray.learner import Arrays, Learner
from mammoray.model import DENSITY, Tensors
from mammoray.plain import replace
from mammoray.scale import Scale

STEPS = 200
_LOOK_EVERY = 10
_WARMUP_STEPS = 10
# Of the loss of a network that knows nothing. Coral's thresholds begin a unit apart and move slowly: a class between
# two of them keeps 0.46 of it however well it is known.
_LEARNED = 0.1
_LEARNED_BY_CORAL = 0.6
_END = "Nothing was written but these images into the cache."
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How it ended.

    Attributes
    ----------
    learned : bool
        All images are right, and the loss is ``bound`` or less.
    steps : int
    accuracy : float
        With batch norm by the batch itself, as in training.
    judged_accuracy : float
        With its running statistics, as in validation.
    first, last, bound : float
        Loss of the first and of the last step, and the share that may be left of that of a network which calls all
        classes equally likely.
    """

    learned: bool
    steps: int
    accuracy: float
    judged_accuracy: float
    first: float
    last: float
    bound: float


def by_heart(config: Config) -> Config:
    """The settings without what makes learning by heart harder on purpose."""
    return replace(
        config,
        augment=replace(config.augment, augment=False),
        model=replace(config.model, dropout=0.0, drop_path=0.0, auxiliary=()),
        loss=replace(config.loss, label_smoothing=0.0, soft_labels=0.0),
        optim=replace(config.optim, ema=0.0),
        speed=replace(config.speed, compile=False, sync_batchnorm=False),
    )


def first_batch(training: pd.DataFrame, config: Config) -> npt.NDArray[np.int64]:
    """Positions of the rows of the first batch of a training, (B,); a sampler may draw one twice.

    Parameters
    ----------
    training : pandas.DataFrame
        The rows of fold train with ``target`` and ``patient_id``, sorted by ``image_id``.
    """
    labels = training["target"].to_numpy()
    weights = sample.row_weights(labels, training["patient_id"].to_numpy(dtype=object), config.sample)
    size = config.sample.batch_size
    return sample.epoch_order(labels, weights, size, config.seed, 1)[:size]


def load(training: pd.DataFrame, order: npt.NDArray[np.int64], decoded: pd.DataFrame, config: Config) -> Arrays:
    """The batch of :func:`first_batch`, as far as its images are among the decoded rows: ``row`` and ``image``."""
    ids = training["image_id"].iloc[order]
    good = ids.isin(decoded["image_id"]).to_numpy()
    where = decoded.set_index("image_id").loc[ids[good]]
    pixels = cache.load_pixels(where["shard"].tolist(), where["position"].to_numpy(), config.decode)
    return {"row": order[good], "image": pixels}


def run(training: pd.DataFrame, batch: Arrays, config: Config, scale: Scale, say: Say) -> Verdict:
    """Train on one batch, where and as a worker would. Needs a connection to Ray.

    Parameters
    ----------
    training : pandas.DataFrame
        All training rows, because class weights follow from them.
    batch : dict
        Of :func:`load`.

    Raises
    ------
    ClusterError, ConfigError, ModelError
        What would end the run early, too.
    """
    config = by_heart(replace(config, sample=replace(config.sample, batch_size=len(batch["row"]))))
    state = model.build(config.model, config.loss.loss, config.classes, config.seed).state_dict()
    needs, cpus = train.plan(scale).resources_per_worker, scale.cpus_per_worker
    gpus, targets = needs.get("GPU", 0.0), learner.targets_of(training, config)
    own_board = board.open_board()
    with board.listening(own_board, say, lambda record: None):
        return cluster.run_with(
            needs["CPU"], gpus, _on_worker, config, state, targets, batch, cpus, bool(gpus), own_board, STEPS
        )


def _on_worker(
    config: Config, state: Tensors, targets: Arrays, batch: Arrays, cpus: float, gpu: bool, own_board: Any, steps: int
) -> Verdict:
    learner.share_cores(1, cpus)
    net = learner.blank(config)
    net.load_state_dict(state)
    own = learner.make(config, net, targets, torch.device("cuda" if gpu else "cpu"))
    return learn(own, batch, lambda line: ray.get(own_board.put.remote(line)), steps)


def learn(own: Learner, batch: Arrays, say: Say, steps: int = STEPS) -> Verdict:
    """Do steps on the same batch until it is learned, the loss is not finite, or ``steps`` are done."""
    optimizer = replace(own.config.optim, schedule="constant", warmup_epochs=min(1.0, own.config.optim.warmup_epochs))
    truth_B = own.targets[DENSITY][batch["row"]]
    bound, first, loss, accuracy = _bound(own, truth_B), math.nan, math.nan, 0.0
    learner.begin_epoch(own, 1)
    step = 0
    while step < steps:
        rate = optim.rate(optimizer, step, _WARMUP_STEPS, steps, 0)
        loss = float(learner.step(own, batch, 1, step, rate).mean())
        first = loss if step == 0 else first
        step += 1
        if not math.isfinite(loss):
            break
        if step % _LOOK_EVERY == 0 or step == 1:
            accuracy = _accuracy(own, batch, truth_B)
            say(f"step {step:>3}: loss {loss:.4f}, accuracy {accuracy:.3f}")
            if accuracy == 1 and loss <= bound:
                break
    own.judged.eval()
    return Verdict(
        learned=accuracy == 1 and loss <= bound,
        steps=step,
        accuracy=accuracy,
        judged_accuracy=_accuracy(own, batch, truth_B),
        first=first,
        last=loss,
        bound=bound,
    )


def _accuracy(own: Learner, batch: Arrays, truth_B: npt.NDArray[np.int64]) -> float:
    return float((learner.evaluate(own, batch["image"])[DENSITY].argmax(axis=1) == truth_B).mean())


def _bound(own: Learner, truth_B: npt.NDArray[np.int64]) -> float:
    """A share of the loss of a network that calls every class, or every side of a threshold, equally likely."""
    config, classes = own.config.loss, len(own.config.class_names)
    target_BK = losses.targets(torch.from_numpy(truth_B).to(own.device), classes, config)
    outputs_BJ = torch.zeros(len(truth_B), losses.outputs(config.loss, classes), device=own.device)
    ignorant = float(losses.per_image(outputs_BJ, target_BK, config, own.weights_K).mean())
    return ignorant * (_LEARNED_BY_CORAL if config.loss == "coral" else _LEARNED)


def lines(verdict: Verdict, truth_B: npt.NDArray[np.int64], config: Config) -> list[str]:
    """The verdict for people, and what to look at where it is bad."""
    counts = np.bincount(truth_B, minlength=len(config.class_names))
    counted = ", ".join(f"{n} {name}" for name, n in zip(config.class_names, counts, strict=True) if n)
    said = [
        f"{'LEARNED' if verdict.learned else 'NOT LEARNED'} after {verdict.steps} steps, {len(truth_B)} images "
        f"({counted}): accuracy {verdict.accuracy:.3f}, loss {verdict.first:.3f} -> {verdict.last:.3f} "
        f"(at most {verdict.bound:.3f} is learned)"
    ]
    if (counts > 0).sum() < 2:
        said.append("This batch has one class only, which proves little: use another --seed or a larger --batch-size.")
    if verdict.learned and verdict.judged_accuracy < 1:
        said.append(
            f"As validation would see it, with the running statistics of batch norm, accuracy is "
            f"{verdict.judged_accuracy:.3f}: they lag behind in so few steps, or --batch-size is small for them."
        )
    return [*said, *([] if verdict.learned else _causes(verdict, config)), _END]


def _causes(verdict: Verdict, config: Config) -> list[str]:
    if not math.isfinite(verdict.last):
        return ["The loss is not finite: lower --lr, set --clip-grad, or use --precision fp32 or bf16."]
    here = "as here, " if verdict.last < 0.5 * verdict.first else ""
    frozen = (
        f"; --freeze-epochs {config.optim.freeze_epochs} lets only the heads learn"
        if config.optim.freeze_epochs
        else ""
    )
    return [
        "What it usually is:",
        f"- the learning rate: --lr {config.optim.lr:g} is too low where the loss falls {here}but "
        "slowly, and too high where it jumps",
        f"- a frozen backbone{frozen or ' (--freeze-epochs), or frozen batch norms (--freeze-norm)'}",
        "- labels that do not fit the images: the same picture twice with two labels, or a column of other files",
        "- preprocessing that leaves nothing to see: look at the images, and at --window, --crop, --height and --width",
    ]
