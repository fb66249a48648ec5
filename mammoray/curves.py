"""A run's history as curves: what goes to a tracker, and one view for each of TensorBoard, MLflow, Weights & Biases.

history.jsonl is the truth. A view is opened with all of it and writes what the tracker lacks, then record by record;
so opening it again makes it complete, whatever happened before. Views raise what their libraries raise;
:mod:`mammoray.trackers` keeps that from the training. Of a run go out its numbers and its settings, these without
folders; not the hostname, the command line and the printed lines, which the libraries would add.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints

from mammoray.config import Config
from mammoray.plain import replace, to_dict, to_toml

History = list[dict[str, Any]]
T = TypeVar("T")

PROJECT = "mammoray"
IDS = "trackers.json"

_RENAMED = {"lr": "learning_rate"}
_MLFLOW_BATCH = 100  # The most parameters that a request may carry.


class View(Protocol):
    """A tracker's view of one run."""

    def write(self, record: dict[str, Any]) -> None:
        """Add an epoch."""

    def close(self, summary: dict[str, Any] | None) -> None:
        """End the run: with its metrics.json, or with None where it did not finish."""


def points(record: dict[str, Any]) -> dict[str, float]:
    """Tag -> value of every finite number in an epoch's record; train and val of one metric share a group.

    Examples
    --------
    >>> points({"epoch": 1, "train_loss": 0.5, "val_loss": 0.75, "val_kappa": 0.25, "val_auc": None, "lr": 0.125})
    {'loss/train': 0.5, 'loss/val': 0.75, 'metrics/kappa': 0.25, 'learning_rate': 0.125}
    >>> points({"epoch": 1, "val_f1": {"A": 0.5, "B": None}, "collapsed": False})
    {'f1/A': 0.5, 'collapsed': 0.0}
    """
    numbers = {
        _tag(path, record): float(value)
        for path, value in _leaves(record)
        if path != ("epoch",) and isinstance(value, (bool, int, float))
    }
    return {tag: value for tag, value in numbers.items() if math.isfinite(value)}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, one in value.items():
        yield from _leaves(one, (*path, str(key)))


def _tag(path: tuple[str, ...], record: dict[str, Any]) -> str:
    name, *rest = path
    side, _, metric = name.partition("_")
    if side not in ("train", "val") or not metric:
        return "/".join((_RENAMED.get(name, name), *rest))
    if rest:
        return "/".join((metric, *rest, *(["train"] if side == "train" else [])))
    # By name too, because epoch 0 has no training and one metric must not have two tags.
    paired = metric.endswith("loss") or {f"train_{metric}", f"val_{metric}"} <= record.keys()
    return f"{metric}/{side}" if paired else f"{'metrics' if side == 'val' else side}/{metric}"


def public(config: Config) -> Config:
    """The config without folders: of a path its last part, of the cache nothing."""
    return _without_folders(replace(config, ingest=replace(config.ingest, cache=None)))


def _without_folders(section: T) -> T:
    changes: dict[str, Any] = {}
    for name in get_type_hints(type(section)):
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            changes[name] = _without_folders(value)
        elif isinstance(value, Path):
            changes[name] = Path(value.name)
    return replace(section, **changes)


def parameters(config: Config, facts: dict[str, Any]) -> dict[str, str | bool | int | float]:
    """Flat settings and facts of a run: ``section.field``, and ``run.fact`` for the facts that are one value.

    Examples
    --------
    >>> parameters(Config(seed=3), {"workers": 2, "limits": ["none"]})["run.workers"]
    2
    """
    flat: dict[str, str | bool | int | float] = {}
    for path, value in _leaves(to_dict(public(config))):
        flat[".".join(path)] = ", ".join(map(str, value)) if isinstance(value, list) else value
    for name, value in facts.items():
        if isinstance(value, (str, bool, int, float)):
            flat[f"run.{name}"] = value
    return flat


def read_id(outdir: Path, tracker: str) -> str | None:
    """The run's id in a tracker, kept in the run's folder; None before it has one."""
    path = outdir / IDS
    found: str | None = json.loads(path.read_text(encoding="utf-8")).get(tracker) if path.exists() else None
    return found


def keep_id(outdir: Path, tracker: str, value: str) -> None:
    """Note the run's id in a tracker, so that a resumed run goes on in the same one."""
    path = outdir / IDS
    ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**ids, tracker: value}, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


