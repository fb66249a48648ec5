"""``fit``: the only way to train, the same on one CPU worker and on many GPUs. The loop itself is in ``loop``."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.data
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError

from mammoray import (
    board,
    changes,
    checkpoint,
    controller,
    learner,
    model,
    nodes,
    records,
    rooms,
    shortage,
    storage,
    tasks,
    trackers,
)
from mammoray.batches import ShardConfig
from mammoray.config import Config
from mammoray.controller import read_history, write_history
from mammoray.errors import ClusterError, ConfigError, InterruptedRunError, MammorayError, RunFolderError, TrainError
from mammoray.mirror import RAYS, Mirror, place
from mammoray.model import Tensors
from mammoray.plain import to_dict
from mammoray.records import History
from mammoray.scale import Scale

_DONE = "finished"
"""An empty file beside the checkpoints of a finished training."""
# Ray's own two seconds are what each report of an epoch, and each death, would wait for.
_LOOKS = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A finished training: its history, one record an epoch, and the folders of the best and the last checkpoint."""

    history: History
    best: Path
    last: Path


def fit(
    rows: pd.DataFrame,
    split_digest: str,
    config: Config,
    scale: Scale,
    outdir: Path,
    say: Say,
    log: board.Log | None = None,
    stop: threading.Event | None = None,
    start: str | None = None,
    copy: Mirror | None = None,
) -> Fitted:
    """Train on the rows of fold ``train``, choose the best epoch on fold ``val``.

    Started again with the same ``outdir``, it goes on from the last checkpoint there.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``image_id, patient_id, laterality, view, age, fold, target, shard, position``, one per decoded image, sorted
        by ``image_id``; laterality, view and age only where the settings want them. An image may be in both folds,
        as ``--train-on train_and_val`` wants it.
    split_digest : str
        Goes into every checkpoint.
    config, scale
        What to compute, and where.
    outdir : Path
        Gets ``history.jsonl``, ``checkpoints/`` and what the trackers write; on a cluster without ``scale.storage``,
        a folder that all nodes see.
    say : callable
        Gets a line of progress now and then.
    log : callable
        Gets the record of each epoch, as it stands in history.jsonl, soon after the epoch.
    stop : threading.Event
        When it is set, the training makes a checkpoint and ends as by SIGTERM.
    start : str
        Path or URI of the folder ``checkpoints/last`` of another training, finished, to go on from with its history.
    copy : Mirror
        Of ``outdir`` or a folder above it, where ``scale.storage`` is set.

    Raises
    ------
    ConfigError, ClusterError, ModelError
        Before anything is started.
    TrainError
        The loss is not finite, memory or disk are short, or workers kept failing.
    InterruptedRunError
        The run was told to stop, by SIGTERM or ``stop``; it has made a checkpoint.
    """
    checkpoints = outdir / "checkpoints"
    shared = place(outdir.absolute(), scale.storage) or str(outdir.resolve())
    rays = storage.join(shared, RAYS)
    history = read_history(outdir)
    if history and _is_finished(history, config) and (checkpoints / _DONE).exists():
        storage.remove_quietly(rays)  # A kill may have left some of it.
        return Fitted(history=history, best=checkpoints / "best", last=checkpoints / "last")
    scaling, state = check(config, scale, outdir, start)
    tasks.check(rows[rows["fold"] == "train"], config.model.auxiliary)
    say(f"train: {_workers(scale)} on {'GPUs' if scaling.use_gpu else 'CPUs'}")
    os.environ.setdefault(*_LOOKS)
    own_board = board.open_board()
    system, path = storage.filesystem(rays, "--storage")
    folder, name = storage.split(path)
    trainer = ray.train.torch.TorchTrainer(
        controller.work,
        train_loop_config={
            "config": to_dict(config),
            "state": None if state is None else ray.put(state),
            "start": start,
            "split_digest": split_digest,
            "cpus": scale.cpus_per_worker,
            "board": own_board,
            "profile": storage.join(shared, "profile") if config.train.profile else None,
        },
        scaling_config=scaling,
        datasets={fold: _fold_dataset(rows, fold) for fold in ("train", "val")},
        dataset_config=ShardConfig(datasets_to_split=[]),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.train.keep, checkpoint_score_attribute="score"
            ),
            callbacks=[controller.HistoryFile(outdir.resolve() / "history.jsonl"), controller.NoSecondTry(own_board)],
        ),
    )
    with tracking(split_digest, config, scale, outdir, say) as following:
        with board.listening(own_board, say, _both(following.log, log), stop):
            result = _follow(trainer, own_board, checkpoints, say)
        fitted = _finish(result, config, outdir, rays, start, copy)
        following.close({name: fitted.history[-1][name] for name in ("val_kappa", "val_accuracy", "val_loss")})
    return fitted


