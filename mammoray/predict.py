"""A checkpoint and cached rows to class probabilities, by Ray Data.

Shapes: ``N`` rows, ``B`` batch, ``K`` classes, ``H, W`` pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray.data
import torch

from mammoray import ingest
from mammoray import model as models
from mammoray.evaluate import softmax

_BATCH = 32


class _Predictor:
    """The actor that holds the network."""

    def __init__(self, checkpoint: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.net = models.load_model(checkpoint)[0].to(self.device)

    @torch.no_grad()
    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        x_B1HW = models.to_unit(torch.from_numpy(batch["image"].copy()).to(self.device)).unsqueeze(1)
        return {"row": batch["row"], "logits": self.net(x_B1HW).float().cpu().numpy()}


def predict(rows: pd.DataFrame, checkpoint: Path, gpu: bool = False) -> npt.NDArray[np.float64]:
    """Class probabilities of cached images.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``, decoded with the checkpoint's own decode settings.
    checkpoint : Path
        Folder of a checkpoint, seen by every node.
    gpu : bool
        Whether the actor asks for a GPU.

    Returns
    -------
    (N, K) float64
        In the order of ``rows``.
    """
    config = models.load_card(checkpoint).decode
    images = ingest.stream(rows, np.arange(len(rows), dtype=np.int64), config)
    # Without restarts: an actor that dies ends the run, and the same command goes on from the finished training.
    results = images.map_batches(
        _Predictor,
        fn_constructor_args=(checkpoint.resolve(),),
        batch_size=_BATCH,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_gpus=1 if gpu else 0,
        ray_remote_args_fn=lambda: {"max_restarts": 0},
    )
    parts = [(batch["row"], batch["logits"]) for batch in results.iter_batches(batch_size=None, batch_format="numpy")]
    numbers = np.concatenate([n for n, _ in parts])
    return softmax(np.concatenate([logits for _, logits in parts])[np.argsort(numbers)])


def parameters(checkpoint: Path) -> int:
    """Number of trainable weights of a checkpoint's network."""
    return sum(p.numel() for p in models.load_model(checkpoint)[0].parameters())
