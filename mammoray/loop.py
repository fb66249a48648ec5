"""What every Ray Train worker runs: epochs of steps and validation, from the checkpoint, if there is one, to the end.

Everything that is decided between epochs is a function of the history, which all workers have alike: the learning rate
of a plateau, early stopping, collapse. So a run that was killed goes on, from its last checkpoint, to the result that
it would have had.

Shapes: ``N`` rows, ``B`` images, ``K`` classes.
"""

from __future__ import annotations

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

from mammoray import changes, checkpoint, learner, optim, profiling, records, sample, shortage, storage
from mammoray.batches import Batch, Shard
from mammoray.config import Config
from mammoray.errors import MammorayError, TrainError
from mammoray.learner import Learner
from mammoray.model import DENSITY
from mammoray.plain import from_dict
from mammoray.saving import Progress, Saver
from mammoray.signals import Signals, Watch

_SPEAK_EVERY = 2.0  # Seconds between progress messages within an epoch.
_SHOWN_IMAGES = 8  # Of those whose loss is not finite.

Say = Callable[[str], None]


@dataclass(kw_only=True, slots=True)
class _Run:
    """What the loop needs beside the learner."""

    config: Config
    learner: Learner
    train: Shard
    val: Shard
    saver: Saver
    board: Any
    signals: Signals
    watch: Watch | None
    speak: Say
    profile: str | None
    spoken: float
    """When rank 0 last told how far it is."""
    left: list[str]
    """Nodes known to be taken away."""


def run(loop: dict[str, Any]) -> None:
    """Train, on every worker alike.

    Parameters
    ----------
    loop : dict
        ``config`` (as of ``to_dict``), ``state`` (object reference of the initial weights, or None to take a
        checkpoint's), ``start`` (path or URI of the checkpoint to begin with, or None), ``split_digest``, ``cpus``
        (that were asked for each worker, or 0), ``board`` (actor of ``train``), ``profile`` (path or URI of a folder,
        or None).
    """
    board = loop["board"]
    try:
        _run(loop)
    except MammorayError as error:
        ray.get(board.fail.remote(error))
        raise
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not shortage.is_memory(error):
            raise
        told = shortage.of_memory(error)
        ray.get(board.fail.remote(told))
        raise told from error


def _run(loop: dict[str, Any]) -> None:
    run, progress = _start(loop)
    todo = range(len(progress.history), run.config.train.last_epoch + 1)
    batches = _batches(run, progress, [epoch for epoch in todo if epoch])
    run.speak(f"{run.learner.workers} workers, from epoch {progress.epoch}, step {progress.step}")
    for epoch in todo:
        if progress.history and progress.history[-1].get("stopped"):
            return
        if epoch and not _train_epoch(run, progress, batches, epoch):
            return
        _validate(run, progress, epoch)


def _start(loop: dict[str, Any]) -> tuple[_Run, Progress]:
    """Everything as it was at the last checkpoint, or at the beginning."""
    config = from_dict(Config, loop["config"])
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    train, val = (ray.train.get_dataset_shard(fold) for fold in ("train", "val"))
    learner.share_cores(context.get_local_world_size(), loop["cpus"])
    net, given = learner.blank(config), loop["state"]
    if given is not None:
        net.load_state_dict(ray.get(given))
    rank, workers = context.get_world_rank(), context.get_world_size()
    own = learner.make(config, net, learner.targets_of(train.table, config), device, rank, workers)
    facts = {"classes": config.classes, "decode": config.decode, "split_digest": loop["split_digest"]}
    progress = Progress()
    wanted = {**facts, "model": config.model, "loss": config.loss.loss}
    if (latest := ray.train.get_checkpoint()) is not None:
        with latest.as_directory() as folder:
            progress = _resume(own, Path(folder), wanted)
    elif loop["start"] is not None:
        system, path = storage.filesystem(loop["start"])
        with ray.train.Checkpoint(path, system).as_directory() as folder:
            progress = _resume(own, Path(folder), wanted)
    elif given is None:
        raise TrainError(
            "checkpoints/", "a checkpoint of the epochs in history.jsonl", "none", "Choose another --outdir."
        )
    board = loop["board"]
    saver = Saver(facts, config.train, board)
    return _Run(
        config=config,
        learner=own,
        train=train,
        val=val,
        saver=saver,
        board=board,
        signals=Signals(workers, device),
        watch=Watch(board.asked.remote, 60 * config.train.checkpoint_minutes, saver.written.is_set)
        if rank == 0
        else None,
        speak=board.put.remote if rank == 0 else (lambda message: None),
        profile=loop["profile"] if rank == 0 else None,
        spoken=time.monotonic(),
        left=[],
    ), progress


