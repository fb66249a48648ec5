"""From the cache to device batches, without a training: ``python benchmarks/train_ingest.py [IMAGES] [EPOCHS]``.

IMAGES (default 3072) cached images of 512 x 384 and 8 bits in a new random order each epoch: by mammoray in a Ray
worker; by a DataLoader over one memory-mapped array of the same pixels, in the training process and with two workers;
and by a DataLoader that decodes DICOMs with pydicom (fewer images). In turn, as medians of rounds. A batch counts when
it is copied to a fixed buffer, which stands for the device's memory. Steady throughput is that of all images but the
first batch's. Processor time is that of the process that would train, and of all of them together.

Then the same worker with a network that takes its time, and the memory of it and of the object store after epochs 2
and 6.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil
import pydicom
import ray
import torch
from memory import own_bytes  # Beside this file.
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from mammoray import cache, catalog, synth
from mammoray.batches import Shard
from mammoray.config import DecodeConfig, SynthConfig
from mammoray.decode import decode

ROUNDS = 5
BATCH = 32
DISTINCT = 48  # Files that are decoded; the cache repeats them.
CONFIG = DecodeConfig()
SHAPE = (CONFIG.height, CONFIG.width)
PAUSE = 0.1  # Seconds of a step of the slow network: 320 images/s.

Figures = dict[str, float]


class Arrays(torch.utils.data.Dataset[torch.Tensor]):
    """Images of one memory-mapped array."""

    def __init__(self, path: Path) -> None:
        self.images = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.images[row]))


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """DICOMs by pydicom, at 8 bits and the cached size."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        dataset = pydicom.dcmread(self.paths[row])
        image = cv2.resize(dataset.pixel_array, SHAPE[::-1], interpolation=cv2.INTER_AREA)
        return torch.from_numpy((image >> (dataset.BitsStored - 8)).astype(np.uint8))


def consume(batches: Iterable[torch.Tensor], pause: float = 0.0) -> Figures:
    """Take all batches to the device."""
    device = torch.empty((BATCH, *SHAPE), dtype=torch.uint8)
    began, cpu, images = time.perf_counter(), time.process_time(), 0
    first = began
    for batch in batches:
        device[: len(batch)].copy_(batch)
        first = first if images else time.perf_counter()
        images += len(batch)
        time.sleep(pause)
    steady = time.perf_counter() - first
    rate = (images - BATCH) / steady if steady else 0.0
    own = (time.process_time() - cpu) / images * 1000
    return {"images": images, "first": first - began, "rate": rate, "own": own}


def load(dataset: torch.utils.data.Dataset[torch.Tensor], order: list[int], workers: int) -> Figures:
    """A DataLoader in a process of its own."""
    torch.set_num_threads(1)
    before = _processor_time()
    # Forked as by default; in a process that was spawned itself they would be spawned, which takes seconds.
    start = "fork" if workers else None
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, sampler=order, num_workers=workers, multiprocessing_context=start
    )
    figures = consume(loader)
    del loader
    return {**figures, "all": (_processor_time() - before) / figures["images"] * 1000}


def _processor_time() -> float:
    """Seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@ray.remote(num_cpus=0.5)
class Worker:
    """Reads as a worker of Ray Train does."""

    def __init__(self, table: pd.DataFrame) -> None:
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        torch.set_num_threads(1)
        self.shard = Shard(table=table, rank=0, workers=1)

    def read(self, order: npt.NDArray[np.int64], pause: float = 0.0) -> Figures:
        """Take the images of an order to the device."""
        batches = self.shard.training_batches(order, BATCH, (0, BATCH), CONFIG)
        return consume((torch.from_numpy(batch["image"]) for batch in batches), pause)

    def memory(self) -> int:
        """Resident bytes without the object store."""
        return own_bytes(psutil.Process())


def read(worker: Any, order: npt.NDArray[np.int64], pause: float = 0.0) -> Figures:
    """Mammoray, in a Ray session."""
    with _Times() as times:
        figures: Figures = ray.get(worker.read.remote(order, pause))
    return {**figures, "all": times.used / figures["images"] * 1000}


class _Times:
    """Processor seconds of all of Ray's processes in a ``with`` block; of one that ends, as it was last seen."""

    def __enter__(self) -> _Times:
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._look()
        self._first = dict(self._last)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self.used = sum(seconds - self._first.get(process, 0.0) for process, seconds in self._last.items())

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self._look()

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                times, began = process.cpu_times(), process.create_time()
            except psutil.Error:
                continue
            self._last[process.pid, began] = times.user + times.system


