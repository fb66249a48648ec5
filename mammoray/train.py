"""``fit``: the only training loop, the same on one CPU worker and on many GPUs.

What a step computes is a function of (config, split, step): the order of the rows, the augmentation and the random
state are drawn anew from (seed, epoch, rank) and nothing is carried along but weights, optimiser and history. So a run
that was killed goes on, from the last checkpoint, to the result it would have had.

Shapes: ``B`` images of this worker's share of a batch, ``K`` classes, ``H, W`` pixels.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2

from mammoray import augment, evaluate, sample
from mammoray import model as models
from mammoray.config import Config, Scale, from_dict, replace, to_dict
from mammoray.errors import ClusterError, ConfigError, MammorayError, TrainError
from mammoray.ingest import Batch, Shard, ShardConfig

_RAY_FOLDER = "ray"
_SPEAK_EVERY = 2.0  # Seconds between progress messages within an epoch.

Say = Callable[[str], None]
History = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A finished training: its history, one record an epoch, and the folders of the best and the last checkpoint."""

    history: History
    best: Path
    last: Path


def fit(rows: pd.DataFrame, split_digest: str, config: Config, scale: Scale, outdir: Path, say: Say) -> Fitted:
    """Train on the rows of fold ``train``, choose the best epoch on fold ``val``.

    Started again with the same ``outdir``, it goes on from the last checkpoint there.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``image_id, fold, target, shard, position``, one per decoded image, sorted by ``image_id``.
    split_digest : str
        Goes into every checkpoint.
    config, scale
        What to compute, and where.
    outdir : Path
        Gets ``history.jsonl`` and ``checkpoints/``; on a cluster, on storage that all nodes see.
    say : callable
        Gets a line of progress now and then.

    Raises
    ------
    ConfigError, ClusterError, ModelError
        Before anything is started.
    TrainError
        The loss is not finite, or workers kept failing.
    """
    checkpoints = outdir / "checkpoints"
    history = read_history(outdir)
    if (
        history
        and history[-1]["epoch"] == config.train.epochs
        and (checkpoints / "last").is_dir()
        and not (checkpoints / _RAY_FOLDER).exists()
    ):
        return Fitted(history=history, best=checkpoints / "best", last=checkpoints / "last")
    scaling, state = check(config, scale, outdir)
    say(f"train: {scale.num_workers} workers on {'GPUs' if scaling.use_gpu else 'CPUs'}")
    board = ray.remote(num_cpus=0)(_Board).remote()
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "config": to_dict(config),
            "state": None if state is None else ray.put(state),
            "split_digest": split_digest,
            "board": board,
        },
        scaling_config=scaling,
        datasets={fold: _fold_dataset(rows, fold) for fold in ("train", "val")},
        dataset_config=ShardConfig(datasets_to_split=[]),
        run_config=ray.train.RunConfig(
            name=_RAY_FOLDER,
            storage_path=str(checkpoints.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="score"),
            callbacks=[_HistoryFile(outdir.resolve() / "history.jsonl")],
        ),
    )
    with _speaking(board, say):
        try:
            result = trainer.fit()
        except ray.train.WorkerGroupError as error:
            raise _reason(error, say) from error
    # The newest checkpoint knows all epochs; a kill just before history.jsonl is written can cost that file one.
    _keep(result.checkpoint, checkpoints / "last")
    history = models.load_state(checkpoints / "last")["history"]
    write_history(outdir, history)
    best = best_epoch(history, config.train.monitor)
    # Ray keeps the checkpoint of the highest score and the latest one; they may be the same.
    reported = [*result.best_checkpoints, (result.checkpoint, result.metrics)]
    kept = {int(metrics["epoch"]): checkpoint for checkpoint, metrics in reported}
    _keep(kept[best], checkpoints / "best")
    # Renamed first, so that a kill leaves either all of Ray's folder, or a finished training.
    rubbish = (checkpoints / _RAY_FOLDER).rename(checkpoints / f"{_RAY_FOLDER}.old")
    shutil.rmtree(rubbish, ignore_errors=True)
    return Fitted(history=history, best=checkpoints / "best", last=checkpoints / "last")


