"""Cached images for a run's report: which ones, and what training makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F

from mammoray import augment, cache, evaluate, model
from mammoray.config import Config

_TALLEST = 256  # Pixels of a variant's height that are kept: a report shows them small.


def spread(rows: pd.DataFrame, count: int) -> list[int]:
    """Index of ``count`` rows, dealt over the classes in turn; deterministic.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``image_id`` and ``label``; at most all of them are taken.
    """
    turn = rows.sort_values("image_id").groupby("label").cumcount()
    return [int(i) for i in turn.sort_values(kind="stable").index[:count]]


def judged(rows: pd.DataFrame, predictions: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Judged images for the report: half of them wrong where there are as many; the content of examples.parquet.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``shard, position`` of each prediction, in the same order.
    predictions : pandas.DataFrame
        ``image_id, fold, label, predicted`` and ``p_<class>``.
    """
    test = predictions[predictions["fold"] == evaluate.judged(predictions["fold"].unique())]
    wrong = spread(test[test["label"] != test["predicted"]], config.evaluate.examples // 2)
    right = spread(test[test["label"] == test["predicted"]], config.evaluate.examples - len(wrong))
    chosen = predictions.loc[[*wrong, *right]]
    where = rows.loc[chosen.index]
    images = cache.load_pixels(where["shard"].tolist(), where["position"].to_numpy(), config.decode)
    shown = (images >> (config.decode.depth - 8)).astype(np.uint8)
    return chosen[["image_id", "fold", "label", "predicted"]].assign(
        probability=[row[f"p_{row['predicted']}"] for _, row in chosen.iterrows()],
        height=config.decode.height,
        width=config.decode.width,
        pixels=[image.tobytes() for image in shown],
    )


def augmented(rows: pd.DataFrame, config: Config, images: int = 4, variants: int = 5) -> pd.DataFrame:
    """A few training images as decoded and as training varies them; the content of augmented.parquet.

    The variants are drawn as those of epoch 0, in which nothing is trained, and mixed with nothing.

    Parameters
    ----------
    rows : pandas.DataFrame
        Training rows of the cache: ``image_id, label, shard, position``.
    config : Config
        Its sections augment and decode, and the seed, count.
    images, variants : int
        How many of each; with ``augment=False`` there are no variants.

    Returns
    -------
    pandas.DataFrame
        ``image_id``; ``variant``, 0 being as decoded; ``height``, ``width``; ``pixels``, row-major bytes of uint8. Tall
        images are reduced.

    Raises
    ------
    IngestError
        A shard cannot be read.
    """
    chosen = rows.loc[spread(rows, images)]
    variants = variants if config.augment.augment else 0
    stored = cache.load_pixels(chosen["shard"].tolist(), chosen["position"].to_numpy(), config.decode)
    x_B1HW = model.to_unit(torch.from_numpy(stored)).unsqueeze(1)
    drawn = augment.draw(len(chosen) * variants, config.augment, config.seed, 0, 0)
    varied = augment.apply(x_B1HW.repeat_interleave(variants, dim=0), drawn)
    # Each image's own row: as decoded, then its variants.
    together = torch.cat([x_B1HW[:, None], varied.view(len(chosen), variants, *x_B1HW.shape[1:])], dim=1)
    shown = _small(together.flatten(0, 1))
    return pd.DataFrame(
        {
            "image_id": chosen["image_id"].repeat(variants + 1).to_numpy(),
            "variant": np.tile(np.arange(variants + 1), len(chosen)),
            "height": shown.shape[1],
            "width": shown.shape[2],
            "pixels": [image.tobytes() for image in shown],
        }
    )


def _small(x_B1HW: torch.Tensor) -> npt.NDArray[Any]:
    """Images for the eye, (B, h, w) uint8, at most ``_TALLEST`` high."""
    height, width = x_B1HW.shape[2:]
    if height > _TALLEST:
        x_B1HW = F.interpolate(x_B1HW, (_TALLEST, max(1, width * _TALLEST // height)), mode="area")
    shown: npt.NDArray[Any] = x_B1HW[:, 0].mul(255).round().to(torch.uint8).numpy()
    return shown
