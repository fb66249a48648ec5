"""What every file of a catalog is like, by Ray tasks: heads in the task itself, pixels in its child process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import ray
from ray.exceptions import RayTaskError

from mammoray import nodes, storage
from mammoray.config import AuditConfig
from mammoray.errors import MammorayError
from mammoray.ingest import answered, failure_of, sandbox_of
from mammoray.sandbox import Sandbox
from mammoray.scan import Facts, Job, scan_all, token

LOOK, THUMBNAIL = "mammoray.pixels:look", "mammoray.pixels:thumbnail"
"""What the child processes call: ``(path, name)`` to a ``pixels.PixelFacts``, and to a ``decode.Decoded``."""
_HEADS_PER_TASK = 1024
_IMAGES_PER_TASK = 32
_TASKS_PER_CPU = 4  # In flight: enough that no worker waits, few enough for ten million rows.
# A task that waits for a disk leaves the core to another one, and one that waits for a network leaves it for longer.
_CPUS_OF_HEADS, _CPUS_OF_REMOTE_HEADS, _CPUS_OF_PIXELS = 0.5, 0.25, 1.0
_NO_PIXELS = {"digest": "", "lowest": 0, "highest": 0, "beyond": 0, "bits_stored": 0, "error": ()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far it is: ``done`` of ``total`` files, after ``seconds``; ``what`` is looked at."""

    what: str
    done: int
    total: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.what}: {self.done:,} of {self.total:,}, {self.done / max(self.seconds, 1e-9):,.0f} files/s"


def take(
    rows: pd.DataFrame,
    root: str,
    config: AuditConfig,
    report: Callable[[Progress], None] = lambda progress: None,
    function: str = LOOK,
) -> pd.DataFrame:
    """Look at all files. Needs a connection to Ray.

    Parameters
    ----------
    rows : pandas.DataFrame
        Catalog rows.
    root : str
        Path or URI that ``path`` starts from, seen by every node.
    config : AuditConfig
    report : callable, optional
        Gets a :class:`Progress` after each finished task.
    function : str, optional
        ``module:name`` of what looks at the pixels, imported by the child processes.

    Returns
    -------
    pandas.DataFrame
        ``rows`` with the fields of :class:`mammoray.scan.Facts` as ``head_<field>``, with ``id_token``, the digest of
        ``patient_id`` that those of the header can be held against, and, with ``config.pixels``, the fields of
        :class:`mammoray.pixels.PixelFacts` as ``pixel_<field>`` and ``pixel_error``, which is () where all is well or
        nothing was decoded.

    Raises
    ------
    StorageError
        The storage of the files answers nothing at all.
    """
    nodes.require_seen({}, root, rows["path"])
    key = secrets.token_bytes(32)  # Of this audit alone: tokens of two audits cannot be compared.
    rows = rows.reset_index(drop=True)
    sizes = rows["size"].astype(int).tolist()
    jobs = [(storage.join(root, path), path, size) for path, size in zip(rows["path"], sizes, strict=True)]
    cpus = _CPUS_OF_REMOTE_HEADS if storage.is_uri(root) else _CPUS_OF_HEADS
    heads = _run("heads", jobs, (scan_all, key), _HEADS_PER_TASK, cpus, report)
    table = with_heads(rows, heads, key)
    if config.pixels:
        # What the head refuses, the decoder refuses too.
        decodable = [job for job, error in zip(jobs, table["head_error"], strict=True) if not error]
        work = (_pixels, config.limit_seconds, function)
        found = _run("pixels", decodable, work, _IMAGES_PER_TASK, _CPUS_OF_PIXELS, report)
        by_path = {job[1]: facts for job, facts in zip(decodable, found, strict=True)}
        pixel_facts = [by_path.get(path, _NO_PIXELS) for path in rows["path"]]
        table = table.join(pd.DataFrame(pixel_facts, columns=list(_NO_PIXELS)).add_prefix("pixel_"))
    return table


def with_heads(rows: pd.DataFrame, heads: Sequence[dict[str, Any]], key: bytes) -> pd.DataFrame:
    """Catalog rows with what their files' heads say, ``head_<field>``, and ``id_token``."""
    table = pd.DataFrame(heads, columns=list(Facts.__dataclass_fields__)).add_prefix("head_")
    table["id_token"] = [token(str(patient), key) for patient in rows["patient_id"]]
    return rows.join(table)


def _run(
    what: str,
    jobs: Sequence[Job],
    work: tuple[Any, ...],
    per_task: int,
    cpus: float,
    report: Callable[[Progress], None],
) -> list[dict[str, Any]]:
    """Results of a function, which gets some jobs and the rest of ``work``, in the order of the jobs."""
    if not jobs:
        return []
    available = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, min(per_task, -(-len(jobs) // (2 * available))))
    started, done = time.monotonic(), 0
    parts: dict[int, list[dict[str, Any]]] = {}
    for start, part in _finished(jobs, work, size, cpus, _TASKS_PER_CPU * available):
        parts[start] = part
        done += len(part)
        report(Progress(what=what, done=done, total=len(jobs), seconds=time.monotonic() - started))
    return [facts for start in sorted(parts) for facts in parts[start]]


def _finished(
    jobs: Sequence[Job], work: tuple[Any, ...], size: int, cpus: float, in_flight: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Where each part of the jobs starts, and its results, as they come."""
    # A function of an importable module: a worker imports that module alone, and not all of this one.
    task, arguments = ray.remote(num_cpus=cpus)(work[0]), work[1:]
    starts = iter(range(0, len(jobs), size))
    running: dict[Any, int] = {}
    while True:
        while len(running) < in_flight and (start := next(starts, None)) is not None:
            running[task.remote(jobs[start : start + size], *arguments)] = start
        if not running:
            return
        ready, _ = ray.wait(list(running))
        for reference in ready:
            try:
                yield running.pop(reference), ray.get(reference)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, MammorayError) else error) from None


def _pixels(jobs: Sequence[Job], limit: float, function: str) -> list[dict[str, Any]]:
    outcomes = answered(sandbox_of(function, limit).run([(path, name) for path, name, _ in jobs]))
    return [
        {**outcome.value, "error": ()}
        if outcome.value is not None
        else {**_NO_PIXELS, "error": failure_of(name, outcome, limit)[:4]}
        for (_, name, _), outcome in zip(jobs, outcomes, strict=True)
    ]


def thumbnails(paths: Sequence[str], root: str, limit: float, function: str) -> list[dict[str, Any] | None]:
    """Small pictures of some files, made in a child process; None where there can be none."""
    child = Sandbox(function, limit)
    try:
        return [outcome.value for outcome in child.run([(storage.join(root, path), path) for path in paths])]
    finally:
        child.close()
