"""Training fed from the cache against the same steps on one batch in memory: ``python benchmarks/train.py``.

Fed and pinned take turns, some steps each, in a Ray worker that learns as a training worker does (``learner.step``):
images/s of both as medians of rounds, and their ratio. On CPUs with a network that computes for long (test_resnet,
160 x 128, one thread, so that there is a core to read with); on a GPU with efficientnet_b0 and convnext_tiny at
512 x 384, bf16, channels_last, with the GPU's utilisation.

Then real trainings (``train.fit``): two workers on two cores against one on one core, and the memory of workers and
object store by epoch.

``--images N`` (1536), ``--steps N`` a turn (24), ``--rounds N`` (7), ``--epochs N`` of the trainings (6), ``--gpu``.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import ray
import torch
from memory import own_bytes  # Beside this file.
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from mammoray import cache, catalog, learner, sample, storage, synth, train
from mammoray.batches import Shard
from mammoray.config import Config, DecodeConfig, SynthConfig
from mammoray.decode import decode
from mammoray.model import DENSITY
from mammoray.plain import replace
from mammoray.recipe import ModelConfig, OptimConfig, SampleConfig, SpeedConfig, TrainConfig
from mammoray.scale import Scale

BATCH = 32
DISTINCT = 48  # Files that are decoded; the cache repeats them.
ON_CPU = Config(
    decode=DecodeConfig(height=160, width=128),
    sample=SampleConfig(batch_size=BATCH),
    model=ModelConfig(arch="test_resnet", pretrained=False),
)
ON_GPU = replace(
    ON_CPU,
    decode=DecodeConfig(),
    sample=SampleConfig(batch_size=64),
    speed=SpeedConfig(precision="bf16", channels_last=True, fused=True),
)
GPU_NETWORKS = ("efficientnet_b0", "convnext_tiny")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 1536), ("steps", 24), ("rounds", 7), ("epochs", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        for config in (
            [replace(ON_GPU, model=ModelConfig(arch=arch, pretrained=False)) for arch in GPU_NETWORKS]
            if given.gpu
            else [ON_CPU]
        ):
            rows = cached(folder, config.decode, given.images)
            remote = ray.remote(num_cpus=1, num_gpus=1 if given.gpu else 0)(fed_and_pinned)
            show(config, ray.get(remote.remote(rows, config, given.steps, given.rounds)))
        ray.shutdown()
        if not given.gpu:
            trainings(folder, rows, given.epochs)


def cached(folder: Path, config: DecodeConfig, images: int) -> pd.DataFrame:
    """Rows of a new cache of synthetic mammograms, four fifths of them for training."""
    data = folder / "data"
    if not data.exists():
        synth.write(data, SynthConfig(patients=DISTINCT // 4, height=1024, width=832), 0)
    found = catalog.build(data / "train.csv", data)
    rows = found.rows.head(DISTINCT)
    pixels = [decode(storage.join(found.root, path), config, path).pixels.tobytes() for path in rows["path"]]
    store = cache.cache_folder(str(folder / "cache"), config)
    cache.make_folder(store)
    parts = []
    for start in range(0, images, 64):
        numbers = np.arange(start, min(start + 64, images))
        records = ({"key": f"{n:08d}", "pixels": pixels[n % len(pixels)], "seconds": 0.0} for n in numbers)
        parts.append(cache.write_shard(store, records).to_pandas())
    index = pd.concat(parts, ignore_index=True)
    own = rows.iloc[np.arange(images) % len(rows)].reset_index(drop=True)
    return pd.DataFrame(
        {
            "image_id": index["key"],
            "patient_id": index["key"],
            "target": own["label"].map({name: k for k, name in enumerate("ABCD")}),
            "fold": np.where(np.arange(images) % 5 == 0, "val", "train"),
            "shard": cache.shard_paths(store, index["shard"]),
            "position": index["position"].astype("int64"),
        }
    )


def fed_and_pinned(rows: pd.DataFrame, config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Images/s of steps whose batches come from the cache, and of steps on one batch, in turn."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    targets = {DENSITY: rows["target"].to_numpy()}
    own = learner.make(config, learner.blank(config), targets, device)
    learner.begin_epoch(own, 1)
    batches = feed(rows, config, (steps * rounds + 3) * 2)
    pinned = {name: np.array(values) for name, values in next(batches).items()}
    first = time.perf_counter() - started
    number = 0

    def turn(fed: bool) -> float:
        nonlocal number
        began = time.perf_counter()
        for _ in range(steps):
            learner.step(own, next(batches) if fed else pinned, 1, number, 1e-4)
            number += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        return steps * config.sample.batch_size / (time.perf_counter() - began)

    turn(False)  # Warm.
    busy = Utilisation()
    figures: dict[str, list[float]] = {"fed": [], "pinned": []}
    for _ in range(rounds):
        for name, speeds in figures.items():
            speeds.append(turn(name == "fed"))
    return {**figures, "first": first, "busy": busy.end()}


def feed(rows: pd.DataFrame, config: Config, steps: int) -> Iterator[dict[str, Any]]:
    """Batches of as many epochs as there are steps for."""
    labels, size = rows["target"].to_numpy(), config.sample.batch_size
    weights = np.full(len(rows), 1 / len(rows))
    epochs = -(-steps // sample.steps_per_epoch(len(rows), size))
    order = np.concatenate([sample.epoch_order(labels, weights, size, 0, epoch) for epoch in range(epochs)])
    return Shard(table=rows, rank=0, workers=1).training_batches(order, size, (0, size), config.decode)


class Utilisation:
    """Share of the time in which the GPU computes, as nvidia-smi says it; None without a GPU."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        if torch.cuda.is_available():
            self.thread.start()

    def _look(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self.ended.wait(0.2):
            self.seen.append(float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]))

    def end(self) -> float | None:
        """Median percentage."""
        self.ended.set()
        return statistics.median(self.seen) if self.seen else None


