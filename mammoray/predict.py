"""A checkpoint and cached rows to class probabilities, by Ray Data.

Shapes: ``N`` rows, ``B`` batch, ``K`` classes, ``H, W`` pixels.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mammoray import batches, checkpoint, model
from mammoray.config import DecodeConfig
from mammoray.evaluate import softmax

_BATCH = 32


@functools.lru_cache(maxsize=1)
def _network(folder: Path, gpu: bool) -> tuple[model.DensityNet, torch.device]:
    # Ray reuses the process of a task for the next, so a worker process loads the network once.
    device = torch.device("cuda" if gpu else "cpu")
    return checkpoint.load_model(folder)[0].to(device), device


@torch.no_grad()
def _forward(
    batch: dict[str, npt.NDArray[Any]], folder: Path, gpu: bool, kind: torch.dtype | None
) -> dict[str, npt.NDArray[Any]]:
    net, device = _network(folder, gpu)
    x_B1HW = model.to_unit(torch.from_numpy(batch["image"].copy()).to(device)).unsqueeze(1)
    with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
        log_BK = net.log_probabilities(x_B1HW)
    return {"row": batch["row"], "log": log_BK.cpu().numpy()}


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
    """
    checkpoint.require_equal(folder, checkpoint.read_card(folder), {"decode": decode})
    images = batches.stream(rows, np.arange(len(rows), dtype=np.int64), decode, _BATCH)
    forward = functools.partial(_forward, folder=folder.resolve(), gpu=gpu, kind=model.autocast_kind(precision))
    results = images.map_batches(
        forward,
        batch_size=_BATCH,
        batch_format="numpy",
        num_gpus=1 if gpu else 0,
        # Ray would end the process of a GPU task after one call, and the next would load the network again.
        max_calls=0,
    )
    parts = [(batch["row"], batch["log"]) for batch in results.iter_batches(batch_size=None, batch_format="numpy")]
    numbers = np.concatenate([n for n, _ in parts])
    return softmax(np.concatenate([log for _, log in parts])[np.argsort(numbers)])


def parameters(folder: Path) -> int:
    """Number of weights of a checkpoint's network."""
    return model.parameters(checkpoint.load_model(folder)[0])
