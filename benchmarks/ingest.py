"""Decode rates: Ray Data into the cache, against a bare process pool, and against a second run.

Side by side in one run, on phantoms of a full-size detector; prints ratios. ``python benchmarks/ingest.py [IMAGES]``.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from mammoray import catalog, cluster, ingest, synth
from mammoray.config import DecodeConfig, IngestConfig, SynthConfig
from mammoray.decode import decode

ROUNDS = 3
CONFIG = DecodeConfig()


def decode_one(path: Path) -> int:
    """Decode a file as a task of the cache does; returns its bytes."""
    return decode(path, CONFIG).pixels.nbytes


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Write a data set, decode it in turn by both, print medians and ratios."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    with tempfile.TemporaryDirectory() as folder, cluster.connect(None):
        data = synth.write(Path(folder) / "data", SynthConfig(patients=max(1, images // 4), height=2560, width=2048), 0)
        found = catalog.build(data.csv, data.root)
        paths = [found.root / path for path in found.rows["path"]]
        pool_times, ray_times, again_times = [], [], []
        for round_ in range(ROUNDS):
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
                list(pool.map(decode_one, paths[:2]))  # Imports are start-up on both sides.
                pool_times.append(seconds(lambda pool=pool: list(pool.map(decode_one, paths))))
            cache = Path(folder) / f"cache-{round_}"
            prepare = partial(ingest.prepare, found.rows, found.root, cache, CONFIG, IngestConfig(shard_images=8))
            ray_times.append(seconds(prepare))
            again_times.append(seconds(prepare))
        pool_s, ray_s, again_s = (statistics.median(times) for times in (pool_times, ray_times, again_times))
        print(f"{len(paths)} images of 2560 x 2048 to {CONFIG.height} x {CONFIG.width}, median of {ROUNDS} rounds")
        print(f"process pool, decode alone:        {len(paths) / pool_s:6.1f} images/s")
        print(
            f"Ray Data, decode and write cache:  {len(paths) / ray_s:6.1f} images/s, {pool_s / ray_s:.2f} of the pool"
        )
        print(f"second run, all from the cache:    {again_s:6.3f} s, {again_s / ray_s:.2%} of the first")


if __name__ == "__main__":
    main()