def _both(first: board.Log, second: board.Log | None) -> board.Log:
    def log(record: dict[str, Any]) -> None:
        first(record)
        if second is not None:
            second(record)

    return log


def tracking(split_digest: str, config: Config, scale: Scale, outdir: Path, say: Say) -> trackers.Trackers:
    """The trackers of the run in ``outdir``, brought up to its history."""
    facts = {"split_digest": split_digest, "num_workers": scale.num_workers}
    return trackers.open_all(config.train.trackers, outdir, config, facts, read_history(outdir), say)


def _workers(scale: Scale) -> str:
    fixed = f"{scale.num_workers} workers"
    return f"{scale.min_workers} to {fixed}" if scale.min_workers else fixed


def _is_finished(history: History, config: Config) -> bool:
    return bool(history[-1]["epoch"] == config.train.last_epoch or history[-1].get("stopped"))


def _follow(trainer: Any, own_board: Any, checkpoints: Path, say: Say) -> ray.train.Result:
    """Run the trainer to its end, or raise what ended it."""
    failed: Exception | None = None
    result = None
    try:
        result = trainer.fit()
    except (ray.train.WorkerGroupError, ray.train.ControllerError) as error:
        failed = error
    own: MammorayError | None = ray.get(own_board.failure.remote())
    if own is not None:
        raise own from failed
    if failed is not None:
        raise _reason(failed, checkpoints, say) from failed
    where = ray.get(own_board.where.remote())
    if where is not None:
        remedy = "The same command goes on from there."
        raise InterruptedRunError("the run", "to be left alone", f"SIGTERM; a checkpoint was made at {where}", remedy)
    return result


def _finish(
    result: ray.train.Result, config: Config, outdir: Path, rays: str, start: str | None, copy: Mirror | None
) -> Fitted:
    """Put the checkpoints where people find them, and write the history down for good."""
    checkpoints = outdir / "checkpoints"
    try:
        # The newest checkpoint knows all epochs; a kill just before history.jsonl is written can cost that file one.
        _keep(result.checkpoint, checkpoints / "last")
        history: History = checkpoint.read_state(checkpoints / "last")["progress"]["history"]
        write_history(outdir, history)
        best = records.best_epoch(history, config.train)
        # Ray keeps the checkpoints of the highest scores and the latest one; they may be the same.
        reported = [*result.best_checkpoints, (result.checkpoint, result.metrics)]
        kept = {int(metrics["epoch"]): one for one, metrics in reported if metrics["step"] == 0}
        # The best epoch may be one of the training that this one has gone on from.
        inherited = (
            start is not None and best not in kept and _checkpoint(storage.join(storage.split(start)[0], "best"))
        )
        _keep(inherited or kept[best], checkpoints / "best")
        for epoch in sorted(kept, key=lambda e: -records.score(history[e], config.train))[1 : config.train.keep]:
            _keep(kept[epoch], checkpoints / f"epoch-{epoch:03d}")
        # A kill leaves either all of Ray's folder, or a finished training.
        (checkpoints / _DONE).touch()
    except OSError as error:
        remedy = "Make room, and start the same command again."
        raise RunFolderError(str(outdir), "a folder that can be written", str(error), remedy) from error
    if copy is not None:
        copy.push()
    storage.remove_quietly(rays)
    return Fitted(history=history, best=checkpoints / "best", last=checkpoints / "last")


def _checkpoint(folder: str) -> ray.train.Checkpoint:
    """Of a path or URI."""
    system, path = storage.filesystem(folder)
    return ray.train.Checkpoint(path, system)


