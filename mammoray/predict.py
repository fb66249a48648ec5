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

from mammoray import batches
from mammoray import model as models
from mammoray.evaluate import softmax

_BATCH = 32


@functools.lru_cache(maxsize=1)
def _network(checkpoint: Path, gpu: bool) -> tuple[models.DensityNet, torch.device]:
    # Ray reuses the process of a task for the next, so a worker process loads the network once.
    device = torch.device("cuda" if gpu else "cpu")
    return models.load_model(checkpoint)[0].to(device), device


@torch.no_grad()
def _forward(
    batch: dict[str, npt.NDArray[Any]], checkpoint: Path, gpu: bool, bf16: bool
) -> dict[str, npt.NDArray[Any]]:
    net, device = _network(checkpoint, gpu)
    x_B1HW = models.to_unit(torch.from_numpy(batch["image"].copy()).to(device)).unsqueeze(1)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        logits_BK = net(x_B1HW)
    return {"row": batch["row"], "logits": logits_BK.float().cpu().numpy()}


def predict(rows: pd.DataFrame, checkpoint: Path, gpu: bool = False, bf16: bool = False) -> npt.NDArray[np.float64]:
    """Class probabilities of cached images.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``, decoded with the checkpoint's own decode settings.
    checkpoint : Path
        Folder of a checkpoint, seen by every node.
    gpu : bool
        Whether the tasks ask for a GPU.
    bf16 : bool
        Whether to compute as a training with ``--precision bf16`` evaluates.

    Returns
    -------
    (N, K) float64
        In the order of ``rows``.
    """
    config = models.load_card(checkpoint).decode
    images = batches.stream(rows, np.arange(len(rows), dtype=np.int64), config)
    forward = functools.partial(_forward, checkpoint=checkpoint.resolve(), gpu=gpu, bf16=bf16)
    results = images.map_batches(
        forward,
        batch_size=_BATCH,
        batch_format="numpy",
        num_gpus=1 if gpu else 0,
        # Ray would end the process of a GPU task after one call, and the next would load the network again.
        max_calls=0,
    )
    parts = [(batch["row"], batch["logits"]) for batch in results.iter_batches(batch_size=None, batch_format="numpy")]
    numbers = np.concatenate([n for n, _ in parts])
    return softmax(np.concatenate([logits for _, logits in parts])[np.argsort(numbers)])


def parameters(checkpoint: Path) -> int:
    """Number of trainable weights of a checkpoint's network."""
    return sum(p.numel() for p in models.load_model(checkpoint)[0].parameters())
