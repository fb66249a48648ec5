"""What Ray Data costs over the bare decoding, and what the cache saves.

``python benchmarks/ingest.py [IMAGES] [SIDE]``: IMAGES phantoms (default 1000, hard links of some 60) of a detector of
SIDE rows (default 2560). In one run, in turn, as medians of rounds: a bare ``multiprocessing.Pool``, the cache filled
by Ray Data with the same decode function on the same cores, and a second run over the unchanged data set. Steady
throughput is that of the files beyond the first quarter: the time of all less the time of a quarter, so that start-up
and the last tasks' ends do not count. Then the compressions that the cache might use, and the look-up of as many rows
as RSNA has.
"""

import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mammoray import cache, catalog, ingest, synth
from mammoray.config import DecodeConfig, IngestConfig, SynthConfig
from mammoray.decode import decode

ROUNDS = 3
DISTINCT = 60
CONFIG = DecodeConfig()


def decode_one(path: Path) -> int:
    """Decode a file as a child of the cache's workers does; returns its bytes."""
    return decode(path, CONFIG).pixels.nbytes


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def links(found: catalog.Catalog, count: int) -> pd.DataFrame:
    """Rows of ``count`` files that are hard links of the catalog's; a key holds the path, so each is decoded."""
    rows = found.rows.iloc[np.arange(count) % len(found.rows)].reset_index(drop=True)
    Path(found.root, "links").mkdir()
    paths = [f"links/{i}.dcm" for i in range(count)]
    for path, original in zip(paths, rows["path"], strict=True):
        os.link(Path(found.root, original), Path(found.root, path))
    return rows.assign(image_id=[f"image{i}" for i in range(count)], path=paths)


