"""One trial of a search: what its process runs, from its folder to a value after each epoch.

The folder has ``config.toml``, all settings of the trial, and gets what :func:`mammoray.train.fit` writes; with several
folds, each in a folder of its own. A trial whose process or node is lost goes on from its last checkpoint, because
``fit`` does.
"""

from __future__ import annotations

import contextlib
import io
import queue
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune

from mammoray import plain, records, storage
from mammoray.config import Config
from mammoray.controller import read_history
from mammoray.errors import MammorayError
from mammoray.mirror import Mirror, mirrored, place
from mammoray.scale import Scale

Tell = Callable[[dict[str, Any]], None]
SETTINGS = "config.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a trial's process is given.

    Attributes
    ----------
    number : int
        Of the trial.
    folder : Path
        Of the trial; seen by every node, unless there is a copy.
    rows : str
        Path or URI of a Parquet file of the rows of training and validation, with a column ``fold``, or ``fold-0`` and
        so on where a trial has several folds.
    folds : int
        How many of them.
    split_digest : str
    scale : Scale
    start : str or None
        Path or URI of the folder of the trial that it goes on from.
    after : int
        Epochs that this one has behind it.
    """

    number: int
    folder: Path
    rows: str
    folds: int
    split_digest: str
    scale: Scale
    start: str | None = None
    after: int = 0


@dataclass(slots=True)
class _Standing:
    """What is known of a trial's folds so far; of a fold that is not finished, its history until now."""

    config: Config
    after: int
    histories: list[records.History] = field(default_factory=list)

    def message(self, folds: int) -> dict[str, Any]:
        """The value, which is the mean over the folds of the best score, the step that it belongs to, and more."""
        train = self.config.train
        trained = [history for history in self.histories if len(history) > 1]
        best = [records.best_epoch(history, train) for history in trained]
        scores = [records.scores([h[e]], train)[0] for h, e in zip(trained, best, strict=True)]
        known = [score for score in scores if score is not None]
        sign = -1 if train.monitor == "loss" else 1
        last = trained[-1][-1]
        own = [r for history in self.histories for r in history if r["epoch"] > self.after or not self.after]
        return {
            "value": sign * sum(known) / len(known) if known and len(known) == len(scores) else None,
            "step": last["epoch"] if folds == 1 else len(trained),
            "epoch": round(sum(best) / len(best)),
            "epochs": sum(r["epoch"] > 0 for r in own),
            "collapse": "; ".join(last["collapse"]),
            "seconds": sum(r["seconds"] + r["val_seconds"] for r in own),
            "epoch_seconds": min(r["seconds"] for history in trained for r in history[1:]),
            "images_per_second": max(r["images_per_second"] for history in trained for r in history[1:]),
        }


def work(job: Job, tell: Tell, stop: threading.Event) -> None:
    """Train all folds of a trial.

    Parameters
    ----------
    tell : callable
        Gets a message after each epoch, or after each fold where there are several: ``value`` (float or None),
        ``step``, ``epoch`` (the best), ``epochs`` (trained), ``collapse`` (why, or ""), ``seconds``, ``epoch_seconds``,
        ``images_per_second``, and ``start_seconds`` until the first batch.
    stop : threading.Event
        Ends it.

    Raises
    ------
    MammorayError
        As of :func:`mammoray.train.fit`.
    """
    began = time.monotonic()
    from mammoray import train  # noqa: PLC0415 - the network's code: its seconds are a part of the trial's start.

    with _own_folder(job) as copy:
        config, rows = plain.load_toml(copy.folder / SETTINGS), pd.read_parquet(io.BytesIO(storage.content(job.rows)))
        standing = _Standing(config, job.after)
        waited: list[float] = []

        def log(record: records.Record) -> None:
            waited.append(_waited(time.monotonic() - began, record))
            known = standing.histories[-1]  # A resumed training may do the last of them again.
            standing.histories[-1] = [*(one for one in known if one["epoch"] < record["epoch"]), record]
            if record["epoch"] and job.folds == 1:
                tell({**standing.message(1), "start_seconds": waited[0]})

        for part in _parts(job, copy):
            part.outdir.mkdir(exist_ok=True)
            standing.histories.append(read_history(part.outdir) or (read_history(part.start) if part.start else []))
            fitted = train.fit(
                rows.assign(fold=rows[part.column]),
                job.split_digest,
                config,
                part.scale,
                part.outdir,
                lambda line: _say(f"trial {job.number}: {line}"),
                log=log,
                stop=stop,
                start=part.start and storage.join(part.start, "checkpoints/last"),
                copy=copy,
            )
            standing.histories[-1] = fitted.history
            if stop.is_set():
                return
            if job.folds > 1:
                tell({**standing.message(job.folds), "start_seconds": waited[0] if waited else None})
    tell({**standing.message(job.folds), "start_seconds": waited[0] if waited else None, "finished": True})


