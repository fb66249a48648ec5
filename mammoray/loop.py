"""What every Ray Train worker runs: epochs of steps and validation, from the checkpoint, if there is one, to the last.

What a step computes is a function of (config, split, step): the order of the rows, the augmentation and the random
state are drawn anew from (seed, epoch, rank) and nothing is carried along but weights, optimiser and history. So a run
that was killed goes on, from the last checkpoint, to the result it would have had.

Shapes: ``B`` images of this worker's share of a batch, ``N`` rows, ``K`` classes, ``H, W`` pixels.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2

from mammoray import augment, evaluate, sample
from mammoray import model as models
from mammoray.batches import Batch, Shard
from mammoray.config import Config
from mammoray.errors import TrainError
from mammoray.plain import from_dict, replace

_SPEAK_EVERY = 2.0  # Seconds between progress messages within an epoch.

Say = Callable[[str], None]
History = list[dict[str, Any]]


@dataclass(kw_only=True, slots=True)
class _Run:
    """What a worker holds while it trains."""

    config: Config
    net: models.DensityNet
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    targets: npt.NDArray[np.int64]
    weights_K: torch.Tensor | None
    device: torch.device
    rank: int
    workers: int
    steps: int
    speak: Say


def run(loop: dict[str, Any]) -> None:
    """Train, on every worker alike.

    Parameters
    ----------
    loop : dict
        ``config`` (as of ``config.to_dict``), ``state`` (object reference of the initial weights, or None to take a
        checkpoint's), ``split_digest``, ``board`` (actor with a method ``put`` for messages).
    """
    config = from_dict(Config, loop["config"])
    train, val = (ray.train.get_dataset_shard(fold) for fold in ("train", "val"))
    _set_threads()
    worker, history = _start(loop, config, train)
    todo = range(len(history), config.train.epochs + 1)
    orders = [
        sample.epoch_order(train.table["target"].to_numpy(), config.sample, config.seed, epoch)
        for epoch in todo
        if epoch > 0
    ]
    order = np.concatenate(orders) if orders else np.empty(0, dtype=np.int64)
    batches = train.training_batches(order, config.sample.batch_size, config.decode)
    share = config.sample.batch_size // worker.workers
    validations = val.evaluation_batches(len(todo), 2 * share, config.decode)
    for epoch in todo:
        started = time.monotonic()
        train_loss = _train_epoch(worker, batches, epoch) if epoch else None
        seconds = time.monotonic() - started
        logits_NK = _forward_all(worker, next(validations), len(val.table))
        record = _record(worker, epoch, train_loss, logits_NK, val.table["target"].to_numpy(), seconds)
        history.append(record)
        _report(worker, loop, history)


def _start(loop: dict[str, Any], config: Config, train: Shard) -> tuple[_Run, History]:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    blank = models.build(replace(config.model, pretrained=False, weights=None), config.classes, config.seed)
    if loop["state"] is not None:
        blank.load_state_dict(ray.get(loop["state"]))
    net = blank.to(device)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=config.train.lr, weight_decay=config.train.weight_decay)
    history: History = []
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            net.load_state_dict(models.load_weights(Path(folder)))
            history = models.load_optimizer(Path(folder), optimizer)["history"]
    elif loop["state"] is None:
        raise TrainError(
            "checkpoints/", "a checkpoint of the epochs in history.jsonl", "none", "Choose another --outdir."
        )
    targets = train.table["target"].to_numpy()
    weights = (
        models.balanced_weights(targets, len(config.class_names)).to(device) if config.train.class_weights else None
    )
    board, rank = loop["board"], context.get_world_rank()
    return _Run(
        config=config,
        net=net,
        wrapped=ray.train.torch.prepare_model(net),
        optimizer=optimizer,
        targets=targets,
        weights_K=weights,
        device=device,
        rank=rank,
        workers=context.get_world_size(),
        steps=sample.steps_per_epoch(len(targets), config.sample.batch_size),
        speak=board.put.remote if rank == 0 else (lambda message: None),
    ), history


def _set_threads() -> None:
    """Share the node's cores among the workers on it; Ray would give each a single thread."""
    local = ray.train.get_context().get_local_world_size()
    # A container may have fewer cores than the machine; macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local))


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Learning rate of a step counted from the start of training: linear warm-up, then a cosine to zero."""
    warmup, total = config.train.warmup_epochs * steps, config.train.epochs * steps
    if step < warmup:
        return config.train.lr * (step + 1) / warmup
    return config.train.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def _to_device(run: _Run, batch: Batch) -> torch.Tensor:
    """Unit-range float images, (B, 1, H, W), on the device; they travel there as unsigned integers."""
    return models.to_unit(torch.from_numpy(batch["image"]).to(run.device, non_blocking=True)).unsqueeze(1)


def _autocast(run: _Run) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.config.train.precision == "bf16")


def _train_epoch(run: _Run, batches: Iterator[Batch], epoch: int) -> float:
    """One pass; returns the mean loss over all workers."""
    config, share = run.config, run.config.sample.batch_size // run.workers
    # Dropout's random state starts from (seed, epoch, rank), so that a resumed epoch draws what it would have drawn.
    torch.manual_seed(int(np.random.SeedSequence([config.seed, 3, epoch, run.rank]).generate_state(1)[0]))
    run.wrapped.train()
    total = torch.zeros((), device=run.device)
    started = spoken = time.monotonic()
    for step in range(run.steps):
        batch = next(batches)
        x_B1HW = _to_device(run, batch)
        if config.train.augment:
            drawn = augment.draw(config.sample.batch_size, config.seed, epoch, step)
            x_B1HW = augment.apply(x_B1HW, drawn[run.rank * share : (run.rank + 1) * share])
        total += _step(run, x_B1HW, run.targets[batch["row"]], (epoch - 1) * run.steps + step)
        now = time.monotonic()
        if now - spoken > _SPEAK_EVERY:
            spoken = now
            rate = (step + 1) * config.sample.batch_size / (now - started)
            run.speak(f"epoch {epoch}/{config.train.epochs}: step {step + 1}/{run.steps}, {rate:.0f} images/s")
    mean = total / run.steps
    if run.workers > 1:
        dist.all_reduce(mean)
        _average_buffers(run)
    value = float(mean) / run.workers
    if not math.isfinite(value):
        raise TrainError(f"epoch {epoch}", "a finite loss", str(value), "Lower --lr, or use --precision fp32.")
    return value


def _step(run: _Run, x_B1HW: torch.Tensor, target: npt.NDArray[np.int64], step: int) -> torch.Tensor:
    config = run.config
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, step, run.steps)
    run.optimizer.zero_grad(set_to_none=True)
    with _autocast(run):
        logits_BK = run.wrapped(x_B1HW)
    target_B = torch.from_numpy(target).to(run.device)
    loss = models.loss(logits_BK.float(), target_B, run.weights_K, config.train.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.train.clip_grad:
        torch.nn.utils.clip_grad_norm_(run.net.parameters(), config.train.clip_grad)
    run.optimizer.step()
    return loss.detach()


def _average_buffers(run: _Run) -> None:
    """Give all workers the mean of their running statistics; DDP leaves each with its own until the next step."""
    for buffer in run.net.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(run.workers)


@torch.no_grad()
def _forward_all(run: _Run, batches: list[Batch], rows: int) -> npt.NDArray[np.float32]:
    """Logits of all validation rows, (N, K), on every worker: each row is computed by exactly one of them.

    The bare network is used, not the wrapped one: workers have unequal numbers of batches, and DDP would wait.
    """
    run.net.eval()
    done: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
    for batch in batches:
        with _autocast(run):
            logits = run.net(_to_device(run, batch))
        done.append((batch["row"], logits.float().cpu().numpy()))
    gathered: list[Any] = [done]
    if run.workers > 1:
        gathered = [None] * run.workers
        dist.all_gather_object(gathered, done)
    return collect([pair for part in gathered for pair in part], rows, len(run.config.class_names))


def collect(
    parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]], rows: int, classes: int
) -> npt.NDArray[np.float32]:
    """Put (row numbers, logits) of all workers in order: (rows, classes) float32.

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
    out = np.empty((rows, classes), dtype=np.float32)
    for n, logits in parts:
        out[n] = logits
    return out


def _record(
    run: _Run,
    epoch: int,
    train_loss: float | None,
    logits_NK: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    seconds: float,
) -> dict[str, Any]:
    p_NK = evaluate.softmax(logits_NK)
    values = {f"val_{name}": value for name, value in evaluate.metrics(labels, p_NK).items()}
    images = run.steps * run.config.sample.batch_size
    last_step = max(0, epoch * run.steps - 1)
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        **values,
        "lr": learning_rate(run.config, last_step, run.steps) if epoch else 0.0,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 2) if epoch else None,
    }


