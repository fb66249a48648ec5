"""Rows to the decoded cache, and cached rows to ``(B, 1, H, W)`` batches, by Ray Data.

The cache is addressed by what its content follows from. A folder per digest of (decode settings, decoder version)
holds Parquet shards; a row's key is the digest of the file's path, size and modification time, as make and rsync
judge. Shards are written under another name and moved into place, so a reader never sees half of one; a killed run
loses only those in flight, and two runs at once at worst decode a file twice. One row group per image makes a random
read touch one image.

Shapes: ``B`` batch, ``H, W`` image.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.train import DataConfig

from mammoray.config import DecodeConfig, IngestConfig, digest
from mammoray.decode import DECODER_VERSION, decode
from mammoray.errors import DecodeError, IngestError

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("pixels", pa.binary()),  # (H, W) row-major, little endian; null where decoding failed
        ("transfer_syntax", pa.string()),
        ("geometry", pa.string()),  # JSON of decode.Geometry
        ("error", pa.string()),  # JSON list of where, expected, found, remedy
    ]
)
Batch = dict[str, npt.NDArray[Any]]
_WINDOW_BYTES = 256 * 2**20  # Pixels that a worker holds at once, and as many that it reads ahead.
_READ_ROWS = 128  # Rows a read task loads: enough to outweigh a task's overhead of some milliseconds.


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a decode is: files ``done`` of ``total``, ``failed`` among them, after ``seconds``."""

    done: int
    total: int
    failed: int
    seconds: float

    def __str__(self) -> str:
        rate = self.done / self.seconds if self.seconds > 0 else 0.0
        left = (self.total - self.done) / rate if rate else float("inf")
        eta = f", {left:.0f} s left" if rate and left else ""
        return f"decoded {self.done}/{self.total}, {rate:.1f} images/s, {self.failed} failed{eta}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The cache as these rows see it.

    Attributes
    ----------
    rows : pandas.DataFrame
        The catalog's rows that decoded, with ``shard`` (path of the Parquet file) and ``position`` (row in it).
    failures : pandas.DataFrame
        The rows that did not, with ``where, expected, found, remedy``.
    new : int
        Files decoded now; the others were found in the cache.
    seconds : float
        Wall time.
    """

    rows: pd.DataFrame
    failures: pd.DataFrame
    new: int
    seconds: float


def cache_folder(cache: Path, config: DecodeConfig) -> Path:
    """Folder of the shards made with these settings by this version of the decoder."""
    return cache / digest(config, DECODER_VERSION)


def file_keys(rows: pd.DataFrame, root: Path) -> pd.Series:
    """Cache key of each row's file, from its whole path, size in bytes and modification time."""
    base = root.resolve()
    triples = zip(rows["path"], rows["size"], rows["mtime_ns"], strict=True)
    keys = [
        hashlib.sha256(f"{base / path}\n{size}\n{mtime}".encode()).hexdigest()[:32] for path, size, mtime in triples
    ]
    return pd.Series(keys, index=rows.index, dtype="string")