def _keep(checkpoint: ray.train.Checkpoint, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.to_directory(folder)


def check(config: Config, scale: Scale, outdir: Path) -> tuple[ray.train.ScalingConfig, models.Tensors | None]:
    """What :func:`fit` needs before it can start, to be asked for before hours go into decoding.

    Returns
    -------
    ScalingConfig, dict of tensors
        The resources of the workers, and the network's initial weights; None where a checkpoint in ``outdir`` has
        better ones.

    Raises
    ------
    ConfigError, ClusterError, ModelError
        As of :func:`fit`.
    """
    if config.sample.batch_size % scale.num_workers:
        expected = f"a multiple of --num-workers {scale.num_workers}"
        raise ConfigError("--batch-size", expected, str(config.sample.batch_size), "Change either.")
    begun = bool(read_history(outdir))
    return plan(scale), None if begun else models.build(config.model, config.classes, config.seed).state_dict()


def plan(scale: Scale) -> ray.train.ScalingConfig:
    """Resources of the workers, leaving Ray Data a CPU to read with.

    Raises
    ------
    ClusterError
        The cluster has too little: Ray itself would wait for ever.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    use_gpu = scale.gpu == "yes" or (scale.gpu == "auto" and gpus >= scale.num_workers)
    if use_gpu and gpus < scale.num_workers:
        raise ClusterError(
            "the Ray cluster",
            f"{scale.num_workers} GPUs, one per worker",
            f"{gpus:g}",
            "Use fewer --num-workers, or --gpu no.",
        )
    share = scale.cpus_per_worker or min(1.0, math.floor((cpus - 1.0) / scale.num_workers * 100) / 100)
    if share <= 0 or share * scale.num_workers > cpus - 0.5:
        wanted = (
            f"{share:g} CPUs for each of {scale.num_workers} workers"
            if share > 0
            else f"CPUs for {scale.num_workers} workers"
        )
        raise ClusterError(
            "the Ray cluster",
            f"{wanted} and one left to read with",
            f"{cpus:g} CPUs",
            "Use fewer --num-workers or --cpus-per-worker, or begin Ray with more: ray start --head --num-cpus 2.",
        )
    return ray.train.ScalingConfig(
        num_workers=scale.num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": share, **({"GPU": 1.0} if use_gpu else {})},
    )


def _fold_dataset(rows: pd.DataFrame, fold: str) -> ray.data.Dataset:
    return ray.data.from_pandas(
        rows.loc[rows["fold"] == fold, ["image_id", "target", "shard", "position"]].reset_index(drop=True)
    )


def best_epoch(history: History, monitor: str) -> int:
    """Epoch with the highest score; the first of equals; never epoch 0, which has not learned."""
    scores = [_score(record, monitor) for record in history]
    epoch: int = history[int(np.argmax(scores))]["epoch"]
    return epoch


def _score(record: dict[str, Any], monitor: str) -> float:
    """Higher is better; unequal for unequal epochs, because Ray keeps one checkpoint of the highest score."""
    value: float | None = record[f"val_{monitor}"]
    epoch: int = record["epoch"]
    if value is None or epoch == 0:
        return -1e9 - epoch
    return (-value if monitor == "loss" else value) - 1e-9 * epoch


def read_history(outdir: Path) -> History:
    """The records of history.jsonl, one an epoch, epoch 0 being the network before training."""
    path = outdir / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_history(outdir: Path, history: History) -> None:
    """Replace history.jsonl by these records."""
    partial = outdir / "history.partial"
    partial.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
    partial.replace(outdir / "history.jsonl")


class _HistoryFile(ray.train.UserCallback):  # type: ignore[misc]
    """Writes history.jsonl on the driver's node after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        write_history(self.path.parent, metrics[0]["history"])


class _Board:
    """Messages of rank 0 on their way to the driver."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def put(self, message: str) -> None:
        self.messages.append(message)

    def take(self) -> list[str]:
        taken, self.messages = self.messages, []
        return taken


@contextlib.contextmanager
def _speaking(board: Any, say: Say) -> Iterator[None]:
    done = threading.Event()

    def speak() -> None:
        while not done.wait(0.5):
            drain()

    def drain() -> None:
        for message in ray.get(board.take.remote()):
            say(message)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drain()


def _reason(error: ray.train.WorkerGroupError, say: Say) -> MammorayError:
    for failure in error.worker_failures.values():
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, MammorayError):
            return cause
    first = next(iter(error.worker_failures.values()), error)
    say(str(error))
    lines = str(first).strip().splitlines() or [type(first).__name__]
    remedy = "The worker's traceback stands above; the same command goes on from the last checkpoint."
    return TrainError("the training workers", "to finish", lines[-1][:300], remedy)


# Inside a worker


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


def _worker(loop: dict[str, Any]) -> None:
    """Run by every Ray Train worker: epochs from the checkpoint, if there is one, to the last."""
    config = from_dict(Config, loop["config"])
    train, val = (ray.train.get_dataset_shard(fold) for fold in ("train", "val"))
    _set_threads()
    run, history = _start(loop, config, train)
    todo = range(len(history), config.train.epochs + 1)
    orders = [
        sample.epoch_order(train.table["target"].to_numpy(), config.sample, config.seed, epoch)
        for epoch in todo
        if epoch > 0
    ]
    order = np.concatenate(orders) if orders else np.empty(0, dtype=np.int64)
    batches = train.training_batches(order, config.sample.batch_size, config.decode)
    share = config.sample.batch_size // run.workers
    validations = val.evaluation_batches(len(todo), 2 * share, config.decode)
    for epoch in todo:
        started = time.monotonic()
        train_loss = _train_epoch(run, batches, epoch) if epoch else None
        seconds = time.monotonic() - started
        logits_NK = _forward_all(run, next(validations), len(val.table))
        record = _record(run, epoch, train_loss, logits_NK, val.table["target"].to_numpy(), seconds)
        history.append(record)
        _report(run, loop, history)


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


def _lr(config: Config, step: int, steps: int) -> float:
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
        group["lr"] = _lr(config, step, run.steps)
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
        "lr": _lr(run.config, last_step, run.steps) if epoch else 0.0,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 2) if epoch else None,
    }


def _report(run: _Run, loop: dict[str, Any], history: History) -> None:
    """Hand the epoch to Ray Train, with a checkpoint written by rank 0."""
    record = history[-1]
    metrics = {"epoch": record["epoch"], "score": _score(record, run.config.train.monitor), "history": history}
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
