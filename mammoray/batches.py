"""Cached rows to ``(B, 1, H, W)`` batches, by Ray Data.

Shapes: ``B`` batch, ``H, W`` image.
"""

from __future__ import annotations

import functools
import itertools
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.extensions import ArrowTensorArray
from ray.train import DataConfig

from mammoray.cache import load_pixels
from mammoray.config import DecodeConfig
from mammoray.errors import MammorayError

Batch = dict[str, npt.NDArray[Any]]
_AHEAD_BYTES = 512 * 2**20  # Of the object store, that a stream may fill before its reader takes from it.
_BLOCK_BYTES = 64 * 2**20  # What a task reads: enough to outweigh its overhead of some milliseconds.
_STREAM_BLOCKS = 512  # Ray Data keeps something of every block of a dataset, from its start to its end.


def stream(
    rows: pd.DataFrame,
    order: npt.NDArray[np.int64],
    config: DecodeConfig,
    batch_size: int = 1,
    ahead_bytes: int = _AHEAD_BYTES,
) -> ray.data.Dataset:
    """A lazy Ray Dataset of cached images in a given order.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``.
    order : (N,) int64
        Positions in ``rows``, in the order wanted; may repeat.
    config : DecodeConfig
    batch_size : int
        No block ends within a batch, where N is a multiple of it.
    ahead_bytes : int
        How much of the object store may be filled before the reader takes from it.

    Returns
    -------
    ray.data.Dataset
        Rows ``row`` (int64, position in ``rows``) and ``image`` ((H, W) uint8 or uint16), in the order asked for.
    """
    ends = block_ends(len(order), batch_size, _rows_per_block(config, batch_size, ahead_bytes))
    source = _CachedImages(rows, order, ends, config)
    dataset = ray.data.read_datasource(source, num_cpus=0.5, override_num_blocks=len(ends))
    context = dataset.context
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # Ray Data's own wrapper loses what it wraps.
    context.target_max_block_size = None  # Ray would cut larger blocks anywhere.
    context.execution_no_progress_timeout_s = -1  # A validation stream waits for as long as an epoch takes.
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Pause]
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=ahead_bytes)
    return dataset


