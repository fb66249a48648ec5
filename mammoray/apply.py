"""A trained network on images: ``mammoray predict`` and ``mammoray evaluate``, and what ``embed`` shares with them.

What the network needs to see, its checkpoint knows: classes, decode settings and architecture come from its card.
``predict`` takes any folder of images and writes scores by image, breast and patient; ``evaluate`` takes labelled ones
and writes what the scores are worth. Both write failures.csv, a row per file that did not decode, and audit.csv, what
was left out and why.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from mammoray import (
    __version__,
    audit,
    catalog,
    claim,
    cluster,
    evaluate,
    ingest,
    inventory,
    labels,
    origin,
    outputs,
    predict,
    prepare,
    storage,
)
from mammoray.config import NOTICE, AuditConfig, Config, DataConfig, IngestConfig
from mammoray.errors import CatalogError, ClusterError, IngestError
from mammoray.origin import Origin
from mammoray.plain import replace, to_dict
from mammoray.recipe import ApplyConfig, EvaluateConfig
from mammoray.scale import Where
from mammoray.storage import Place

Say = Callable[[str], None]
_SHARED = ("failures.csv", "audit.csv", "audit.json")
SCORES = ("predictions", "breasts", "patients")
"""Tables of scores, each as .parquet and as .csv."""
_PREDICT = (*(f"{name}.{kind}" for name in SCORES for kind in ("parquet", "csv")), "predict.json")
_EVALUATE = ("predictions.parquet", "metrics.json", "evaluate.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A network, and what to apply it to; paths as every node of the cluster sees them."""

    checkpoint: str
    """Path or URI of the folder of a run or of a checkpoint."""
    csv: Place | None
    dicom_root: Place
    outdir: Path
    data: DataConfig
    ingest: IngestConfig
    how: ApplyConfig
    where: Where


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """What is known before anything is decoded."""

    request: Request
    origin: Origin
    config: Config
    """Of the checkpoint's card, as far as it says."""
    data: catalog.Catalog
    rows: pd.DataFrame
    """Those of the catalog that the network may be applied to, with ``fold`` and ``target``, -1 without a label."""
    limits: tuple[str, ...]


@contextlib.contextmanager
def opened(request: Request, own: tuple[str, ...], say: Say, labelled: bool = False) -> Iterator[Ready]:
    """Read checkpoint and catalog, choose the rows, and take the output folder, for the time of a ``with`` block.

    Parameters
    ----------
    request : Request
    own : tuple of str
        Files that the verb writes, beside those that all of them write.
    say : callable
    labelled : bool
        Take only rows with a label, and a layout that has labels.

    Raises
    ------
    MammorayError
        The checkpoint or the data cannot be read, do not go together, or the output folder holds something else.
    """
    with origin.opened(request.checkpoint) as found:
        ready = _read(request, found, say, labelled)
        with outputs.written(request.outdir, (*_SHARED, *own), request.where.storage, alone=True):
            yield ready


def _read(request: Request, found: Origin, say: Say, labelled: bool) -> Ready:
    card = found.card
    say(f"checkpoint: {card.model.arch}, epoch {card.epoch}, classes {card.classes}, weights {found.digest}")
    config = Config(classes=card.classes, decode=card.decode, data=request.data, ingest=request.ingest)
    config = prepare.shared(config, request.where)
    data = prepare.read_catalog(request.csv, request.dicom_root, config, say, unlabelled=not labelled)
    rows = data.rows[data.rows["label"].notna()] if labelled else data.rows
    if rows.empty:
        remedy = "Give --csv or --label-column, or use predict."
        where, found_none = storage.shown(data.root), f"none for {len(data.rows)} images"
        raise CatalogError(where, "labels to judge by", found_none, remedy)
    rows = origin.choose(rows.assign(fold=origin.folds(rows, found)), found, request.how.seen)
    rows = rows.assign(target=_targets(rows, config)).sort_values("image_id", ignore_index=True)
    limits = (*data.limits, *origin.limits(found, data.grouped_by))
    for limit in limits[len(data.limits) :]:
        say(f"limit: {limit}")
    return Ready(request=request, origin=found, config=config, data=data, rows=rows, limits=limits)


def _targets(rows: pd.DataFrame, config: Config) -> Any:
    known = rows["label"].notna().to_numpy()
    targets = np.full(len(rows), -1)
    targets[known] = labels.class_index(rows.loc[known, "label"], config.classes)
    return targets