def show(config: Config, figures: dict[str, Any]) -> None:
    """Print a comparison."""
    fed, pinned = (statistics.median(figures[name]) for name in ("fed", "pinned"))
    ratios = [a / b for a, b in zip(figures["fed"], figures["pinned"], strict=True)]
    size = f"{config.decode.height} x {config.decode.width}, batch {config.sample.batch_size}, {config.speed.precision}"
    print(
        f"{config.model.arch}, {size}: steps fed from the cache {fed:.1f} images/s, pinned batch {pinned:.1f} images/s"
    )
    print(f"  ratio {fed / pinned:.3f} of the medians, {statistics.median(ratios):.3f} paired")
    print(f"  time to the first batch, network included: {figures['first']:.2f} s")
    if figures["busy"] is not None:
        print(f"  GPU utilisation: {figures['busy']:.0f} %")


# Real trainings ---------------------------------------------------------------------------------------------------


def trainings(folder: Path, rows: pd.DataFrame, epochs: int) -> None:
    """Scaling from one worker on a core to two on two, each with a Ray of its own, and memory by epoch."""
    rows.to_parquet(folder / "rows.parquet")
    speeds = {}
    for workers in (1, 2):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=confine, initargs=(workers,)) as pool:
            records, lines = pool.submit(training, folder, workers, epochs).result()
        later = records[2:]  # The first epoch has the start of everything in it.
        speeds[workers] = statistics.median(r["images_per_second"] for r in later)
        waited = 100 * statistics.median(r["data_seconds"] / r["seconds"] for r in later)
        print(f"training, {workers} workers on as many cores: {speeds[workers]:.1f} images/s, {waited:.1f} % waiting")
        print("  by epoch: " + "; ".join(lines), flush=True)
    print(f"scaling efficiency of 2 workers: {speeds[2] / speeds[1] / 2:.2f}")


def confine(cores: int) -> None:
    """Keep this process, and all that it starts, on so many cores."""
    os.sched_setaffinity(0, set(range(cores)))


def training(folder: Path, workers: int, epochs: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Train on the cached rows; history and memory by epoch."""
    config = replace(ON_CPU, optim=OptimConfig(lr=1e-4), train=TrainConfig(epochs=epochs, trackers=()))
    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    memory = Memory()
    rows = pd.read_parquet(folder / "rows.parquet")
    fitted = train.fit(rows, "benchmark", config, Scale(num_workers=workers), folder / f"run-{workers}", memory.note)
    ray.shutdown()
    return fitted.history, memory.lines


class Memory:
    """Memory of the training workers and of the object store, at the end of each epoch."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        """Look when the driver hears of the end of an epoch."""
        if not line.startswith("epoch") or ": train loss" not in line:
            return
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        store = get_memory_info_reply(state).store_stats.object_store_bytes_used
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        sizes = "+".join(f"{own_bytes(p) / 1e6:.0f}" for p in workers)
        self.lines.append(f"workers {sizes} MB, store {store / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
