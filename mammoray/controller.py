"""What Ray Train's controller, a process of its own, loads of mammoray: neither torch nor timm at the top of the file.

A controller that loaded the network's code would take two more seconds of processor time to start, in every training.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from mammoray import storage
from mammoray.storage import Place

if TYPE_CHECKING:
    from mammoray.records import History


def work(loop: dict[str, Any]) -> None:
    """What every worker runs: :func:`mammoray.loop.run`."""
    from mammoray.loop import run  # noqa: PLC0415 - as above

    run(loop)


class HistoryFile(ray.train.UserCallback):  # type: ignore[misc]
    """Writes history.jsonl on the driver's node after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Replace the file by the history of rank 0."""
        with contextlib.suppress(OSError):  # A full disk fails at the next checkpoint, with a reason.
            write_history(self.path.parent, metrics[0]["history"])


class NoSecondTry(ray.train.UserCallback):  # type: ignore[misc]
    """Ends the run where the error on the board would come again; an error of a callback is one that Ray never retries.

    Without it Ray would start the worker group anew first, for nothing.
    """

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what stands on the board."""
        if (failure := ray.get(self.board.failure.remote())) is not None:
            raise failure


def read_history(outdir: Place) -> History:
    """The records of history.jsonl, one an epoch, epoch 0 being the network before training; of a path or URI."""
    path = storage.join(str(outdir), "history.jsonl")
    return [json.loads(line) for line in storage.read(path).splitlines()] if storage.is_file(path) else []


def write_history(outdir: Path, history: History) -> None:
    """Replace history.jsonl by these records."""
    partial = outdir / "history.partial"
    partial.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
    partial.replace(outdir / "history.jsonl")