def _waited(elapsed: float, first: records.Record) -> float:
    """Seconds until the first batch, of those until the first record; in a training that goes on, that of an epoch.

    Examples
    --------
    >>> _waited(9.0, {"seconds": 0.0, "val_seconds": 1.0}), _waited(9.0, {"seconds": 5.0, "val_seconds": 1.0})
    (8.0, 3.0)
    """
    # A training that went on within an epoch counts in that epoch's seconds those before, too.
    return max(0.0, elapsed - float(first["seconds"] + first["val_seconds"]))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _own_folder(job: Job) -> Iterator[Mirror]:
    """The folder to train in: the trial's, or where nodes see no common folder, one of this node with a copy."""
    copy = place(job.folder, job.scale.storage)
    if copy is None:
        yield Mirror(job.folder, None)
        return
    with (
        tempfile.TemporaryDirectory(prefix="mammoray-") as name,
        mirrored(Path(name) / job.folder.name, copy, SETTINGS) as own,
    ):
        yield own


@dataclass(frozen=True, slots=True)
class _Part:
    """A training of the trial: its folder, the column of its folds, where it goes on from, and its storage."""

    outdir: Path
    column: str
    start: str | None
    scale: Scale


def _parts(job: Job, copy: Mirror) -> list[_Part]:
    if job.folds == 1:
        return [_Part(copy.folder, "fold", job.start, job.scale)]
    scale = plain.replace(job.scale, storage=copy.copy)
    names = [f"fold-{fold}" for fold in range(job.folds)]
    return [_Part(copy.folder / name, name, job.start and storage.join(job.start, name), scale) for name in names]


class Trial(tune.Trainable):  # type: ignore[misc]
    """A trial as Ray Tune sees it: a step is a message. One process works for several trials in turn.

    What the trainings say goes to the process's output, which the Ray dashboard shows as the log of the actor.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """A byte: Ray Tune wants something for the process that drives the trial; the CPUs are the workers'."""
        return tune.PlacementGroupFactory([{"memory": 1}])

    def setup(self, config: dict[str, Any]) -> None:
        """Begin."""
        self.stop_asked = threading.Event()
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, args=(config["job"],), daemon=True)
        self.thread.start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin with another trial, when this one has stopped."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _work(self, job: Job) -> None:
        tell, stop = self.messages.put, self.stop_asked
        try:
            work(job, tell, stop)
        except MammorayError as error:
            tell({"failed": f"{type(error).__name__}: {error}"})
        except Exception as error:  # It goes on with the other trials, and says what happened.
            traceback.print_exc()
            tell({"failed": f"{type(error).__name__}: {error}"})

    def step(self) -> dict[str, Any]:
        """The next message; the last one says so."""
        message = self.messages.get()
        return {**message, "done": bool(message.keys() & {"failed", "finished"})}

    def halt(self) -> None:
        """Tell the training to stop, and wait for nothing; :meth:`cleanup` does."""
        self.stop_asked.set()

    def cleanup(self) -> None:
        """Stop the training, and wait until its workers have gone; nobody hears its last message."""
        self.halt()
        self.thread.join()
