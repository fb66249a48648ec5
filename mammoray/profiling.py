"""Where the time of a step goes, by torch's profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WAIT, _WARMUP, _ACTIVE = 2, 1, 5
_ROWS = 30


@contextlib.contextmanager
def profiled(folder: Path | None, steps: int) -> Iterator[Callable[[], None]]:
    """Profile some steps into ``folder``; without a folder nothing happens.

    Writes ``trace.json``, for chrome://tracing or ui.perfetto.dev, and ``operators.txt``, the operators that took most
    of the time.

    Parameters
    ----------
    folder : Path or None
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


def _write(done: profile, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = done.key_averages().table(sort_by=order, row_limit=_ROWS)
    (folder / "operators.txt").write_text(table + "\n", encoding="utf-8")
    done.export_chrome_trace(str(folder / "trace.json"))
