"""Rows of a catalog to the decoded cache, by Ray Data.

A task takes the files of some shards, has them decoded by the child process that its worker keeps, and writes the
shards itself: pixels go straight to storage and not through the object store, so that memory is bounded by one image a
core (of a bucket, by six files more). What returns to the driver, shard by shard, is their rows of the index.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.data

from mammoray import cache, storage
from mammoray.config import DecodeConfig, IngestConfig
from mammoray.errors import DecodeError, IngestError, MammorayError, StorageError
from mammoray.sandbox import Outcome, Sandbox

DECODE = "mammoray.decode:decode"
"""What the child processes call: ``(path, config, name)`` to a ``decode.Decoded``."""
_FAILURE = ["where", "expected", "found", "remedy", "exception"]
# Ray Data (2.60) looks for finished tasks ten times a second, so that a core waits a tenth of a second for its next
# task: long tasks. They get shorter towards the end, so that no core waits long for the last.
_SHARDS_PER_TASK = 8
_TASKS_PER_CPU = 2
_INDEX_SECONDS = 10.0  # A killed run leaves no more than the shards of this time to be opened one by one.


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a decode is: files ``done`` of ``total``, ``failed`` among them, after ``seconds``."""

    done: int
    total: int
    failed: int
    seconds: float

    def __str__(self) -> str:
        rate = self.done / self.seconds if self.seconds > 0 else 0.0
        left = round((self.total - self.done) / rate) if rate else 0
        eta = f", {timedelta(seconds=left)} left" if left else ""
        return f"decoded {self.done}/{self.total}, {rate:.1f} images/s, {self.failed} failed{eta}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The cache as these rows see it.

    Attributes
    ----------
    rows : pandas.DataFrame
        The catalog's rows that decoded, with ``shard`` (path or URI of the file), ``position`` (row in it),
        ``transfer_syntax``, ``geometry`` and ``seconds`` (processor time of the decoding).
    failures : pandas.DataFrame
        The rows that did not: ``image_id, patient_id, path`` and ``where, expected, found, remedy, exception``.
    new : int
        Files decoded now; the others were found in the cache.
    seconds : float
        Wall time.
    """

    rows: pd.DataFrame
    failures: pd.DataFrame
    new: int
    seconds: float


def prepare(
    rows: pd.DataFrame,
    root: str,
    store: str,
    decode_config: DecodeConfig,
    config: IngestConfig,
    report: Callable[[Progress], None] = lambda progress: None,
    function: str = DECODE,
) -> Decoded:
    """Decode what the cache lacks, in parallel over the Ray cluster, and look up all rows.

    Parameters
    ----------
    rows : pandas.DataFrame
        Catalog rows: ``image_id, path, size, mtime_ns`` and more.
    root : str
        Path or URI that ``path`` starts from, seen by every node.
    store : str
        Path or URI of the cache, seen by every node.
    report : callable, optional
        Gets a :class:`Progress` after each finished task.
    function : str, optional
        ``module:name`` of the decoder, imported by the child processes.

    Raises
    ------
    IngestError
        The cache cannot be written or read, or the decoder cannot be started.
    StorageError
        The storage of the files answers nothing at all for most of a minute.
    """
    started = time.monotonic()
    folder = cache.cache_folder(store, decode_config)
    cache.make_folder(folder)
    keyed = rows.assign(key=cache.file_keys(rows, root))
    index = cache.read_index(folder)
    missing = keyed[~keyed["key"].isin(index["key"].to_pandas())]
    if len(missing):
        work = functools.partial(
            _decode_files, root=root, folder=folder, decode_config=decode_config, config=config, function=function
        )

        def tell(done: int, failed: int) -> None:
            report(Progress(done=done, total=len(missing), failed=failed, seconds=time.monotonic() - started))

        passing = _follow(index, folder, _run(missing, work, config.shard_images), tell)
        # The shards have the last word: a task that was tried again may have written some twice.
        index = cache.first_of_each(pa.concat_tables([cache.read_index(folder), passing]))
    found = keyed.merge(index.to_pandas(), on="key", how="left", validate="many_to_one")
    return _sorted_out(found.drop(columns=["key", "bytes"]), folder, len(missing), time.monotonic() - started)


def check_enough(decoded: Decoded, config: IngestConfig) -> None:
    """Refuse to go on when too many files did not decode.

    Raises
    ------
    IngestError
        With the share, the limit and the first reasons.
    """
    failed, total = len(decoded.failures), len(decoded.failures) + len(decoded.rows)
    if total and len(decoded.rows) / total < config.min_decoded:
        reasons = "; ".join(
            f"{r.path}: expected {r.expected}, found {r.found}" for r in decoded.failures.head(3).itertuples()
        )
        raise IngestError(
            "the decoded files",
            f"at least {config.min_decoded:.0%} of {total} (--min-decoded)",
            f"{len(decoded.rows)} ({len(decoded.rows) / total:.1%}); {failed} failed: {reasons}",
            "See audit.csv or failures.csv; mend the files, or lower --min-decoded.",
        )


def _follow(index: pa.Table, folder: str, parts: Iterator[pa.Table], tell: Callable[[int, int], None]) -> pa.Table:
    """Take what the tasks return and write the index down now and then; returns the rows that are in no shard."""
    tables, done, failed, written = [index], 0, 0, time.monotonic()
    for part in parts:
        tables.append(part)
        done += len(part)
        failed += len(part) - part["error"].null_count
        tell(done, failed)
        if time.monotonic() - written > _INDEX_SECONDS:
            cache.write_index(folder, _in_shards(tables))
            written = time.monotonic()
    cache.write_index(folder, _in_shards(tables))
    every = pa.concat_tables(tables)
    return every.filter(every["shard"].is_null())


def _in_shards(tables: list[pa.Table]) -> pa.Table:
    every = pa.concat_tables(tables)
    return every.filter(every["shard"].is_valid())


def _run(
    missing: pd.DataFrame, work: Callable[[pa.Table], Iterator[pa.Table]], shard_images: int
) -> Iterator[pa.Table]:
    """Rows of the index from the tasks, in the order in which they come."""
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    table = pa.Table.from_pandas(missing[["key", "path"]], preserve_index=False)
    ends = np.cumsum(_task_sizes(len(table), cpus, shard_images)).tolist()
    blocks = [table.slice(start, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    results = ray.data.from_arrow(blocks).map_batches(
        work, batch_size=None, batch_format="pyarrow", num_cpus=_task_cpus(ray.nodes())
    )
    results.context.raise_original_map_exception = True  # Ray Data's own wrapper loses what it wraps.
    results.context.target_max_block_size = 1  # An answer leaves the task when it is there, and not at the task's end.
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for answer in batch["answer"]:
                yield pa.ipc.open_stream(answer.as_buffer()).read_all()
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, MammorayError) else error) from None


def _task_cpus(nodes: list[dict[str, Any]]) -> float:
    """A little less than one, so that each node has a task more than cores.

    Ray Data (2.60) looks for finished tasks ten times a second: without it a core would wait for its next task.

    Examples
    --------
    >>> _task_cpus([{"Resources": {"CPU": 2.0}}, {"Resources": {"CPU": 16.0}}])
    0.6666
    """
    cores = min((max(1.0, node["Resources"]["CPU"]) for node in nodes if node["Resources"].get("CPU")), default=1.0)
    return int(10_000 * cores / (cores + 1)) / 10_000  # Ray counts in ten thousandths.


def _task_sizes(files: int, cpus: int, shard_images: int) -> list[int]:
    """Files of each task: whole shards, fewer and fewer, and less than a shard only where there are few files.

    Examples
    --------
    >>> _task_sizes(54_706, 16, 64)[:2], _task_sizes(54_706, 16, 64)[-2:], _task_sizes(10, 2, 64)
    ([512, 512], [64, 50], [3, 3, 3, 1])
    """
    sizes = []
    least = min(shard_images, -(-files // (_TASKS_PER_CPU * cpus)))
    while files:
        shards = min(_SHARDS_PER_TASK, files // (_TASKS_PER_CPU * cpus * shard_images))
        sizes.append(min(files, max(least, shards * shard_images)))
        files -= sizes[-1]
    return sizes


def _sorted_out(found: pd.DataFrame, folder: str, new: int, seconds: float) -> Decoded:
    """Rows that decoded and rows that did not."""
    failed = found["error"].notna().to_numpy()
    lost = found[found["shard"].isna() & ~failed]
    if len(lost):
        raise IngestError(
            storage.shown(folder),
            f"{len(found)} decoded files",
            f"{len(lost)} fewer, such as {lost['path'].iloc[0]}",
            "Run again.",
        )
    failures = found.loc[failed, ["image_id", "patient_id", "path"]].reset_index(drop=True)
    parts = pd.DataFrame([json.loads(text) for text in found.loc[failed, "error"]], columns=_FAILURE)
    good = found[~failed].drop(columns="error").reset_index(drop=True)
    good = good.assign(shard=cache.shard_paths(folder, good["shard"]), position=good["position"].astype("int64"))
    return Decoded(rows=good, failures=pd.concat([failures, parts], axis=1), new=new, seconds=seconds)


@functools.lru_cache(maxsize=1)
def sandbox_of(function: str, limit: float) -> Sandbox:
    """The child process that this worker keeps for a function, with a limit of seconds a call."""
    # Ray reuses the process of a task for the next, so that the child stays warm.
    return Sandbox(function, limit)


def _decode_files(
    files: pa.Table, root: str, folder: str, decode_config: DecodeConfig, config: IngestConfig, function: str
) -> Iterator[pa.Table]:
    """Decode the files of one task into shards; yields the rows of the index of each, as one value.

    As one value, because Ray Data would cut a table, send the pieces one by one, and have the task wait for them.
    """
    limit = config.limit_seconds
    for start in range(0, len(files), config.shard_images):
        part = files.slice(start, config.shard_images)
        keys, paths = part["key"].to_pylist(), part["path"].to_pylist()
        outcomes = sandbox_of(function, limit).run([(storage.join(root, path), decode_config, path) for path in paths])
        records = (
            (outcome.lasting, _record(key, path, outcome, decode_config, limit))
            for key, path, outcome in zip(keys, paths, answered(outcomes), strict=True)
        )
        rows = _write(folder, records)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        yield pa.table({"answer": pa.array([sink.getvalue().to_pybytes()], pa.binary())})


def answered(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """The outcomes, until a storage answers nothing at all: each file more would wait for it as long as this one."""
    for outcome in outcomes:
        if isinstance(outcome.error, StorageError):
            raise outcome.error
        yield outcome


def _write(folder: str, records: Iterator[tuple[bool, dict[str, Any]]]) -> pa.Table:
    """Write a shard of what is to be remembered, and add the rest to its rows of the index, with no shard."""
    passing: list[dict[str, Any]] = []

    def lasting() -> Iterator[dict[str, Any]]:
        for last, record in records:
            if last:
                yield record
            else:
                passing.append(record)

    written = cache.write_shard(folder, lasting())
    return pa.concat_tables([written, pa.Table.from_pylist(passing, schema=cache.INDEX_SCHEMA)])


def _record(key: str, path: str, outcome: Outcome, config: DecodeConfig, limit: float) -> dict[str, Any]:
    """Columns of a shard for one file."""
    record: dict[str, Any] = {"key": key, "seconds": outcome.seconds}
    if outcome.value is None:
        return {**record, "error": json.dumps(failure_of(path, outcome, limit))}
    pixels = outcome.value["pixels"]
    return {
        **record,
        "pixels": np.ascontiguousarray(pixels, dtype="u1" if config.depth == 8 else "<u2").tobytes(),
        "transfer_syntax": outcome.value["transfer_syntax"],
        "geometry": json.dumps(outcome.value["geometry"]),
    }


def failure_of(path: str, outcome: Outcome, limit: float) -> tuple[str, ...]:
    """``where, expected, found, remedy, exception`` of a file that did not decode."""
    error = outcome.error
    if isinstance(error, DecodeError):
        return (*error.args, type(error).__name__)
    if error is not None:
        name = str(error) if isinstance(error, RuntimeError) else type(error).__name__
        if isinstance(error, OSError):
            return (path, "a file that can be read", name, "Check the storage and run again.", name)
        return (path, "an image", f"{name} while decoding it", "Look at the file with another program.", name)
    if outcome.end == "time limit":
        remedy = (
            "Try again, with a larger --limit-seconds where the storage is slow; else the decoder hangs on this file."
        )
        return (path, f"an image within {limit:g} s", "none until then", remedy, "time limit")
    remedy = (
        "Look at the file with another program."
        if outcome.lasting
        else "Run again: something killed the decoder twice, as the system does when memory is short."
    )
    return (path, "an image", f"a decoder that ended by {outcome.end}", remedy, str(outcome.end))