def _keep(one: ray.train.Checkpoint, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    one.to_directory(folder)


def check(
    config: Config, scale: Scale, outdir: Path, start: str | None = None
) -> tuple[ray.train.ScalingConfig, Tensors | None]:
    """What :func:`fit` needs before it can start, to be asked for before hours go into decoding.

    Returns
    -------
    ScalingConfig, dict of tensors
        The resources of the workers, and the network's initial weights; None where a checkpoint in ``outdir``, or
        ``start``, has better ones.

    Raises
    ------
    ConfigError, ClusterError, ModelError
        As of :func:`fit`.
    """
    least = scale.num_workers * config.optim.accumulate * (2 if learner.mixes(config) else 1)
    if config.sample.batch_size < least:
        expected = (
            f"at least {least} images, for --num-workers {scale.num_workers} --accumulate {config.optim.accumulate}"
        )
        raise ConfigError("--batch-size", expected, str(config.sample.batch_size), "Change either.")
    if learner.mixes(config) and config.sample.batch_size % 2:
        remedy = "Change it, or leave --mixup out."
        raise ConfigError("--batch-size", "an even number, for --mixup", str(config.sample.batch_size), remedy)
    changes.check(config)
    trackers.check(config.train.trackers)
    scaling = plan(scale)
    nodes.require_seen({"--outdir": place(outdir, scale.storage) or outdir})
    if config.speed.sync_batchnorm and not scaling.use_gpu:
        remedy = "Leave it out on CPUs, or use --freeze-norm or a network without batch norm."
        raise ConfigError("--sync-batchnorm", "GPUs", "none", remedy)
    learner.blank(config)  # Whatever the architecture cannot do is said here.
    if start is not None or read_history(outdir):
        return scaling, None
    return scaling, model.build(config.model, config.loss.loss, config.classes, config.seed).state_dict()


def plan(scale: Scale) -> ray.train.ScalingConfig:
    """Resources of the workers.

    Raises
    ------
    ClusterError
        The cluster has too little: Ray itself would wait for ever.
    """
    resources = ray.cluster_resources()
    cpus, gpus, each = resources.get("CPU", 0.0), resources.get("GPU", 0.0), scale.gpus_per_worker
    least = scale.min_workers or scale.num_workers
    enough = sum(node.places for node in rooms.nodes(each)) >= least
    use_gpu = scale.gpu == "yes" or (scale.gpu == "auto" and enough)
    if use_gpu and not enough:
        expected = f"{each:g} GPU of one node for each of {least} workers"
        remedy = "Use fewer --num-workers or --gpus-per-worker, or --gpu no."
        raise ClusterError("the Ray cluster", expected, f"{gpus:g} GPUs", remedy)
    share = rooms.share(rooms.nodes(each if use_gpu else 0.0), scale)
    if share is None:
        wanted = f"{scale.cpus_per_worker:g} CPUs for each of" if scale.cpus_per_worker else "CPUs for"
        raise ClusterError(
            "the Ray cluster",
            f"{wanted} {least} workers",
            f"{cpus:g} CPUs",
            "Use fewer --num-workers or --cpus-per-worker, or begin Ray with more: ray start --head --num-cpus 2.",
        )
    return ray.train.ScalingConfig(
        num_workers=(scale.min_workers, scale.num_workers) if scale.min_workers else scale.num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": share, **({"GPU": each} if use_gpu else {})},
        elastic_resize_monitor_interval_s=scale.resize_seconds,
    )


def _fold_dataset(rows: pd.DataFrame, fold: str) -> ray.data.Dataset:
    wanted = ["image_id", "patient_id", "laterality", "view", "age", "target", "shard", "position"]
    columns = [name for name in wanted if name in rows]
    return ray.data.from_pandas(rows.loc[rows["fold"] == fold, columns].reset_index(drop=True))


def _reason(error: Exception, checkpoints: Path, say: Say) -> MammorayError:
    """What ended the run, where it is no error of mammoray's own."""
    causes = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    # When a worker dies, the others lose their connection to it, and may be heard first.
    dead = [cause for cause in causes if isinstance(getattr(cause, "health_check_failure", cause), RayActorError)]
    first: BaseException = next((cause for cause in [*dead, *causes] if cause is not None), error)
    if isinstance(first, OSError):
        return shortage.of_disk(first, str(checkpoints))
    if shortage.is_memory(first):
        return shortage.of_memory(first)
    say(str(error))
    again = "The same command goes on from the last checkpoint."
    if dead:
        remedy = f"{again} If the kernel killed it for want of memory, which dmesg tells: {shortage.LESS_MEMORY}"
        return TrainError("the training workers", "to finish", "one that was killed or crashed", remedy)
    lines = str(first).strip().splitlines() or [type(first).__name__]
    remedy = f"The worker's traceback stands above. {again}"
    return TrainError("the training workers", "to finish", lines[-1][:300], remedy)
