"""Checkpoints of a running training: a copy of everything at once, written by another thread while it goes on."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train

from mammoray import checkpoint, learner, records, shortage
from mammoray.checkpoint import Snapshot
from mammoray.learner import Learner
from mammoray.recipe import TrainConfig
from mammoray.records import History

_UNFINISHED = -3e9  # Below the score of every finished epoch, see records.score.


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a training stands: the next step, and what its epoch has come to so far."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    """Sum over the steps of the epoch."""
    seconds: float = 0.0
    data_seconds: float = 0.0
    """Waiting for batches, of ``seconds``."""
    history: History = field(default_factory=list)


class Saver:
    """Hands the state of a training to Ray Train as checkpoints.

    Parameters
    ----------
    card : dict
        Fields of the checkpoint's card but the network's and the epoch.
    board : actor
        Of ``train``: gets the error of a checkpoint that cannot be written.
    """

    def __init__(self, card: dict[str, Any], config: TrainConfig, board: Any) -> None:
        self.card = card
        self.config = config
        self.board = board
        self.written = threading.Event()
        """Whether the last checkpoint is in its place."""
        self.written.set()

    def save(self, own: Learner, progress: Progress, at_once: bool) -> None:
        """Every worker must call it, and rank 0 writes: ``at_once``, or in a thread of its own.

        A copy is taken when the last one is written, so that slow storage holds the training up and does not fill the
        memory.
        """
        self.written.wait()
        snapshot = _snapshot(own, progress, self.card) if own.rank == 0 else None
        if snapshot:
            self.written.clear()
        done = progress.step == 0
        last = progress.history[-1]
        metrics = {
            "epoch": last["epoch"],
            "step": progress.step,
            "score": records.score(last, self.config) if done else _UNFINISHED - last["epoch"] - progress.step * 1e-6,
            "collapsed": bool(last["collapse"]),
            "history": progress.history,
        }
        mode = ray.train.CheckpointUploadMode
        ray.train.report(
            metrics,
            # Ray wants a folder; what is written is the snapshot.
            checkpoint=ray.train.Checkpoint(tempfile.gettempdir()) if snapshot else None,
            checkpoint_upload_mode=mode.SYNC if at_once else mode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=functools.partial(self._write, snapshot) if snapshot else None,
        )

    def _write(self, snapshot: Snapshot, placeholder: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """To the run's storage, a disk or an object store."""
        storage = ray.train.get_context().get_storage()
        with tempfile.TemporaryDirectory() as folder:
            try:
                checkpoint.write(Path(folder), snapshot)
                place = storage.persist_current_checkpoint(ray.train.Checkpoint.from_directory(folder), name)
            except OSError as error:
                told = shortage.of_disk(error, storage.experiment_fs_path)
                ray.get(self.board.fail.remote(told))
                raise told from error
            finally:
                self.written.set()
        return place


def _snapshot(own: Learner, progress: Progress, card: dict[str, Any]) -> Snapshot:
    weights, training, values = learner.state(own)
    full = checkpoint.card_of(own.net, own.config.model, epoch=progress.history[-1]["epoch"], **card)
    state = {"progress": dataclasses.asdict(progress), "learner": values}
    return Snapshot(card=full, model=weights, training=training, state=state)