def _resume(own: Learner, folder: Path, wanted: dict[str, Any]) -> Progress:
    checkpoint.require_equal(folder, checkpoint.read_card(folder), wanted)
    state = checkpoint.read_state(folder)
    learner.restore(own, checkpoint.read_tensors(folder), checkpoint.read_tensors(folder, "training"), state["learner"])
    return Progress(**state["progress"])


def _batches(run: _Run, progress: Progress, epochs: list[int]) -> Iterator[Batch]:
    """This worker's part of every batch from where the training stands to its end."""
    sampling, labels = run.config.sample, run.train.table["target"].to_numpy()
    patients = run.train.table["patient_id"].to_numpy(dtype=object)
    weights = [sample.row_weights(labels, patients, changes.at(run.config, epoch).sample) for epoch in epochs]
    orders = [
        sample.epoch_order(labels, own, sampling.batch_size, run.config.seed, epoch)
        for epoch, own in zip(epochs, weights, strict=True)
    ]
    order = np.concatenate(orders)[progress.step * sampling.batch_size :] if orders else np.empty(0, dtype=np.int64)
    own = run.learner
    mine = sample.part(sampling.batch_size, own.workers, own.rank, own.unit)
    return run.train.training_batches(order, sampling.batch_size, mine, run.config.decode)


# An epoch of training ---------------------------------------------------------------------------------------------


def _train_epoch(run: _Run, progress: Progress, batches: Iterator[Batch], epoch: int) -> bool:
    """All steps that the epoch still has; False when the run was told to stop."""
    own = run.learner
    learner.begin_epoch(own, epoch)
    config = own.config
    progress.epoch = epoch
    drops = records.drops(progress.history, config)
    before: _Done | None = None
    with profiling.profiled(run.profile if epoch == 1 else None, own.steps) as tick:
        while progress.step < own.steps:
            began = time.monotonic()
            batch = next(batches)
            progress.data_seconds += time.monotonic() - began
            number = (epoch - 1) * own.steps + progress.step
            rate = optim.rate(config.optim, number, own.steps, config.train.epochs, drops)
            losses_S = learner.step(own, batch, epoch, progress.step, rate)
            wishes = _hear(run, progress, before)
            before = _Done(batch["row"], losses_S)
            run.signals.send(
                losses_S.sum() / config.sample.batch_size, run.watch.wishes() if run.watch else frozenset()
            )
            progress.step += 1
            progress.seconds += time.monotonic() - began
            tick()
            _tell(run, progress)
            if wishes and not _obey(run, progress, wishes | _hear(run, progress, before)):
                return False
    return _obey(run, progress, _hear(run, progress, before))


@dataclass(frozen=True, slots=True)
class _Done:
    """Rows of a step and their losses."""

    rows: npt.NDArray[np.int64]
    losses_S: torch.Tensor