class TensorBoard:
    """Event files in ``outdir/tensorboard``.

    They are written event by event and in this thread: tensorboardX's own SummaryWriter has a queue that a full disk
    leaves without a reader, and then it blocks for ever.
    """

    def __init__(self, outdir: Path, config: Config, facts: dict[str, Any], history: History) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter

        folder = outdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        before = list(folder.glob("events.out.tfevents.*"))
        suffix = f".{uuid.uuid4().hex[:8]}"
        # Without an experiment's summary TensorBoard itself finds what differs between runs, and shows that first.
        _, start, self._end = summary.hparams(parameters(config, facts), {})
        try:
            self._writer = EventsWriter(str(folder / "events"), suffix)
            self._restart()
            # Four spaces make the text a block of code, as TensorBoard reads Markdown.
            text = "".join(f"    {line}\n" for line in to_toml(public(config)).splitlines())
            self._add(0, start, summary.text("config.toml", text))
            for record in history:
                self._add(record["epoch"], *self._scalars(record))
            self._writer.flush()
        except BaseException:
            for path in folder.glob(f"events.out.tfevents.*{suffix}"):
                path.unlink()
            raise
        # Only now, so that a failure leaves what was there.
        for path in before:
            path.unlink(missing_ok=True)

    def _restart(self) -> None:
        """Tell a TensorBoard that is looking on to forget what it read from the files before."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

    @staticmethod
    def _scalars(record: dict[str, Any]) -> list[Any]:
        from tensorboardX import summary

        return [summary.scalar(tag, value) for tag, value in points(record).items()]

    def _add(self, step: int, *summaries: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        for one in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=one))

    def write(self, record: dict[str, Any]) -> None:
        """Add an epoch, on the disk when this returns."""
        self._add(record["epoch"], *self._scalars(record))
        self._writer.flush()

    def close(self, summary: dict[str, Any] | None) -> None:
        """Mark the session as ended, where the run finished, and close the file."""
        if summary is not None:
            self._add(0, self._end)
        self._writer.close()


class Mlflow:
    """A run on MLFLOW_TRACKING_URI, or in ``outdir/mlflow/mlflow.db`` where that is not set."""

    def __init__(self, outdir: Path, config: Config, facts: dict[str, Any], history: History) -> None:
        # No telemetry out of a hospital, no lines about migrations, and no ten minutes of waiting for a dead server.
        for name, value in (
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
            ("MLFLOW_LOGGING_LEVEL", "WARNING"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
        ):
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self._folder = outdir.resolve() / "mlflow"
        self._remote = os.environ.get("MLFLOW_TRACKING_URI")
        if not self._remote:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self._remote or f"sqlite:///{self._folder.as_posix()}/mlflow.db")
        self._run = self._resumed(read_id(outdir, "mlflow")) or self._begun(outdir, parameters(config, facts))
        held = self._held()
        for record in history:
            self._send(record["epoch"], {t: v for t, v in points(record).items() if (t, record["epoch"]) not in held})

    def _resumed(self, run_id: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            if run_id is None or self._client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # Of another server, or of a store that was removed.
                return None
            raise
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _begun(self, outdir: Path, flat: dict[str, str | bool | int | float]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        # A server knows where its artifacts go; a local store would put them into the working directory.
        place = None if self._remote else (self._folder / "artifacts").as_uri()
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, place)
        run_id: str = self._client.create_run(number, run_name=outdir.resolve().name).info.run_id
        params = [Param(key, str(value)) for key, value in flat.items()]
        for first in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _MLFLOW_BATCH])
        keep_id(outdir, "mlflow", run_id)
        return run_id

    def _held(self) -> set[tuple[str, int]]:
        tags = self._client.get_run(self._run).data.metrics
        return {(tag, m.step) for tag in tags for m in self._client.get_metric_history(self._run, tag)}

    def _send(self, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        if values:
            self._client.log_batch(self._run, metrics=[Metric(tag, value, now, epoch) for tag, value in values.items()])

    def write(self, record: dict[str, Any]) -> None:
        """Add an epoch, in one request."""
        self._send(record["epoch"], points(record))

    def close(self, summary: dict[str, Any] | None) -> None:
        """Add metrics.json, where the run finished, and set the run's status."""
        if summary is not None:
            self._client.log_dict(self._run, summary, "metrics.json")
        self._client.set_terminated(self._run, "FAILED" if summary is None else "FINISHED")


class Wandb:
    """A run of Weights & Biases; in ``outdir/wandb`` where WANDB_MODE is offline."""

    def __init__(self, outdir: Path, config: Config, facts: dict[str, Any], history: History) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Offline nobody knows how much of a run was written, or sent: it is begun anew, and what was not sent goes.
        offline = wandb.setup().settings.mode in ("offline", "dryrun")
        run_id = (None if offline else read_id(outdir, "wandb")) or uuid.uuid4().hex[:16]
        keep_id(outdir, "wandb", run_id)
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            dir=str(outdir),
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or outdir.resolve().name,
            config=parameters(config, facts),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                reinit="create_new",
                init_timeout=30,
                finish_timeout=60,
                # Hostname, user, command line and packages.
                host="",
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                disable_git=True,
                disable_code=True,
            ),
        )
        # The step after the last that the server has; 0, offline.
        first = self._run.step
        for record in history:
            if record["epoch"] >= first:
                self.write(record)
        for folder in (outdir / "wandb").glob("offline-run-*"):
            if not folder.name.endswith(run_id) and not any(folder.glob("*.synced")):
                shutil.rmtree(folder, ignore_errors=True)

    def write(self, record: dict[str, Any]) -> None:
        """Add an epoch; a process of wandb's own sends it."""
        self._run.log(points(record), step=record["epoch"], commit=True)

    def close(self, summary: dict[str, Any] | None) -> None:
        """Add the numbers of metrics.json, where the run finished, and wait for what is still to be sent."""
        if summary is not None:
            numbers = {"/".join(path): v for path, v in _leaves(summary) if isinstance(v, (int, float))}
            self._run.summary.update(numbers)
        self._run.finish(exit_code=1 if summary is None else 0)