def prepare(
    rows: pd.DataFrame,
    root: Path,
    cache: Path,
    decode_config: DecodeConfig,
    config: IngestConfig,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Decoded:
    """Decode what the cache lacks, in parallel over the Ray cluster, and look up all rows.

    Parameters
    ----------
    rows : pandas.DataFrame
        Catalog rows: ``image_id, path, size, mtime_ns`` and more.
    root : Path
        Folder that ``path`` starts from, seen by every node.
    cache : Path
        Cache folder, seen by every node.
    report : callable, optional
        Gets a :class:`Progress` after each finished task.

    Raises
    ------
    IngestError
        The cache cannot be written or read, or fewer than ``config.min_decoded`` of the files decoded.
    """
    started = time.monotonic()
    folder = cache_folder(cache, decode_config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IngestError(
            str(cache), "a folder that can be written", type(error).__name__, "Choose another --cache."
        ) from error
    keyed = rows.assign(key=file_keys(rows, root))
    index = read_index(folder)
    missing = keyed[~keyed["key"].isin(index["key"])]
    if len(missing):
        unread = _decode_missing(
            missing,
            root,
            folder,
            decode_config,
            config,
            lambda done, failed: report(
                Progress(done=done, total=len(missing), failed=failed, seconds=time.monotonic() - started)
            ),
        )
        index = read_index(folder)
        index = pd.concat([index, unread], ignore_index=True) if len(unread) else index
    found = keyed.merge(index, on="key", how="left", validate="many_to_one").drop(columns="key")
    lost = found[found["shard"].isna() & found["error"].isna()]
    if len(lost):
        raise IngestError(
            str(folder),
            f"{len(rows)} decoded files",
            f"{len(lost)} fewer, such as {lost['path'].iloc[0]}",
            "Run again: something removed shards while this ran.",
        )
    failed = found["error"].notna()
    failures = found.loc[failed, ["image_id", "patient_id", "path"]].reset_index(drop=True)
    parts = pd.DataFrame(
        [json.loads(e) for e in found.loc[failed, "error"]], columns=["where", "expected", "found", "remedy"]
    )
    good = found[~failed].drop(columns="error").reset_index(drop=True)
    return Decoded(
        rows=good, failures=pd.concat([failures, parts], axis=1), new=len(missing), seconds=time.monotonic() - started
    )


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
            "See audit.csv; mend the files, or lower --min-decoded.",
        )


def read_index(folder: Path) -> pd.DataFrame:
    """``key, shard, position, transfer_syntax, geometry, error`` of every cached file; the first shard by name wins."""
    tables = []
    for shard in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(shard, columns=["key", "transfer_syntax", "geometry", "error"]).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise IngestError(
                str(shard),
                "a Parquet shard of the cache",
                f"{type(error).__name__}",
                "Delete this file; its images are decoded again.",
            ) from error
        tables.append(table.assign(shard=str(shard), position=np.arange(len(table), dtype=np.int64)))
    columns = ["key", "transfer_syntax", "geometry", "error", "shard", "position"]
    index = (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=columns).astype({"key": "string", "position": np.int64})
    )
    return index.drop_duplicates("key")