def _report(run: _Run, loop: dict[str, Any], history: History) -> None:
    """Hand the epoch to Ray Train, with a checkpoint written by rank 0."""
    record = history[-1]
    metrics = {"epoch": record["epoch"], "score": score(record, run.config.train.monitor), "history": history}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if run.rank == 0:
            card = models.ModelCard(
                model=run.config.model,
                classes=run.config.classes,
                decode=run.config.decode,
                split_digest=loop["split_digest"],
                epoch=record["epoch"],
            )
            models.save_model(Path(folder), run.net.state_dict(), card)
            models.save_optimizer(Path(folder), run.optimizer, {"history": history})
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)
    run.speak(describe(record, run.config.train.epochs))


def describe(record: dict[str, Any], epochs: int) -> str:
    """One line about an epoch, for people."""
    shown = [
        ("train loss", record["train_loss"]),
        *((name.removeprefix("val_"), record[name]) for name in ("val_loss", "val_kappa", "val_accuracy", "val_auc")),
    ]
    numbers = ", ".join(
        f"{'val ' if i else ''}{name} {value:.3f}" for i, (name, value) in enumerate(shown) if value is not None
    )
    speed = f", {record['images_per_second']:.0f} images/s" if record["images_per_second"] else " (untrained network)"
    return f"epoch {record['epoch']}/{epochs}: {numbers}{speed}"


def score(record: dict[str, Any], monitor: str) -> float:
    """Higher is better; unequal for unequal epochs, because Ray keeps one checkpoint of the highest score."""
    value: float | None = record[f"val_{monitor}"]
    epoch: int = record["epoch"]
    if epoch == 0:
        return -2e9
    if value is None:
        return -1e9 - epoch
    return (-value if monitor == "loss" else value) - 1e-9 * epoch