def fill(folder: Path, images: int) -> tuple[pd.DataFrame, Path, list[Path]]:
    """Rows of a cache, the same images as one array, and the files that they were decoded from."""
    size = SynthConfig(patients=DISTINCT // 4, height=2560, width=2048)
    data = synth.write(folder / "data", size, 0)
    paths = [Path(data.root, path) for path in catalog.build(data.csv, data.root).rows["path"]][:DISTINCT]
    decoded = [np.ascontiguousarray(decode(path, CONFIG).pixels) for path in paths]
    store = cache.cache_folder(str(folder / "cache"), CONFIG)
    cache.make_folder(store)
    for start in range(0, images, 64):
        rows = range(start, min(start + 64, images))
        cache.write_shard(store, ({"key": f"{i:08d}", "pixels": decoded[i % len(decoded)].tobytes()} for i in rows))
    table = cache.read_index(store).to_pandas().sort_values("key", ignore_index=True)
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (images, *SHAPE))
    for i in range(images):
        array[i] = decoded[i % len(decoded)]
    array.flush()
    table["shard"] = cache.shard_paths(store, table["shard"])
    return table[["shard", "position"]], folder / "images.npy", paths


def rounds(worker: Any, order: npt.NDArray[np.int64], array: Path, paths: list[Path]) -> Iterator[dict[str, Figures]]:
    """The figures of each contender, round by round."""
    rows, spawn = order.tolist(), get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        slow = np.resize(np.arange(len(paths)), 2 * BATCH).tolist()
        pydicom_figures = pool.submit(load, Files(paths), slow, os.cpu_count() or 1).result()
    for _ in range(ROUNDS):
        figures = {"mammoray": read(worker, order), "DataLoader, pydicom": pydicom_figures}
        for workers in (0, 2):
            # A new process each time, as the worker processes that ended are known to their parent alone.
            with ProcessPoolExecutor(1, spawn) as pool:
                pool.submit(int).result()
                name = f"DataLoader, memory map, {workers} workers"
                figures[name] = pool.submit(load, Arrays(array), rows, workers).result()
        yield figures


def show(done: list[dict[str, Figures]]) -> None:
    """Print a table of medians."""
    megabytes = SHAPE[0] * SHAPE[1] / 1e6
    print("| by | images/s | MB/s | mammoray by this | first batch | CPU s per 1000 images: own | all |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in done[0]:
        middle = {key: statistics.median(each[name][key] for each in done) for key in done[0][name]}
        ratio = statistics.median(each["mammoray"]["rate"] / each[name]["rate"] for each in done)
        print(
            f"| {name} | {middle['rate']:.0f} | {middle['rate'] * megabytes:.0f} | {ratio:.2f} "
            f"| {middle['first']:.2f} s | {middle['own']:.3f} | {middle['all']:.3f} |"
        )


def memory(worker: Any, order: npt.NDArray[np.int64], epochs: tuple[int, ...] = (2, 6)) -> None:
    """Print what the worker and the object store hold after some epochs."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    before = 0
    for epoch in epochs:
        read(worker, np.tile(order, epoch - before))
        before = epoch
        store = get_memory_info_reply(state).store_stats
        print(
            f"after epoch {epoch}: worker {ray.get(worker.memory.remote()) / 1e6:.0f} MB, object store "
            f"{store.object_store_bytes_used / 1e6:.0f} MB, spilled {store.spilled_bytes_total / 1e6:.0f} MB"
        )


def main() -> None:
    """Fill a cache and read it."""
    images, epochs = (int(word) for word in (*sys.argv[1:3], *("3072", "6")[len(sys.argv) - 1 :]))
    # Ray's workers give way to all other processes of a machine by default; here they compete with a DataLoader's.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray writes it so.
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        table, array, paths = fill(Path(name), images)
        epoch = rng.permutation(images)[: images // BATCH * BATCH]
        order = np.concatenate([epoch, *(rng.permutation(epoch) for _ in range(epochs - 1))])
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        worker = Worker.remote(table)
        read(worker, epoch)  # Imports and the first worker processes are start-up on both sides.
        print(f"{images} images, {epochs} epochs, {os.cpu_count()} cores, medians of {ROUNDS} rounds")
        show(list(rounds(worker, order, array, paths)))
        slow = read(worker, epoch, PAUSE)
        print(f"at {slow['rate']:.0f} images/s: {slow['own']:.3f} CPU s per 1000 images in the training process")
        memory(worker, epoch)
        ray.shutdown()


if __name__ == "__main__":
    main()
