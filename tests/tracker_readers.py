"""What a tracker holds of a run, read by its own library: tag -> (step, value), in the order of the store."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Curves = dict[str, list[tuple[int, float]]]

_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_LAST = (1, 4)  # Of a record: whole, or its last chunk.


def read_tensorboard(outdir: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(outdir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_mlflow(outdir: Path) -> Curves:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{outdir}/mlflow/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "mammoray")
    (run,) = client.search_runs([experiment.experiment_id])
    tags = run.data.metrics
    return {tag: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)] for tag in tags}


def read_wandb(outdir: Path) -> Curves:
    """Every history item of every offline folder, but wandb's own, whose names begin with an underscore."""
    curves: Curves = {}
    for folder in sorted((outdir / "wandb").glob("offline-run-*")):
        for record in wandb_records(folder):
            for item in record.history.item:
                tag = item.key or "/".join(item.nested_key)
                if not tag.startswith("_"):
                    curves.setdefault(tag, []).append((record.history.step.num, json.loads(item.value_json)))
    return curves


def wandb_records(folder: Path) -> list[Any]:
    """All records of an offline run that was closed; the last may come a moment after that."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("run-*.wandb")
    until = time.monotonic() + 30
    while True:
        records: list[Any] = []
        with contextlib.suppress(DecodeError):  # A record that is only half written.
            records = [Record.FromString(content) for content in _records(file.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < until, f"{file} has no end"
        time.sleep(0.05)


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, after 7 bytes of header: chunks (checksum, length, kind) that cross no block."""
    at, parts = 7, b""
    while at + _CHUNK.size <= len(content):
        if _BLOCK - at % _BLOCK < _CHUNK.size:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _CHUNK.unpack_from(content, at)
        at += _CHUNK.size
        parts += content[at : at + length]
        at += length
        if kind in _LAST:
            yield parts
            parts = b""


READERS: dict[str, Callable[[Path], Curves]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}
