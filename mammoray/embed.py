"""What a trained network sees in images, as a table, and classic baselines on it: ``mammoray embed``.

It writes features.parquet, a row per image, embed.json, and with labels baselines.json; failures.csv and audit.csv as
:mod:`mammoray.apply` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mammoray import apply, baselines, checkpoint, claim, cluster, evaluate, model, predict
from mammoray.apply import Ready, Request
from mammoray.config import CLASS_NAMES, Classes
from mammoray.errors import SplitError
from mammoray.recipe import EvaluateConfig

Say = Callable[[str], None]
FILES = ("features.parquet", "embed.json", "baselines.json")
_ABOUT = ("image_id", "patient_id", "laterality", "view", "label", "fold")


def run(request: Request, config: EvaluateConfig, seed: int, say: Say = print) -> dict[str, Any]:
    """Write the features of all images of a folder, and judge classic classifiers on them where there are labels.

    Parameters
    ----------
    request : Request
    config : EvaluateConfig
        How the classifiers are judged.
    seed : int
        Of the split, where the network's own does not serve, and of the resamples.
    say : callable

    Returns
    -------
    dict
        The content of embed.json.

    Raises
    ------
    MammorayError
        As of :func:`mammoray.apply.opened` and :func:`mammoray.apply.decode`; or the network has no features that its
        classifier takes as they are.
    """
    with apply.opened(request, FILES, say) as ready:
        return _run(ready, config, seed, say)


def _run(ready: Ready, config: EvaluateConfig, seed: int, say: Say) -> dict[str, Any]:
    request = ready.request
    net, card = checkpoint.load_model(ready.origin.folder)
    model.require_features(net, card.model.arch, "Use a checkpoint of another architecture.")
    with cluster.connect(request.where.address):
        decoded = apply.decode(ready, say)
        rows = decoded.rows.sort_values("image_id", ignore_index=True)
        say(f"embed: {len(rows)} images")
        gpu = apply.use_gpu(request.how)
        x_NF, p_NK = predict.embed(rows, ready.origin.folder, card.decode, gpu, request.how.precision)
    predictions = predict.table(rows, p_NK, CLASS_NAMES[card.classes])
    write(predictions, x_NF, request.outdir / FILES[0])
    known = apply.facts(ready, decoded) | {"features": x_NF.shape[1]}
    known["baselines"] = _baselines(rows, x_NF, p_NK, card.classes, config, seed, request.outdir)
    claim.write_json(request.outdir / FILES[1], known)
    return known


def write(about: pd.DataFrame, x_NF: npt.NDArray[np.float32], path: Path) -> None:
    """Write features.parquet: image_id, patient_id, laterality, view, label, fold, and f_0 to f_<F - 1>, float32."""
    table = pa.Table.from_pandas(about[list(_ABOUT)], preserve_index=False)
    for i in range(x_NF.shape[1]):
        table = table.append_column(f"f_{i}", pa.array(np.ascontiguousarray(x_NF[:, i])))
    pq.write_table(table, path)


def _baselines(
    rows: pd.DataFrame,
    x_NF: npt.NDArray[np.float32],
    p_NK: npt.NDArray[np.float64],
    classes: Classes,
    config: EvaluateConfig,
    seed: int,
    outdir: Path,
) -> dict[str, Any]:
    """Write baselines.json; by what split they were judged, or why there are none."""
    (outdir / FILES[2]).unlink(missing_ok=True)
    labelled = (rows["target"] >= 0).to_numpy()
    if not labelled.any():
        return {"split": None, "why": "No image has a label."}
    mine = rows[labelled].reset_index(drop=True)
    try:
        fold, words = baselines.folds(mine, classes, seed)
        names = CLASS_NAMES[classes]
        metrics = baselines.judge(mine.assign(fold=fold), x_NF[labelled], p_NK[labelled], names, config, seed)
    except SplitError as error:
        return {"split": None, "why": str(error)}
    claim.write_json(outdir / FILES[2], metrics)
    return {"split": words, "patient_kappa": _kappas(metrics)}


def _kappas(metrics: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {
        name: {fold: evaluate.with_interval(levels["patient"]["kappa"]) for fold, levels in judged["folds"].items()}
        for name, judged in metrics.items()
    }


def headline(facts: dict[str, Any]) -> list[str]:
    """Lines for people of the content of embed.json."""
    lines = [f"{facts['features']} features of each of {facts['decoded']} images, {facts['failed']} failed"]
    found = facts["baselines"]
    if found["split"] is None:
        return [*lines, f"no baselines: {found['why']}"]
    table = pd.DataFrame(found["patient_kappa"]).T.to_string().splitlines()
    return [*lines, f"quadratic kappa by patient, by {found['split']}:", *table]
