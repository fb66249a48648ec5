"""Memory of a decode and of an epoch, under a cap on the object store: ``python benchmarks/memory.py [IMAGES] [MB]``.

Decodes 10,000 small images (hard links of some hundred; a key holds the path, so each is decoded) with an object store
of 100 MB, then reads them all in random order, and prints peak object store, spilled bytes and peak memory of each kind
of process.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import ray
from ingest import links  # Beside this file.
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from mammoray import catalog, cluster, ingest, synth
from mammoray.batches import Shard
from mammoray.config import DecodeConfig, IngestConfig, SynthConfig

CONFIG = DecodeConfig(height=128, width=104)
BATCH = 64


class Watch:
    """Peaks of this session's memory while a piece of work runs."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._ended = threading.Event()

    def run(self, work: Callable[[], object]) -> float:
        """Seconds of the work."""
        self.peaks.clear()
        self._ended.clear()
        thread = threading.Thread(target=self._watch)
        thread.start()
        started = time.perf_counter()
        work()
        elapsed = time.perf_counter() - started
        self._ended.set()
        thread.join()
        return elapsed

    def _watch(self) -> None:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self._ended.wait(0.2):
            store = get_memory_info_reply(state).store_stats
            self._see("object store", store.object_store_bytes_used)
            self._see("spilled", store.spilled_bytes_total)
            self._see("driver", own_bytes(psutil.Process()))
            for process in psutil.Process().children(recursive=True):
                if kind := kind_of(process):
                    self._see(kind, own_bytes(process))

    def _see(self, what: str, size: int) -> None:
        self.peaks[what] = max(self.peaks.get(what, 0), size)


def kind_of(process: psutil.Process) -> str | None:
    """Which part of the program a process is."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return "decoder" if "mammoray.sandbox" in words else "worker" if words.startswith("ray::") else None


def own_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process alone, without the object store that all map."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss - getattr(memory, "shared", 0)))


def main() -> None:
    """Decode, stream, print."""
    images, megabytes = (int(word) for word in (*sys.argv[1:3], *("10000", "100")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synth.write(folder / "data", SynthConfig(patients=100, height=128, width=104), 0)
        found = catalog.build(data.csv, data.root)
        rows = links(found, images)
        ray.init(
            object_store_memory=megabytes * 10**6, include_dashboard=False, logging_level="ERROR", log_to_driver=False
        )
        decoded: list[ingest.Decoded] = []
        watch, store = Watch(), str(folder / "cache")
        with cluster.connect(None):
            took = watch.run(lambda: decoded.append(ingest.prepare(rows, found.root, store, CONFIG, IngestConfig())))
            show(f"decode {images} images", took, images, watch)
            shard = Shard(table=decoded[0].rows, rank=0, workers=1)
            order = np.random.default_rng(0).permutation(len(decoded[0].rows) // BATCH * BATCH)
            took = watch.run(
                lambda: sum(len(b["row"]) for b in shard.training_batches(order, BATCH, (0, BATCH), CONFIG))
            )
            show("an epoch in batches", took, len(order), watch)
        ray.shutdown()


def show(what: str, took: float, images: int, watch: Watch) -> None:
    """Print a line of peaks."""
    peaks = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sorted(watch.peaks.items()))
    print(f"{what}: {took:.1f} s, {images / took:.0f} images/s; peaks: {peaks}", flush=True)


if __name__ == "__main__":
    main()
