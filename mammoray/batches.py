"""Cached rows to ``(B, H, W)`` batches: a worker's part of every batch, read ahead by threads of its own.

Shapes: ``N`` rows, ``B`` batch, ``H, W`` image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray.data
from ray.train import DataConfig

from mammoray.cache import load_pixels
from mammoray.config import DecodeConfig

Batch = dict[str, npt.NDArray[Any]]
# From the page cache one reads as fast (docs/log.md); the second is there for disks that let the first wait.
_THREADS = 2
_AHEAD = 8  # Batches, unless they are large.
_AHEAD_BYTES = 256 * 2**20


def read(rows: pd.DataFrame, order: npt.NDArray[np.int64], batch_size: int, config: DecodeConfig) -> Iterator[Batch]:
    """Batches of cached images in a given order; the last may be smaller.

    The reading, the unpacking and the copying are done by threads that leave Python's lock to their process.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``.
    order : (N,) int64
        Positions in ``rows``, in the order wanted; may repeat.
    batch_size : int
    config : DecodeConfig

    Yields
    ------
    dict
        ``row`` ((B,) int64, position in ``rows``) and ``image`` ((B, H, W) uint8 or uint16).

    Raises
    ------
    IngestError
        A shard cannot be read.
    """
    shards, positions = rows["shard"].to_numpy(dtype=object), rows["position"].to_numpy(dtype=np.int64)

    def load(start: int) -> Batch:
        wanted = order[start : start + batch_size]
        return {"row": wanted, "image": load_pixels(shards[wanted].tolist(), positions[wanted], config)}

    bytes_per_batch = config.height * config.width * config.depth // 8 * batch_size
    ahead = max(_THREADS, min(_AHEAD, _AHEAD_BYTES // bytes_per_batch))
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="mammoray-read")
    waiting: deque[Future[Batch]] = deque()
    try:
        for start in range(0, len(order), batch_size):
            waiting.append(pool.submit(load, start))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
        return read(self.table, mine, last - first, config)

    def evaluation_batches(self, batch_size: int, config: DecodeConfig) -> Iterator[Batch]:
        """Every ``workers``-th row; the shares of all workers together are each row exactly once."""
        mine = np.arange(self.rank, len(self.table), self.workers, dtype=np.int64)
        return read(self.table, mine, batch_size, config)


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
