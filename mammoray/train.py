"""``fit``: the only way to train, the same on one CPU worker and on many GPUs. The loop itself is in ``loop``."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import ray.train
import ray.train.torch

from mammoray import loop
from mammoray import model as models
from mammoray.batches import ShardConfig
from mammoray.config import Config, Scale
from mammoray.errors import ClusterError, ConfigError, MammorayError, TrainError
from mammoray.loop import History, Say
from mammoray.plain import to_dict

_RAY_FOLDER = "ray"


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
        loop.run,
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
    scores = [loop.score(record, monitor) for record in history]
    epoch: int = history[int(np.argmax(scores))]["epoch"]
    return epoch


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
        with contextlib.suppress(ray.exceptions.RayActorError):  # Lost with its node; only words are lost with it.
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