def decode(ready: Ready, say: Say, enough: bool = True) -> ingest.Decoded:
    """Decode the rows, and write failures.csv and what was left out. Needs a connection to Ray.

    Raises
    ------
    IngestError
        None decoded, or, with ``enough``, fewer than ``--min-decoded``; the files are written before.
    """
    request = ready.request
    decoded = prepare.decode(ready.rows, ready.data.root, request.outdir, ready.config, say)
    decoded.failures.to_csv(request.outdir / _SHARED[0], index=False)
    audit.write((*ready.data.findings, *audit.of_failures(decoded.failures)), request.outdir)
    if enough:
        ingest.check_enough(decoded, request.ingest)
    if decoded.rows.empty:
        found = f"none of {len(ready.rows)}"
        remedy = "failures.csv in the output folder says why, file by file."
        raise IngestError("the decoded files", "at least one", found, remedy)
    return decoded


def use_gpu(how: ApplyConfig) -> bool:
    """Whether the network runs on GPUs. Needs a connection to Ray.

    Raises
    ------
    ClusterError
        They are asked for, and there is none.
    """
    there = ray.cluster_resources().get("GPU", 0.0) >= 1
    if how.gpu == "yes" and not there:
        raise ClusterError("the Ray cluster", "a GPU (--gpu yes)", "none", "Use --gpu auto or no.")
    return there and how.gpu != "no"


def facts(ready: Ready, decoded: ingest.Decoded) -> dict[str, Any]:
    """What every summary has: versions, checkpoint, counts, limits."""
    card = ready.origin.card
    by_fold = decoded.rows.groupby("fold")["patient_id"].agg(["size", "nunique"])
    return {
        "notice": NOTICE,
        "versions": {"mammoray": __version__, **{n: importlib.metadata.version(n) for n in ("ray", "torch", "timm")}},
        "checkpoint": {
            "weights": ready.origin.digest,
            "split_digest": card.split_digest,
            "epoch": card.epoch,
            "arch": card.model.arch,
            "classes": card.classes,
            "decode": to_dict(card.decode),
        },
        "layout": ready.data.layout,
        "grouped_by": ready.data.grouped_by,
        "images": len(ready.rows),
        "decoded": len(decoded.rows),
        "failed": len(decoded.failures),
        "folds": {str(fold): {"images": int(n), "patients": int(m)} for fold, n, m in by_fold.itertuples()},
        "seen": ready.request.how.seen,
        "limits": list(ready.limits),
    }


def score(request: Request, average: str, say: Say = print) -> dict[str, Any]:
    """Predict every image of a folder, and from them every breast whose side is known, and every patient.

    Parameters
    ----------
    request : Request
    average : {"images", "views"}
        As of :class:`mammoray.recipe.EvaluateConfig`.
    say : callable

    Returns
    -------
    dict
        The content of predict.json.

    Raises
    ------
    MammorayError
        As of :func:`opened` and :func:`decode`. A file that does not decode is only listed.
    """
    with opened(request, _PREDICT, say) as ready:
        return _score(ready, average, say)


def _score(ready: Ready, average: str, say: Say) -> dict[str, Any]:
    request = ready.request
    with cluster.connect(request.where.address):
        ready = replace(ready, rows=_with_sides(ready.rows, ready.data.root))
        decoded = decode(ready, say, enough=False)
        rows = decoded.rows.sort_values("image_id", ignore_index=True)
        say(f"predict: {len(rows)} images")
        p_NK = predict.predict(
            rows, ready.origin.folder, ready.config.decode, use_gpu(request.how), request.how.precision
        )
    names = ready.config.class_names
    images = predict.table(rows, p_NK, names)
    views = evaluate.side_and_view(images) if average == "views" else None
    sided = images["laterality"].str.upper().isin(["L", "R"]).to_numpy()
    tables = {
        "predictions": images,
        "breasts": _means(images[sided], ["patient_id", "laterality"], views, names),
        "patients": _means(images, ["patient_id"], views, names),
    }
    for name, table in tables.items():
        table.to_parquet(request.outdir / f"{name}.parquet", index=False)
        table.to_csv(request.outdir / f"{name}.csv", index=False)
    known = facts(ready, decoded)
    unsided = int((~sided).sum())
    if unsided:
        known["limits"].append(f"The side of {unsided} images is not known; they are in no breast's score.")
    known |= {"average": average, "patients": len(tables["patients"]), "breasts": len(tables["breasts"])}
    claim.write_json(request.outdir / "predict.json", known)
    return known