def rates(every: pd.DataFrame, root: str, folder: Path) -> None:
    """Print start-up, throughput and the cost of a second run."""
    paths, cpus = [Path(root, path) for path in every["path"]], os.cpu_count() or 1
    spawn = get_context("spawn")
    first: list[float] = []

    def prepare(store: str, count: int) -> ingest.Decoded:
        rows, began = every.head(count), time.perf_counter()

        def report(_: ingest.Progress) -> None:
            first.append(time.perf_counter() - began)

        return ingest.prepare(rows, root, str(folder / store), CONFIG, IngestConfig(), report)

    # Ray's workers give way to all other processes of a machine by default; here they compete with the pool's.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray writes it so.
    init = seconds(lambda: ray.init(num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    quarter = len(paths) // 4
    prepare("cold", 16 * cpus)
    to_first = first[0]
    bare, steady, whole, again = [], [], [], []
    for round_ in range(ROUNDS):
        with spawn.Pool(cpus) as pool:
            pool.map(decode_one, paths[: 4 * cpus], chunksize=4)  # Imports are start-up on both sides.
            times = [seconds(partial(_drain, pool, paths[:count])) for count in (quarter, len(paths))]
            bare.append(times[1] - times[0])
        times = [seconds(partial(prepare, f"{count}-{round_}", count)) for count in (quarter, len(paths))]
        steady.append(times[1] - times[0])
        whole.append(times[1])
        again.append(seconds(partial(prepare, f"{len(paths)}-{round_}", len(paths))))
    ray.shutdown()
    rest, pool_s, ray_s = len(paths) - quarter, statistics.median(bare), statistics.median(steady)
    ratio = statistics.median(b / s for b, s in zip(bare, steady, strict=True))
    print(f"{len(paths)} images to {CONFIG.height} x {CONFIG.width} on {cpus} cores, medians of {ROUNDS} rounds")
    print(f"bare pool, steady throughput:       {rest / pool_s:7.1f} images/s")
    print(f"Ray Data, steady throughput:        {rest / ray_s:7.1f} images/s, {ratio:.2f} of the pool")
    print(f"  overhead on a core:               {(ray_s - pool_s) * cpus / rest * 1000:7.2f} ms an image")
    print(f"  ray.init:                         {init:7.2f} s")
    print(f"  time to the first batch, cold:    {to_first:7.2f} s")
    print(f"  total throughput, warm:           {len(paths) / statistics.median(whole):7.1f} images/s")
    share = statistics.median(again) / statistics.median(whole)
    print(f"second run, all from the cache:     {statistics.median(again):7.3f} s, {share:.2%} of the first")


def _drain(pool: Pool, paths: list[Path]) -> None:
    for _ in pool.imap_unordered(decode_one, paths, chunksize=1):
        pass


def compressions(paths: list[Path]) -> None:
    """Print bytes and milliseconds of an image as the cache writes it, with other compressions, and as Parquet."""
    for depth in (8, 16):
        config = DecodeConfig(depth=depth)
        records = [
            {"key": str(path), "pixels": np.ascontiguousarray(decode(path, config).pixels).tobytes()} for path in paths
        ]
        for name, write, read in (
            ("Arrow, none", partial(_arrow, compression=None), _read_arrow),
            ("Arrow, lz4", _arrow, _read_arrow),
            ("Arrow, zstd", partial(_arrow, compression="zstd"), _read_arrow),
            ("Parquet, lz4", _parquet, _read_parquet),
        ):
            times, content = [], b""
            for _ in range(ROUNDS):
                sink = io.BytesIO()
                writing = seconds(partial(write, sink, records))
                content = sink.getvalue()
                times.append((writing, seconds(partial(read, content))))
            middle = [statistics.median(column) / len(records) * 1000 for column in zip(*times, strict=True)]
            size = len(content) / len(records) / 1000
            print(f"{depth:2d} bits, {name:12s} {size:6.1f} KB, write {middle[0]:.2f} ms, read {middle[1]:.2f} ms")


def _arrow(sink: io.BytesIO, records: list[dict[str, object]], compression: str | None = "lz4") -> None:
    with cache._writer(sink, compression) as writer:
        for record in records:
            writer.write_batch(cache._batch([record]))


def _read_arrow(content: bytes) -> None:
    reader = pa.ipc.open_file(pa.BufferReader(content), options=pa.ipc.IpcReadOptions(use_threads=False))
    for row in range(reader.num_record_batches):
        np.frombuffer(reader.get_batch(row).column(cache._PIXELS).buffers()[2], np.uint8).max()


def _parquet(sink: io.BytesIO, records: list[dict[str, object]]) -> None:
    options = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, cache._SCHEMA, **options) as writer:
        for record in records:
            writer.write_batch(cache._batch([record]))


def _read_parquet(content: bytes) -> None:
    file = pq.ParquetFile(pa.BufferReader(content))
    for row in range(file.num_row_groups):
        np.frombuffer(file.read_row_group(row, columns=["pixels"]).column(0)[0].as_buffer(), np.uint8).max()


def index(rows: int = 54_706, shard_images: int = 64) -> None:
    """Print how long the look-up of a data set of the size of RSNA's takes, before anything is decoded or read."""
    with tempfile.TemporaryDirectory() as folder:
        one = {"pixels": bytes(1000), "transfer_syntax": "1.2.840.10008.1.2.4.90", "geometry": "g" * 150}
        for start in range(0, rows, shard_images):
            keys = range(start, min(start + shard_images, rows))
            cache.write_shard(folder, ({**one, "key": f"{key:032x}"} for key in keys))
        print(f"{rows} rows: read_index from the shards {seconds(lambda: cache.read_index(folder)):.2f} s, ", end="")
        print(f"from the written index {seconds(lambda: cache.read_index(folder)):.2f} s")


def main() -> None:
    """Write a data set and measure."""
    images, side = (int(word) for word in (*sys.argv[1:3], *("1000", "2560")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        size = SynthConfig(patients=DISTINCT // 4, height=side, width=side * 4 // 5)
        data = synth.write(Path(folder) / "data", size, 0)
        found = catalog.build(data.csv, data.root)
        compressions([Path(found.root, path) for path in found.rows["path"].head(32)])
        index()
        rates(links(found, images), found.root, Path(folder))


if __name__ == "__main__":
    main()
