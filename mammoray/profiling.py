"""Where the time of a step goes, by torch's profiler."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from mammoray import storage

_WAIT, _WARMUP, _ACTIVE = 2, 1, 5
_ROWS = 30


@contextlib.contextmanager
def profiled(folder: str | None, steps: int) -> Iterator[Callable[[], None]]:
    """Profile some steps into ``folder``; without a folder nothing happens.

    Writes ``trace.json``, for chrome://tracing or ui.perfetto.dev, and ``operators.txt``, the operators that took most
    of the time.

    Parameters
    ----------
    folder : str or None
        Path or URI.
    steps : int
        That there are: fewer are profiled where there are few.

    Yields
    ------
    callable
        To be called after each step.
    """
    if folder is None:
        yield lambda: None
        return
    wait = min(_WAIT, max(0, steps - 2))
    active = max(1, min(_ACTIVE, steps - wait - _WARMUP))
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=wait, warmup=_WARMUP, active=active, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=lambda done: _write(done, folder)) as running:
        yield running.step


def _write(done: profile, folder: str) -> None:
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = done.key_averages().table(sort_by=order, row_limit=_ROWS)
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / "operators.txt", Path(name) / "trace.json"]
        files[0].write_text(table + "\n", encoding="utf-8")
        done.export_chrome_trace(str(files[1]))
        for file in files:
            storage.upload(file, storage.join(folder, file.name))