def _rows_per_block(config: DecodeConfig, batch_size: int, ahead_bytes: int) -> int:
    bytes_per_batch = config.height * config.width * config.depth // 8 * batch_size
    return max(1, min(_BLOCK_BYTES, ahead_bytes // 8) // bytes_per_batch) * batch_size


def block_ends(rows: int, batch_size: int, most: int) -> list[int]:
    """Where each block of a stream ends; at first they grow from one batch, so that a first batch comes soon.

    Examples
    --------
    >>> block_ends(100, batch_size=4, most=32)
    [4, 12, 28, 60, 92, 100]
    """
    sizes = (min(most, batch_size << min(block, 32)) for block in itertools.count())
    ends = itertools.takewhile(lambda end: end < rows, itertools.accumulate(sizes))
    return [*ends, rows]


class _CachedImages(ray.data.Datasource):  # type: ignore[misc]
    """The blocks of a stream, each of which a task reads from the cache."""

    def __init__(self, rows: pd.DataFrame, order: npt.NDArray[np.int64], ends: list[int], config: DecodeConfig) -> None:
        super().__init__()
        names, shards = np.unique(rows["shard"].to_numpy(dtype=str), return_inverse=True)
        self._shared = ray.put((names.tolist(), shards, rows["position"].to_numpy(), order))
        self._ends, self._config = ends, config

    def get_name(self) -> str:
        return "CachedImages"

    def estimate_inmemory_data_size(self) -> int:
        return self._ends[-1] * self._config.height * self._config.width * self._config.depth // 8

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        return [self._task(start, end) for start, end in zip([0, *self._ends], self._ends, strict=False)]

    def _task(self, start: int, end: int) -> ray.data.ReadTask:
        size = (end - start) * self._config.height * self._config.width * self._config.depth // 8
        known = BlockMetadata(num_rows=end - start, size_bytes=size, input_files=None, exec_stats=None)
        return ray.data.ReadTask(functools.partial(_read, self._shared, start, end, self._config), known)


def _read(shared: ray.ObjectRef, start: int, end: int, config: DecodeConfig) -> list[pa.Table]:
    names, shards, positions, order = ray.get(shared)
    wanted = order[start:end]
    images = load_pixels([names[shards[row]] for row in wanted], positions[wanted], config)
    return [pa.table({"row": wanted, "image": ArrowTensorArray.from_numpy(images)})]


class _Pause:
    """Lets a dataset's control loop sleep where it has nothing to wait for, as an execution callback of Ray Data.

    The loop (Ray 2.60) waits for running tasks alone. When the consumer is slower than its readers none may run, and it
    spins, in the process of the training, against its GIL: three quarters of a core.
    """

    _QUICK = 0.01  # Seconds of a step that did not wait.
    _LONGEST = 0.1  # Seconds; what may be read ahead lasts longer.

    def __init__(self) -> None:
        self._ended, self._pause = time.monotonic(), 0.0

    def on_execution_step(self, executor: object) -> None:
        """Sleep after a step that did not wait, longer after each."""
        quick = time.monotonic() - self._ended < self._QUICK
        self._pause = min(self._LONGEST, 2 * self._pause + 0.005) if quick else 0.0
        time.sleep(self._pause)
        self._ended = time.monotonic()

    def before_execution_starts(self, executor: object) -> None:
        """Nothing to do."""

    def after_execution_succeeds(self, executor: object) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Nothing to do."""


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

    def training_batches(
        self, order: npt.NDArray[np.int64], batch_size: int, part: tuple[int, int], config: DecodeConfig
    ) -> Iterator[Batch]:
        """This worker's share of every global batch of ``order``, whose length is a multiple of ``batch_size``.

        Parameters
        ----------
        order : (S * batch_size,) int64
            Rows of S global batches, over as many epochs as wanted.
        batch_size : int
            Of the global batch.
        part : tuple of two int
            Which images of each global batch are this worker's, as of ``sample.part``.
        """
        first, last = part
        mine = order.reshape(-1, batch_size)[:, first:last].reshape(-1)
        return self._batches(mine, last - first, config)

    def evaluation_batches(self, repeats: int, batch_size: int, config: DecodeConfig) -> Iterator[Iterator[Batch]]:
        """Every ``workers``-th row, once per repeat; the shares of all workers together are each row exactly once.

        Yields
        ------
        iterator of batches of one repeat
            To be read to its end before the next.
        """
        mine = np.arange(self.rank, len(self.table), self.workers, dtype=np.int64)
        steps = -(-len(mine) // batch_size)
        # Filled up to whole batches, which are cut off again: one stream then serves all repeats.
        padded = np.resize(mine, steps * batch_size) if steps else mine
        batches = self._batches(np.tile(padded, repeats), batch_size, config)
        for _ in range(repeats):
            yield _first_rows(itertools.islice(batches, steps), len(mine))

    def _batches(self, order: npt.NDArray[np.int64], batch_size: int, config: DecodeConfig) -> Iterator[Batch]:
        """Batches of rows in ``order``, read ahead by Ray Data; they lie in the object store and cannot be written to.

        Nothing is copied in this process, which has a network to train: a batch is a part of a block.
        """
        # Each worker has two streams, for training and validation; half of the store is left to all others.
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        ahead = int(min(_AHEAD_BYTES, store / (4 * self.workers)))
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)  # PyTorch's.
        rows = _rows_per_block(config, batch_size, ahead) * _STREAM_BLOCKS
        for start in range(0, len(order), rows):
            dataset = stream(self.table, order[start : start + rows], config, batch_size, ahead)
            for block in _blocks(dataset):
                for at in range(0, len(block["row"]), batch_size):
                    yield {name: values[at : at + batch_size] for name, values in block.items()}


def _blocks(dataset: ray.data.Dataset) -> Iterator[Batch]:
    """The blocks of a stream; an error of a reading task is raised as what it was."""
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy")
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, MammorayError) else error) from None


def _first_rows(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    for batch in batches:
        yield {name: values[:rows] for name, values in batch.items()}
        rows -= len(batch["row"])


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