def _hear(run: _Run, progress: Progress, done: _Done | None) -> frozenset[str]:
    """Count the loss of the step that was ``done`` before; returns the wishes that came with it.

    Raises
    ------
    TrainError
        A loss is not finite, on whichever worker, with the images' ids.
    """
    heard = run.signals.hear()
    if heard is None or done is None:
        return frozenset()
    if heard.broken:
        ids = run.train.table["image_id"].to_numpy()
        own = [str(ids[row]) for row in done.rows[~torch.isfinite(done.losses_S).cpu().numpy()]]
        broken = sorted({one for part in _gather(run, own) for one in part})
        shown = ", ".join(broken[:_SHOWN_IMAGES]) + (", ..." if len(broken) > _SHOWN_IMAGES else "")
        remedy = (
            "Lower --lr, raise --warmup-epochs, set --clip-grad, use --precision fp32 or bf16; or look at these images."
        )
        found = f"NaN or infinity for {len(broken)} images of a batch of {run.config.sample.batch_size}: {shown}"
        raise TrainError(f"epoch {progress.epoch}, step {progress.step}", "a finite loss", found, remedy)
    progress.loss += heard.loss
    return heard.wishes


def _obey(run: _Run, progress: Progress, wishes: frozenset[str]) -> bool:
    """Do what rank 0 wants, on all workers at the same step; False to stop."""
    # Ray's own question, which all workers must put at the same time.
    leaving = ray.train.get_preemption_info() if "look" in wishes else None
    leaving = leaving if leaving is not None and leaving.preempted_node_ids != run.left else None
    if "stop" in wishes or leaving is not None:
        run.saver.save(run.learner, progress, at_once=True)
    elif "save" in wishes:
        run.saver.save(run.learner, progress, at_once=False)
    if leaving is not None:
        run.left = leaving.preempted_node_ids
        run.speak(f"a node is about to be taken away: checkpoint at epoch {progress.epoch}, step {progress.step}")
    if run.watch and wishes & {"stop", "save"}:
        run.watch.saved()
    if "stop" in wishes and run.watch:
        ray.get(run.board.stopped.remote(f"epoch {progress.epoch}, step {progress.step} of {run.learner.steps}"))
    return "stop" not in wishes


def _tell(run: _Run, progress: Progress) -> None:
    now = time.monotonic()
    if now - run.spoken < _SPEAK_EVERY:
        return
    run.spoken = now
    rate = progress.step * run.config.sample.batch_size / progress.seconds
    head = f"epoch {progress.epoch}/{run.config.train.last_epoch}"
    run.speak(f"{head}: step {progress.step}/{run.learner.steps}, {rate:.0f} images/s")


def _gather(run: _Run, value: Any) -> list[Any]:
    """The value of each worker, on every worker."""
    gathered: list[Any] = [value]
    if run.learner.workers > 1:
        gathered = [None] * run.learner.workers
        dist.all_gather_object(gathered, value)
    return gathered


# Validation -------------------------------------------------------------------------------------------------------


def _validate(run: _Run, progress: Progress, epoch: int) -> None:
    """Judge the network, write the epoch down, and make its checkpoint."""
    own, config = run.learner, run.learner.config
    began = time.monotonic()
    learner.end_epoch(own)
    own.judged.eval()
    size = 2 * -(-config.sample.batch_size // own.workers)
    batches = run.val.evaluation_batches(size, config.decode)
    mine = [(batch["row"], learner.evaluate(own, batch["image"])) for batch in batches]
    clock = {
        "seconds": progress.seconds,
        "data_seconds": progress.data_seconds,
        "val_seconds": time.monotonic() - began,
    }
    parts = _gather(run, (mine, clock))
    outputs = records.collect([pair for part, _ in parts for pair in part], len(run.val.table))
    record = records.record(
        config,
        epoch,
        progress.loss / own.steps if epoch else None,
        outputs,
        run.val.table,
        np.bincount(own.targets[DENSITY], minlength=len(config.class_names)),
        progress.history,
        parts[0][1],  # The history is the same on all workers: by the clock of rank 0.
    )
    progress.history = [*progress.history, record]
    progress.epoch, progress.step = epoch + 1, 0
    progress.loss = progress.seconds = progress.data_seconds = 0.0
    run.saver.save(own, progress, at_once=False)
    if run.watch:
        run.watch.saved()
        run.board.log.remote(record)
    for line in records.describe(record, config):
        run.speak(line)
