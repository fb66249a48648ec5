"""Cached rows to ``(B, 1, H, W)`` batches, by Ray Data.

Shapes: ``B`` batch, ``H, W`` image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray
import ray.data
from ray.train import DataConfig

from mammoray.cache import load_pixels
from mammoray.config import DecodeConfig

Batch = dict[str, npt.NDArray[Any]]
_WINDOW_BYTES = 256 * 2**20  # Pixels that a worker holds at once, and as many that it reads ahead.
_READ_ROWS = 128  # Rows a read task loads: enough to outweigh a task's overhead of some milliseconds.


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
    """Copied out block by block: arrays that still lie in the object store would fill it with the whole window."""
    dtype = np.uint8 if config.depth == 8 else np.uint16
    window: Batch = {"row": order, "image": np.empty((len(order), config.height, config.width), dtype=dtype)}
    start = 0
    for part in stream(table, order, config).iter_batches(batch_size=None, batch_format="numpy"):
        window["image"][start : start + len(part["row"])] = part["image"]
        start += len(part["row"])
    return window


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
