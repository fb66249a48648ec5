"""A checkpoint and cached rows to class probabilities or features, by Ray Data.

Shapes: ``N`` rows, ``B`` batch, ``K`` classes, ``F`` features, ``H, W`` pixels.
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

Floats = npt.NDArray[np.float64]
_BATCH = 32
_PARTS = 4  # Tasks for each CPU or GPU, so that none waits long for the last.
_LARGEST = 64  # Batches of a task.


@functools.lru_cache(maxsize=1)
def _network(net: ray.ObjectRef, gpu: bool) -> tuple[model.DensityNet, torch.device]:
    # Ray reuses the process of a task for the next, so a worker process gets the network once.
    device = torch.device("cuda" if gpu else "cpu")
    return ray.get(net).to(device), device


@torch.no_grad()
def _forward(
    rows: pd.DataFrame, net: ray.ObjectRef, decode: DecodeConfig, gpu: bool, kind: torch.dtype | None, features: bool
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    own, device = _network(net, gpu)
    numbers = rows["row"].to_numpy()
    for batch in batches.read(rows, np.arange(len(rows), dtype=np.int64), _BATCH, decode):
        x_B1HW = model.to_unit(torch.from_numpy(batch["image"]).to(device)).unsqueeze(1)
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            outputs = _outputs(own, x_B1HW, features)
        yield {"row": numbers[batch["row"]], **{name: value.cpu().numpy() for name, value in outputs.items()}}


def _outputs(net: model.DensityNet, x_B1HW: torch.Tensor, features: bool) -> model.Tensors:
    """Logarithms of the probabilities, (B, K), and with ``features`` what they follow from, (B, F)."""
    if not features:
        return {"log": net.log_probabilities(x_B1HW)}
    x_BF = net.features(x_B1HW)
    return {"log": net.log_probabilities_of(x_BF), "features": x_BF.float()}


def _parts(rows: pd.DataFrame, gpu: bool) -> list[pd.DataFrame]:
    """The rows, numbered, in a few parts for each CPU or GPU of the cluster, of whole batches."""
    slots = max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
    size = _BATCH * min(_LARGEST, -(-len(rows) // (_PARTS * slots * _BATCH)))
    numbered = rows[["shard", "position"]].assign(row=np.arange(len(rows)))
    return [numbered.iloc[start : start + size] for start in range(0, len(rows), size)]


def predict(
    rows: pd.DataFrame, folder: Path, decode: DecodeConfig, gpu: bool = False, precision: str = "fp32"
) -> Floats:
    """Class probabilities of cached images.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``shard`` and ``position``; at least one.
    folder : Path
        Of a checkpoint.
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
    return softmax(_run(rows, folder, decode, gpu, precision, False)["log"])


def embed(
    rows: pd.DataFrame, folder: Path, decode: DecodeConfig, gpu: bool = False, precision: str = "fp32"
) -> tuple[npt.NDArray[np.float32], Floats]:
    """What the classifier sees of cached images, and what it makes of it.

    Parameters and errors are those of :func:`predict`; the network is one that
    :func:`mammoray.model.require_features` accepts.

    Returns
    -------
    features : (N, F) float32
    probabilities : (N, K) float64
        Both in the order of ``rows``.
    """
    found = _run(rows, folder, decode, gpu, precision, True)
    return found["features"], softmax(found["log"])


def _run(
    rows: pd.DataFrame, folder: Path, decode: DecodeConfig, gpu: bool, precision: str, features: bool
) -> dict[str, npt.NDArray[Any]]:
    """Outputs of the network, by name, in the order of the rows."""
    checkpoint.require_equal(folder, checkpoint.read_card(folder), {"decode": decode})
    kind = model.autocast_kind(precision)
    net = ray.put(checkpoint.load_model(folder)[0])  # Other nodes need not see the folder.
    results = ray.data.from_pandas(_parts(rows, gpu)).map_batches(
        functools.partial(_forward, net=net, decode=decode, gpu=gpu, kind=kind, features=features),
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
    order = np.argsort(np.concatenate([batch["row"] for batch in found]))
    names = [name for name in found[0] if name != "row"]
    return {name: np.concatenate([batch[name] for batch in found])[order] for name in names}


def table(rows: pd.DataFrame, p_NK: Floats, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Predictions by image: the content of predictions.parquet.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``image_id, patient_id, laterality, view, fold`` and ``target``, the index of the class, -1 where it is not
        known.
    p_NK : (N, K) float64
    class_names : tuple of str
        In the order of the model's outputs.

    Returns
    -------
    pandas.DataFrame
        These columns, with the names ``label`` and ``predicted`` of the classes, and ``p_<class>``.
    """
    names = np.array(class_names)
    target = rows["target"].to_numpy()
    about = rows[["image_id", "patient_id", "laterality", "view", "fold"]].reset_index(drop=True)
    label = pd.Series(names[target]).where(target >= 0)
    return about.assign(label=label, predicted=names[p_NK.argmax(axis=1)], **columns(p_NK, class_names))


def columns(p_NK: Floats, class_names: tuple[str, ...]) -> dict[str, Floats]:
    """Probabilities by their names in a table, ``p_<class>``."""
    return {f"p_{name}": p_NK[:, k] for k, name in enumerate(class_names)}


def parameters(folder: Path) -> int:
    """Number of weights of a checkpoint's network."""
    return model.parameters(checkpoint.load_model(folder)[0])