def _decode_missing(
    missing: pd.DataFrame,
    root: Path,
    folder: Path,
    decode_config: DecodeConfig,
    config: IngestConfig,
    report: Callable[[int, int], None],
) -> pd.DataFrame:
    """Write shards of the missing files; returns ``key, error`` of those that the system could not read just now."""
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # Small sets are cut finer than a full shard, so that every core has work.
    rows_per_task = max(1, min(config.shard_images, -(-len(missing) // (2 * cpus))))
    table = pa.Table.from_pandas(missing[["key", "path"]], preserve_index=False)
    blocks = [table.slice(start, rows_per_task) for start in range(0, len(table), rows_per_task)]
    work = functools.partial(_decode_shard, root=root, folder=folder, config=decode_config)
    results = ray.data.from_arrow(blocks).map_batches(
        work, batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    done = failed = 0
    unread: list[tuple[str, str]] = []
    for batch in results.iter_batches(batch_size=None, batch_format="numpy"):
        done += int(batch["done"].sum())
        failed += int(batch["failed"].sum())
        unread += [pair for text in batch["unread"] for pair in json.loads(text)]
        report(done, failed)
    return pd.DataFrame(unread, columns=["key", "error"], dtype="string")


def _decode_shard(files: pa.Table, root: Path, folder: Path, config: DecodeConfig) -> dict[str, npt.NDArray[Any]]:
    """Decode the files of one task into one shard. Pixels go straight to storage, not through the object store."""
    cv2.setNumThreads(1)  # One task a core: more threads would only fight.
    records, unread = [], []
    for key, path in zip(files["key"].to_pylist(), files["path"].to_pylist(), strict=True):
        try:
            records.append(_decode_file(key, path, root, config))
        except OSError as error:
            # Storage that fails now may work tomorrow: listed, but not remembered in the cache.
            problem = DecodeError(
                path, "a file that can be read", type(error).__name__, "Check the storage and run again."
            )
            unread.append((key, json.dumps(problem.args)))
    if records:
        target = folder / f"{uuid.uuid4().hex}.parquet"
        partial = target.with_suffix(".partial")
        table = pa.Table.from_pylist(records, schema=_SCHEMA)
        pq.write_table(
            table, partial, row_group_size=1, compression="lz4", use_dictionary=False, write_statistics=False
        )
        partial.replace(target)
    failed = sum(record["error"] is not None for record in records) + len(unread)
    return {"done": np.array([len(files)]), "failed": np.array([failed]), "unread": np.array([json.dumps(unread)])}


def _decode_file(key: str, path: str, root: Path, config: DecodeConfig) -> dict[str, Any]:
    record: dict[str, Any] = {**dict.fromkeys(_SCHEMA.names), "key": key}
    try:
        decoded = decode(root / path, config, name=path)
    except DecodeError as error:
        return {**record, "error": json.dumps(error.args)}
    return {
        **record,
        "pixels": np.ascontiguousarray(decoded.pixels).astype(decoded.pixels.dtype.newbyteorder("<")).tobytes(),
        "transfer_syntax": decoded.transfer_syntax,
        "geometry": json.dumps(asdict(decoded.geometry)),
    }


@functools.lru_cache(maxsize=256)
def _open_shard(shard: str) -> pq.ParquetFile:
    return pq.ParquetFile(shard, memory_map=True)


def load_pixels(shards: list[str], positions: npt.NDArray[np.int64], config: DecodeConfig) -> npt.NDArray[Any]:
    """Cached images, (B, H, W) uint8 or uint16, of the given shard files and positions in them."""
    dtype = np.dtype("u1" if config.depth == 8 else "<u2")
    images = np.empty((len(shards), config.height, config.width), dtype=dtype)
    for image, shard, position in zip(images, shards, positions, strict=True):
        column = _open_shard(shard).read_row_group(int(position), columns=["pixels"]).column(0)
        image[...] = np.frombuffer(column[0].as_buffer(), dtype=dtype).reshape(config.height, config.width)
    return images


def stream(rows: pd.DataFrame, order: npt.NDArray[np.int64], config: DecodeConfig) -> ray.data.Dataset:
    """A lazy Ray Dataset of cached images in a given order.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``.
    order : (N,) int64
        Positions in ``rows``, in the order wanted; may repeat.

    Returns
    -------
    ray.data.Dataset
        Rows ``row`` (int64, position in ``rows``) and ``image`` ((H, W) uint8 or uint16), in the order asked for.
    """
    names, shards = np.unique(rows["shard"].to_numpy(dtype=str), return_inverse=True)
    shared = ray.put((names.tolist(), shards, rows["position"].to_numpy(), order))
    dataset = ray.data.range(len(order), override_num_blocks=max(1, -(-len(order) // _READ_ROWS)))
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    load = functools.partial(_load_batch, shared=shared, config=config)
    return dataset.map_batches(load, batch_size=None, batch_format="numpy", num_cpus=0.5)


def _load_batch(
    batch: dict[str, npt.NDArray[Any]], shared: ray.ObjectRef, config: DecodeConfig
) -> dict[str, npt.NDArray[Any]]:
    names, shards, positions, order = ray.get(shared)
    wanted = order[batch["id"]]
    return {"row": wanted, "image": load_pixels([names[shards[i]] for i in wanted], positions[wanted], config)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One worker's part of a fold: what ``ray.train.get_dataset_shard`` returns.

    All workers know all rows of the fold, which are small, and each asks for the pixels of its own part of an order
    that they all compute alike. Ray's own ``streaming_split`` either drops rows (``equal=True``) or deals them by
    arrival, so that what a worker sees depends on timing; here it is a function of (seed, epoch, step, rank).

    Attributes
    ----------
    table : pandas.DataFrame
        ``image_id, target, shard, position`` of the fold's rows.
    rank, workers : int
        Which part this is, of how many.
    """

    table: pd.DataFrame
    rank: int
    workers: int

    def training_batches(self, order: npt.NDArray[np.int64], batch_size: int, config: DecodeConfig) -> Iterator[Batch]:
        """This worker's share of every global batch of ``order``, whose length is a multiple of ``batch_size``.

        Parameters
        ----------
        order : (S * batch_size,) int64
            Rows of S global batches, over as many epochs as wanted.
        batch_size : int
            Of the global batch; a multiple of the number of workers.
        """
        share = batch_size // self.workers
        mine = order.reshape(-1, self.workers, share)[:, self.rank].reshape(-1)
        return self._batches(mine, share, config)

    def evaluation_batches(self, repeats: int, batch_size: int, config: DecodeConfig) -> Iterator[list[Batch]]:
        """Every ``workers``-th row, once per repeat; the shares of all workers together are each row exactly once.

        Yields
        ------
        list of batches of one repeat
        """
        mine = np.arange(self.rank, len(self.table), self.workers, dtype=np.int64)
        steps = -(-len(mine) // batch_size)
        # Filled up to whole batches, which are cut off again: one stream then serves all repeats.
        padded = np.resize(mine, steps * batch_size) if steps else mine
        batches = self._batches(np.tile(padded, repeats), batch_size, config) if steps else iter(())
        for _ in range(repeats):
            yield _first_rows([next(batches) for _ in range(steps)], len(mine))

    def _batches(self, order: npt.NDArray[np.int64], batch_size: int, config: DecodeConfig) -> Iterator[Batch]:
        """Batches of rows in ``order``, read window by window, the next window while one is used.

        One dataset over the whole order would be simpler, but the control loop of a Ray dataset that waits for its
        consumer spins (Ray 2.60: it has no pause), in this very process, and took three quarters of a core from the
        training. A window is read to its end at once, and then nothing runs.
        """
        bytes_per_row = config.height * config.width * config.depth // 8
        rows = max(1, _WINDOW_BYTES // (bytes_per_row * batch_size)) * batch_size
        windows = [order[start : start + rows] for start in range(0, len(order), rows)]
        with ThreadPoolExecutor(max_workers=1) as background:
            ahead = background.submit(_load_window, self.table, windows[0], config) if windows else None
            for following in [*windows[1:], None]:
                if ahead is None:
                    return
                window = ahead.result()
                ahead = None if following is None else background.submit(_load_window, self.table, following, config)
                for start in range(0, len(window["row"]), batch_size):
                    yield {name: values[start : start + batch_size] for name, values in window.items()}


def _load_window(table: pd.DataFrame, order: npt.NDArray[np.int64], config: DecodeConfig) -> Batch:
    parts = list(stream(table, order, config).iter_batches(batch_size=None, batch_format="numpy"))
    return {name: np.concatenate([part[name] for part in parts]) for name in ("row", "image")}


def _first_rows(batches: list[Batch], rows: int) -> list[Batch]:
    if batches and (extra := sum(len(b["row"]) for b in batches) - rows):
        batches[-1] = {name: values[:-extra] for name, values in batches[-1].items()}
    return batches


class ShardConfig(DataConfig):  # type: ignore[misc]
    """Hands each Ray Train worker a :class:`Shard` of each dataset."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """One dictionary of shards per worker; called again whenever the worker group starts anew."""
        tables = {name: dataset.to_pandas() for name, dataset in datasets.items()}
        return [
            {name: Shard(table=table, rank=rank, workers=world_size) for name, table in tables.items()}
            for rank in range(world_size)
        ]
