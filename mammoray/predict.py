"""A checkpoint and cached rows to class probabilities, by Ray Data.

Shapes: ``N`` rows, ``B`` batch, ``K`` classes, ``H, W`` pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray
import ray.data
import torch

from mammoray import batches, checkpoint, model
from mammoray.config import DecodeConfig
from mammoray.errors import MammorayError
from mammoray.evaluate import softmax

_BATCH = 32
_PARTS = 4  # Tasks for each CPU or GPU, so that none waits long for the last.
_LARGEST = 64  # Batches of a task.


@functools.lru_cache(maxsize=1)
def _network(folder: Path, gpu: bool) -> tuple[model.DensityNet, torch.device]:
    # Ray reuses the process of a task for the next, so a worker process loads the network once.
    device = torch.device("cuda" if gpu else "cpu")
    return checkpoint.load_model(folder)[0].to(device), device


@torch.no_grad()
def _forward(
    rows: pd.DataFrame, folder: Path, decode: DecodeConfig, gpu: bool, kind: torch.dtype | None
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    net, device = _network(folder, gpu)
    numbers = rows["row"].to_numpy()
    for batch in batches.read(rows, np.arange(len(rows), dtype=np.int64), _BATCH, decode):
        x_B1HW = model.to_unit(torch.from_numpy(batch["image"]).to(device)).unsqueeze(1)
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            log_BK = net.log_probabilities(x_B1HW)
        yield {"row": numbers[batch["row"]], "log": log_BK.cpu().numpy()}


def _parts(rows: pd.DataFrame, gpu: bool) -> list[pd.DataFrame]:
    """The rows, numbered, in a few parts for each CPU or GPU of the cluster, of whole batches."""
    slots = max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
    size = _BATCH * min(_LARGEST, -(-len(rows) // (_PARTS * slots * _BATCH)))
    numbered = rows[["shard", "position"]].assign(row=np.arange(len(rows)))
    return [numbered.iloc[start : start + size] for start in range(0, len(rows), size)]


def predict(
    rows: pd.DataFrame, folder: Path, decode: DecodeConfig, gpu: bool = False, precision: str = "fp32"
) -> npt.NDArray[np.float64]:
    """Class probabilities of cached images.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``.
    folder : Path
        Of a checkpoint, seen by every node.
    decode : DecodeConfig
        How the rows were decoded.
    gpu : bool
        Whether the tasks ask for a GPU.
    precision : str
        Arithmetic of the forward pass, as of ``recipe.SpeedConfig``.

    Returns
    -------
    (N, K) float64
        In the order of ``rows``.

    Raises
    ------
    CheckpointError
        It cannot be read, or was trained on images that were decoded in another way.
    IngestError
        A shard cannot be read.
    """
    checkpoint.require_equal(folder, checkpoint.read_card(folder), {"decode": decode})
    results = ray.data.from_pandas(_parts(rows, gpu)).map_batches(
        functools.partial(
            _forward, folder=folder.resolve(), decode=decode, gpu=gpu, kind=model.autocast_kind(precision)
        ),
        batch_size=None,
        batch_format="pandas",
        num_gpus=1 if gpu else 0,
        # Ray would end the process of a GPU task after one call, and the next would load the network again.
        max_calls=0,
    )
    results.context.enable_progress_bars = False
    results.context.raise_original_map_exception = True  # Ray Data's own wrapper loses what it wraps.
    try:
        found = list(results.iter_batches(batch_size=None, batch_format="numpy"))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, MammorayError) else error) from None
    parts = [(batch["row"], batch["log"]) for batch in found]
    numbers = np.concatenate([n for n, _ in parts])
    return softmax(np.concatenate([log for _, log in parts])[np.argsort(numbers)])


def parameters(folder: Path) -> int:
    """Number of weights of a checkpoint's network."""
    return model.parameters(checkpoint.load_model(folder)[0])