def _with_sides(rows: pd.DataFrame, root: str) -> pd.DataFrame:
    """Side and view by the files' headers, where table and layout do not say them. Needs a connection to Ray."""
    lacking = (rows["laterality"] == "") | (rows["view"] == "")
    if not lacking.any():
        return rows
    heads = inventory.take(rows[lacking], root, AuditConfig())
    filled = rows.copy()
    for name in ("laterality", "view"):
        said = pd.Series(heads[f"head_{name}"].to_numpy(), index=rows.index[lacking]).reindex(rows.index)
        filled[name] = rows[name].where(rows[name] != "", said)
    return filled


def _means(images: pd.DataFrame, keys: list[str], views: pd.Series | None, names: tuple[str, ...]) -> pd.DataFrame:
    """One row per group: its keys, fold and count of images, and the mean probabilities."""
    probabilities = [f"p_{name}" for name in names]
    first = images.groupby(keys, sort=True, as_index=False).agg(fold=("fold", "first"), images=("image_id", "size"))
    if images.empty:
        return first.assign(predicted="", **dict.fromkeys(probabilities, 0.0))
    groups = images.groupby(keys, sort=True).ngroup()
    of_images = None if views is None else views.loc[images.index]
    _, means = evaluate.group_means(groups, images[probabilities].to_numpy(dtype=np.float64), of_images)
    predicted = np.array(names)[means.argmax(axis=1)]
    return first.assign(predicted=predicted, **predict.columns(means, names))


def judge(request: Request, config: EvaluateConfig, seed: int, say: Say = print) -> dict[str, Any]:
    """Predict labelled images and judge the predictions, those of each fold for themselves.

    Parameters
    ----------
    request : Request
    config : EvaluateConfig
    seed : int
        Of the resamples.
    say : callable

    Returns
    -------
    dict
        The content of metrics.json.

    Raises
    ------
    MammorayError
        As of :func:`opened`, :func:`decode` and :func:`mammoray.evaluate.judge`.
    """
    with opened(request, _EVALUATE, say, labelled=True) as ready:
        return _judge(ready, config, seed, say)


def _judge(ready: Ready, config: EvaluateConfig, seed: int, say: Say) -> dict[str, Any]:
    request = ready.request
    if config.breasts:
        evaluate.breasts_of(ready.rows)
    with cluster.connect(request.where.address):
        decoded = decode(ready, say)
        rows = decoded.rows.sort_values("image_id", ignore_index=True)
        say(f"evaluate: {len(rows)} images")
        p_NK = predict.predict(
            rows, ready.origin.folder, ready.config.decode, use_gpu(request.how), request.how.precision
        )
    outdir, names = request.outdir, ready.config.class_names
    predictions = predict.table(rows, p_NK, names)
    predictions.to_parquet(outdir / "predictions.parquet", index=False)
    metrics = evaluate.judge(predictions, names, config, seed)
    metrics["possible_leak"] = ready.data.leak
    metrics["limits"] = list(ready.limits)
    claim.write_json(outdir / "metrics.json", metrics)
    claim.write_json(outdir / "evaluate.json", facts(ready, decoded))
    return metrics


def headline(metrics: dict[str, Any]) -> list[str]:
    """A table for people of the content of metrics.json: each fold, by image and by patient, and what to know."""
    rows = {
        (fold, level): {
            "n": values["n"],
            **{name: evaluate.with_interval(values[name]) for name in ("kappa", "accuracy", "auc")},
            "commonest class": f"{values['majority_accuracy']:.3f}",
        }
        for fold, levels in metrics["folds"].items()
        for level, values in levels.items()
    }
    lines: list[str] = pd.DataFrame.from_dict(rows, orient="index").to_string().splitlines()
    if set(metrics["folds"]) & set(origin.SEEN):
        lines.append("train and val: patients that the network has learned from or was chosen by; not what it can do")
    if metrics.get("possible_leak"):
        lines.append(f"POSSIBLY LEAKING: {metrics['possible_leak']}")
    return lines
