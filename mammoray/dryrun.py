"""What a run would do, need and take, found out without doing it: ``--dry-run``.

Counts are exact. Memory and times are estimates: a few files are decoded and a few steps done on random images, where a
worker would run, and the rest follows by proportion.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.train
import torch

from mammoray import cache, cluster, footprint, ingest, learner, sample, storage, tasks, train
from mammoray.config import Config
from mammoray.footprint import Footprint
from mammoray.learner import Arrays
from mammoray.sandbox import Sandbox
from mammoray.scale import Scale

_TRIED = 8  # Files that are decoded.
_END = "Nothing was written. Numbers in brackets are patients; what is 'about' is an estimate."
Facts = dict[str, Any]


def facts(rows: pd.DataFrame, files: Facts, config: Config, scale: Scale, done: int) -> Facts:
    """Everything that :func:`lines` says but the split; needs a connection to Ray.

    Parameters
    ----------
    rows : pandas.DataFrame
        The labelled rows of the catalog with ``fold`` and ``target``, sorted by ``image_id``.
    files : dict
        Of :func:`files`.
    done : int
        Epochs that an interrupted run in the output folder has behind it.

    Raises
    ------
    ClusterError, ConfigError, IngestError, ModelError
        What would end the run early.
    """
    training = rows[rows["fold"] == "train"]
    tasks.check(training, config.model.auxiliary)
    scaling, nodes = train.plan(scale), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = scaling.resources_per_worker
    beside = side_by_side(scale.num_workers, needs, nodes)
    targets, gpus = learner.targets_of(training, config), needs.get("GPU", 0.0)
    among = (scale.num_workers, beside, scale.cpus_per_worker)
    cost = cluster.run_with(needs["CPU"], gpus, _measure, config, targets, *among, bool(gpus))
    return {
        "files": files,
        "workers": _workers(scale, scaling, len(nodes)),
        "network": {"arch": config.model.arch, "height": config.decode.height, "width": config.decode.width},
        "cost": cost,
        **_schedule(rows, config, scale, done, cost),
    }


def _measure(config: Config, targets: Arrays, workers: int, beside: int, cpus: float, gpu: bool) -> Footprint:
    return footprint.measure(config, targets, workers, beside, torch.device("cuda" if gpu else "cpu"), cpus)


def side_by_side(workers: int, needs: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """The most workers that are on one node, Ray filling one after the other.

    Examples
    --------
    >>> side_by_side(6, {"CPU": 0.5}, [{"CPU": 2.0}, {"CPU": 1.0}])
    4
    >>> side_by_side(6, {"CPU": 1.0, "GPU": 1.0}, [{"CPU": 64.0, "GPU": 2.0}, {"CPU": 8.0}])
    2
    """
    room = [min(int(node.get(name, 0.0) / need) for name, need in needs.items() if need) for node in nodes]
    return max(1, min(workers, max(room)))


def _workers(scale: Scale, scaling: ray.train.ScalingConfig, nodes: int) -> Facts:
    total = ray.cluster_resources()
    return {
        "count": scale.num_workers,
        "least": scale.min_workers or scale.num_workers,
        "gpu": bool(scaling.use_gpu),
        "gpus_each": scaling.resources_per_worker.get("GPU", 0.0),
        "cpus_each": scaling.resources_per_worker["CPU"],
        "nodes": nodes,
        "CPUs": total.get("CPU", 0.0),
        "GPUs": total.get("GPU", 0.0),
    }


def _schedule(rows: pd.DataFrame, config: Config, scale: Scale, done: int, cost: Footprint) -> Facts:
    """Steps, and what they take; validation is before the first epoch and after each."""
    images = rows["fold"].value_counts()
    steps = sample.steps_per_epoch(int(images["train"]), config.sample.batch_size)
    left = config.train.last_epoch - done
    look = cost.look * -(-int(images["val"]) // scale.num_workers)
    epoch = steps * cost.step + look
    return {
        "steps": {
            "epoch": steps,
            "epochs": config.train.last_epoch,
            "done": done,
            "batch": config.sample.batch_size,
            "images": int(images["train"]),
        },
        "rate": {name: getattr(config.optim, name) for name in ("lr", "warmup_epochs", "schedule")},
        "kept": config.train.keep + 1,
        "seconds": {"epoch": epoch, "training": left * epoch + look * (not done)},
    }


def files(rows: pd.DataFrame, root: str, config: Config, store: str) -> Facts:
    """What the cache has and lacks, and what that would take; needs a connection to Ray.

    Parameters
    ----------
    rows : pandas.DataFrame
        The catalog's rows that a run decodes.
    root : str
        Path or URI that their ``path`` starts from.
    store : str
        Path or URI of the cache; nothing is written to it.
    """
    index = cache.read_index(cache.cache_folder(store, config.decode), tidy=False).to_pandas()
    missing = rows[~cache.file_keys(rows, root).isin(index["key"]).to_numpy()]
    tried = _try(missing, root, config)
    cores = max(1.0, ray.cluster_resources().get("CPU", 1.0))
    held = int(index.drop_duplicates("shard")["bytes"].sum())
    return {
        "all": len(rows),
        "missing": len(missing),
        **tried,
        "cores": cores,
        "seconds": tried["each"] * len(missing) / cores,
        "cache": storage.shown(store),
        "held": held,
        "then": held + round(tried["bytes"] * len(missing)),
    }


def _try(missing: pd.DataFrame, root: str, config: Config) -> Facts:
    """Decode some files, spread over the rows; mean seconds and bytes in the cache of each."""
    some = np.unique(np.linspace(0, len(missing) - 1, min(_TRIED, len(missing))).round().astype(int))
    jobs = [(storage.join(root, path), config.decode, path) for path in missing["path"].iloc[some]]
    if not jobs:
        return {"tried": 0, "failed": 0, "each": 0.0, "bytes": 0.0}
    sandbox = Sandbox(ingest.DECODE, config.ingest.limit_seconds)
    outcomes = sandbox.run([jobs[0], *jobs])
    next(outcomes)  # The child begins, and its imports are no part of the decoding.
    began = time.monotonic()
    done = [outcome.value for outcome in outcomes]
    seconds = time.monotonic() - began
    sandbox.close()
    sizes = [len(pa.compress(one["pixels"].tobytes(), "lz4_raw", asbytes=True)) for one in done if one is not None]
    return {
        "tried": len(jobs),
        "failed": len(jobs) - len(sizes),
        "each": seconds / len(jobs),
        "bytes": float(np.mean(sizes)) if sizes else 0.0,
    }


def lines(found: Facts, counts: dict[str, Any]) -> list[str]:
    """The plan for people, a fact a line.

    Parameters
    ----------
    found : dict
        Of :func:`facts`.
    counts : dict
        Of :func:`mammoray.split.counts`.
    """
    facts_of = {
        **{fold: _fold(part) for fold, part in counts["folds"].items()},
        "files": _said_files(found["files"]),
        "cache": _said_cache(found["files"]),
        "workers": _said_workers(found["workers"]),
        "network": _said_network(found["network"], found["cost"]),
        "batch": _said_batch(found["steps"]["batch"], found["workers"]["count"], found["cost"]),
        "steps": _said_steps(found["steps"]),
        "learning rate": _said_rate(found["rate"]),
        "memory": _said_memory(found["cost"]),
        "checkpoints": _said_checkpoints(found["cost"].checkpoint, found["kept"]),
        "speed": _said_speed(found["cost"], found["workers"]),
        "time": _said_time(found),
    }
    width = max(map(len, facts_of))
    return [f"{name:<{width}}  {text}" for name, text in facts_of.items()] + [_END]


def _fold(part: dict[str, Any]) -> str:
    classes = ", ".join(f"{name} {n['images']} ({n['patients']})" for name, n in part["classes"].items())
    return f"{part['images']:,} images ({part['patients']:,} patients): {classes}" if part["images"] else "no images"


def _said_files(files: Facts) -> str:
    head = f"{files['all'] - files['missing']:,} of {files['all']:,} in the cache"
    if not files["missing"]:
        return head
    failed = f"; {files['failed']} OF {files['tried']} TRIED CANNOT BE DECODED" if files["failed"] else ""
    each = f"{files['each'] * 1000:.0f} ms each, by {files['tried']} tried, on {files['cores']:g} CPUs"
    return f"{head}; {files['missing']:,} to decode: about {period(files['seconds'])} ({each}){failed}"


def _said_cache(files: Facts) -> str:
    then = f", about {size(files['then'])} then" if files["missing"] else ""
    return f"{files['cache']}: {size(files['held'])} now{then}"


def _said_workers(workers: Facts) -> str:
    fewest = f"{workers['least']} to " if workers["least"] < workers["count"] else ""
    gpus = f"{workers['gpus_each']:g} GPU and " if workers["gpu"] else ""
    each = f"with {gpus}{workers['cpus_each']:g} CPU each"
    has = ", ".join(many(workers[name], name[:-1]) for name in ("nodes", "CPUs", "GPUs"))
    return f"{fewest}{workers['count']}, {each}; the cluster has {has}"


def _said_network(network: Facts, cost: Footprint) -> str:
    part = f", of which {cost.learning:,} learn in the first epoch" if cost.learning < cost.parameters else ""
    return f"{network['arch']} on {network['height']} x {network['width']}: {cost.parameters:,} parameters{part}"


def _said_batch(images: int, workers: int, cost: Footprint) -> str:
    share = f", {cost.images} on a worker" if workers > 1 else ""
    passes = f", {cost.together} at a time" if cost.together < cost.images else ""
    return f"{images} images{share}{passes}"


def _said_steps(steps: Facts) -> str:
    done = f"; epoch {steps['done']} is done" if steps["done"] else ""
    every = many(steps["epochs"], "epoch")
    of = f"{steps['epoch']:,} an epoch of {steps['images']:,} images"
    return f"{of}, {steps['epoch'] * steps['epochs']:,} in {every}{done}"


def _said_rate(rate: Facts) -> str:
    warmup = f"after a warm-up of {many(rate['warmup_epochs'], 'epoch')}, " if rate["warmup_epochs"] else ""
    return f"{rate['lr']:g} at most, {warmup}then {rate['schedule']}"


def _said_memory(cost: Footprint) -> str:
    parts = {name: getattr(cost, name) for name in ("weights", "gradients", "optimizer", "activations")}
    said = ", ".join(f"{name} {size(n)}" for name, n in parts.items())
    return f"about {size(sum(parts.values()))} for a step of a worker: {said}"


def _said_checkpoints(one: int, kept: int) -> str:
    return f"{size(one)} each, {kept} at most: {size(one * kept)}"


def _said_speed(cost: Footprint, workers: Facts) -> str:
    where = "a GPU" if workers["gpu"] else "this machine" if workers["nodes"] == 1 else "one of the nodes"
    rate = workers["count"] * cost.images / cost.step
    return f"about {cost.step:.2g} s a step, {rate:.3g} images/s, measured on {where}"


def _said_time(found: Facts) -> str:
    seconds, decode = found["seconds"], found["files"]["seconds"]
    which = "the other epochs" if found["steps"]["done"] else "all epochs"
    decoding = f", {period(seconds['training'] + decode)} with decoding" if decode else ""
    return f"about {period(seconds['epoch'])} an epoch and {period(seconds['training'])} for {which}{decoding}"


def many(count: float, what: str) -> str:
    """A number of things.

    Examples
    --------
    >>> many(1, "node"), many(2.0, "GPU"), many(0.5, "epoch")
    ('1 node', '2 GPUs', '0.5 epochs')
    """
    return f"{count:,g} {what}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes for people.

    Examples
    --------
    >>> size(0), size(48_314_468), size(5_535_875_712)
    ('0 MB', '48 MB', '5.5 GB')
    """
    unit, length = ("GB", 1e9) if count >= 999.5e6 else ("MB", 1e6)
    return f"{_two_digits(count / length)} {unit}"


def period(seconds: float) -> str:
    """A time for people, in two digits or so.

    Examples
    --------
    >>> period(3.21), period(75), period(3600 * 5.26), period(86400 * 100)
    ('3.2 s', '1.2 min', '5.3 h', '100 days')
    """
    units = {"s": (1, 60), "min": (60, 3600), "h": (3600, 48 * 3600), "days": (86400, math.inf)}
    unit, length = next((unit, length) for unit, (length, below) in units.items() if seconds < below)
    return f"{_two_digits(seconds / length)} {unit}"


def _two_digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
