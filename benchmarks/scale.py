"""Decoding on 1 and 2 cores and nodes of this machine, and what follows for 4 to 256: ``python benchmarks/scale.py``.

``[--images 600] [--side 2560] [--rounds 3]``: phantoms of a detector of that many rows, hard links of some 60. Every
round starts three real clusters one after the other (a node of one core, a node of two, two nodes of one, as separate
raylets on loopback, pinned to their cores), so that a ratio is of neighbours in time. Steady throughput is that of the
files beyond the first third. Then what Ray itself costs, from tasks that do nothing and have the shape of those of
``mammoray.ingest``. Then ``simulate`` says what it would have expected of the measured clusters, and what it expects of
larger ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from simulate import Costs, Shape, Storage, bottleneck, seconds

from mammoray import cache, catalog, ingest, storage, synth
from mammoray.config import DecodeConfig, IngestConfig, SynthConfig

DISTINCT = 60
ANSWERS = 2000  # Of tasks that do nothing.
CONFIG = DecodeConfig()
RSNA, LABELLED, RSNA_BYTES = 54_706, 29_470, 314e9
SHAPES = {"1 node of 1 core": (1, 1), "1 node of 2 cores": (1, 2), "2 nodes of 1 core": (2, 1)}
NODE_CORES = 16
SHARD = 16  # Images; the data set is small, and there are to be many.
PAGE_CACHE = Storage(name="page cache", image_bytes=1.0, wait=0.0, node=1e15, whole=1e15)
# A disk gives the parts of a file that are looked at; of an object store whole files are fetched, ahead of the decoder.
STORAGES = (
    PAGE_CACHE,
    Storage(name="file server", image_bytes=0.3 * RSNA_BYTES / RSNA, wait=0.005, node=1.25e9, whole=1.25e9),
    Storage(
        name="object store",
        image_bytes=RSNA_BYTES / RSNA,
        wait=0.09,
        node=1.25e9,
        whole=12.5e9,
        ahead=storage._FETCHERS,
    ),
)
DOLLARS_A_CORE_HOUR, DOLLARS_A_THOUSAND_READS = 0.05, 0.0004


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 600), ("side", 2560), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        print(json.dumps(serve(Path(given.serve[0]), int(given.serve[1]), int(given.serve[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.images, given.side)
        rounds = [
            {name: ask("--serve", folder, *map(str, shape)) for name, shape in SHAPES.items()}
            for _ in range(given.rounds)
        ]
        costs = replace(overheads(Path(folder)), **own_costs(rounds, given.images))
    measured(rounds, given.images)
    print("\n### Costs, in seconds, measured\n\n| cost | seconds |\n|---|---|")
    for name, value in asdict(costs).items():
        print(f"| {name} | {value:.6f} |")
    validation(rounds, given.images, costs)
    scaling(costs)
    model(costs)


def ask(*words: str) -> dict[str, Any]:
    """What this program says in a process of its own, whose Ray ends with it."""
    # Near the root: paths of Unix sockets have a limit of 107 characters.
    with tempfile.TemporaryDirectory(prefix="scale", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        own = {**os.environ, "RAY_worker_niceness": "0", "RAY_TMPDIR": ray_folder}
        done = subprocess.run([sys.executable, __file__, *words], env=own, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def write(folder: Path, images: int, side: int) -> None:
    """A data set, and hard links of its files: a key holds the path, so each is decoded."""
    data = synth.write(folder / "data", SynthConfig(patients=DISTINCT // 4, height=side, width=side * 4 // 5), 0)
    found = catalog.build(data.csv, data.root)
    rows = found.rows.iloc[np.arange(images) % len(found.rows)].reset_index(drop=True)
    paths = [f"links/{i}.dcm" for i in range(images)]
    (folder / "links").mkdir()
    for path, original in zip(paths, rows["path"], strict=True):
        os.link(Path(found.root, original), folder / path)
    rows.assign(image_id=[f"image{i}" for i in range(images)], path=paths).to_parquet(folder / "rows.parquet")


def serve(folder: Path, nodes: int, cores: int) -> dict[str, Any]:
    """Decode on a cluster of this process: wall and processor seconds of its parts."""
    everything = list(range(nodes * cores))
    os.sched_setaffinity(0, everything)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for node in range(nodes):
        own = everything[node * cores : (node + 1) * cores]
        raylet = psutil.Process(cluster.add_node(num_cpus=cores).all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.cpu_affinity(own)
    connect(cluster.address)
    rows = pd.read_parquet(folder / "rows.parquet")
    third = len(rows) // 3

    def prepare(count: int, name: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix=name) as store:
            first: list[float] = []
            config, began = IngestConfig(shard_images=SHARD), time.perf_counter()

            def report(_: ingest.Progress) -> None:
                first.append(time.perf_counter() - began)

            with Meter() as meter:
                ingest.prepare(rows.head(count), str(folder), store, CONFIG, config, report)
        return {"first": first[0], **meter.spent}

    told = {"cold": prepare(8 * nodes * cores, "cold"), "warm": prepare(8 * nodes * cores, "warm")}
    told |= {"third": prepare(third, "third"), "all": prepare(len(rows), "all")}
    ray.shutdown()
    cluster.shutdown()
    return told


def connect(address: str | None, **options: Any) -> None:
    """Join a cluster, quietly."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(address, logging_level="ERROR", log_to_driver=False, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False


class Meter:
    """Processor seconds of this process and all below it while it is open, by what they do, and of everybody else's."""

    def __enter__(self) -> Meter:
        """Begin to look, ever again: processes that ended in between would take their times along."""
        self._last: dict[int, tuple[str, float]] = {}
        self._first: dict[int, float] = {}
        self._ended, self.spent = threading.Event(), {}
        self._look(new=False)
        self._busy, self._began = _busy(), time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Have the sums ready in ``spent``: wall, work (decoders and their workers), rest (driver and Ray), others."""
        self._ended.set()
        self._thread.join()
        wall, busy = time.perf_counter() - self._began, _busy() - self._busy
        self._look()
        self.spent = {"wall": wall, "work": 0.0, "rest": 0.0}
        for pid, (kind, total) in self._last.items():
            self.spent[kind] += total - self._first.get(pid, 0.0)
        self.spent["others"] = max(busy - self.spent["work"] - self.spent["rest"], 0.0)

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            self._look()

    def _look(self, new: bool = True) -> None:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                words, times = " ".join(process.cmdline()), process.cpu_times()
                kind = "work" if words.startswith("ray::") or "mammoray.sandbox" in words else "rest"
                self._last[process.pid] = kind, times.user + times.system
                if not new:
                    self._first[process.pid] = times.user + times.system


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def overheads(folder: Path) -> Costs:
    """What Ray and the driver cost without any decoding."""
    told = {}
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray writes it so.
    connect(None, num_cpus=4, include_dashboard=False)
    shapes = {"few": (16, 8), "long": (ANSWERS, 8), "short": (ANSWERS, 1)}
    run_nothing(64, 1)
    for name, (answers, per_task) in shapes.items():
        told[name] = run_nothing(answers, per_task)
    ray.shutdown()
    tasks = {name: told[name]["tasks"] for name in shapes}
    task = (told["short"]["driver"] - told["long"]["driver"]) / (tasks["short"] - tasks["long"])
    answer = (told["long"]["driver"] - told["few"]["driver"] - (tasks["long"] - tasks["few"]) * task) / (ANSWERS - 16)
    print(f"no-op tasks, one driver: {tasks['short'] / told['short']['wall']:.0f} tasks/s of one answer,", end=" ")
    print(f"{ANSWERS / told['long']['wall']:.0f} answers/s of eight a task")
    before, after = around(folder)
    return Costs(
        image=0.0, before=before, after=after, start=0.0, child=0.0, task=max(task, 0), answer=max(answer, 0), idle=0.0
    )


def run_nothing(answers: int, per_task: int) -> dict[str, float]:
    """Ray Data over tasks of ingest's shape that answer at once: wall, and processor seconds of this process."""
    files = pd.DataFrame({"key": [f"{i:032x}" for i in range(answers)], "path": "nothing"})
    before, ingest._SHARDS_PER_TASK = ingest._SHARDS_PER_TASK, per_task
    wall, driver = time.perf_counter(), time.process_time()
    list(ingest._run(files, _nothing, 1))
    wall, driver = time.perf_counter() - wall, time.process_time() - driver
    tasks = len(ingest._task_sizes(answers, int(ray.cluster_resources()["CPU"]), 1))
    ingest._SHARDS_PER_TASK = before
    return {"wall": wall, "driver": driver, "tasks": tasks}


def _nothing(files: pa.Table) -> Iterator[pa.Table]:
    for start in range(len(files)):
        keys = [{"key": key} for key in files["key"].slice(start, 1).to_pylist()]
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist(keys, schema=cache.INDEX_SCHEMA)
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        yield pa.table({"answer": pa.array([sink.getvalue().to_pybytes()], pa.binary())})


def around(folder: Path, rows: int = RSNA, shard_images: int = 64) -> tuple[float, float]:
    """Seconds an image that the driver spends before the decoding (listing, keys) and after it (index, join)."""
    tree = folder / "tree"
    names = [f"{i // 5}/{i}.dcm" for i in range(rows // 10)]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    listing = timed(lambda: list(storage.walk(str(tree)))) / len(names)
    table = pd.DataFrame({"path": [f"{i // 5}/{i}.dcm" for i in range(rows)], "size": 5_000_000, "mtime_ns": 1})
    keys = timed(partial(cache.file_keys, table, str(tree))) / rows
    keyed = table.assign(key=cache.file_keys(table, str(tree)))
    columns = {
        name: pa.nulls(rows, field)
        for name, field in zip(cache.INDEX_SCHEMA.names, cache.INDEX_SCHEMA.types, strict=True)
    }
    columns |= {"key": pa.array(keyed["key"]), "shard": pa.array([f"{i // shard_images:032x}" for i in range(rows)])}
    columns["geometry"] = pa.array(["g" * 150] * rows)
    index = pa.table(columns, schema=cache.INDEX_SCHEMA)

    def end() -> None:
        cache.write_index(str(folder), index)
        keyed.merge(cache.first_of_each(index).to_pandas(), on="key", how="left", validate="many_to_one")

    return listing + keys, timed(end) / rows


def timed(work: Callable[[], object]) -> float:
    """Median wall time of three calls."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def middle(rounds: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    """Median over the rounds."""
    return statistics.median(value(round_) for round_ in rounds)


def own_costs(rounds: list[dict[str, Any]], images: int) -> dict[str, float]:
    """Costs that the measured clusters show: of an image where there is one core, of a start where there are two."""
    one, two = (lambda r: r["1 node of 1 core"]), (lambda r: r["1 node of 2 cores"])
    image = middle(rounds, lambda r: steady(one(r), "work")) / (images - images // 3)
    return {
        "image": image,
        "idle": middle(rounds, lambda r: steady(one(r), "rest") / steady(one(r), "wall")),
        "child": max(middle(rounds, lambda r: one(r)["cold"]["work"] - one(r)["warm"]["work"]) / 2, 0.0),
        # The least: whatever else the machine does adds to it.
        "start": max(min(two(r)["warm"]["wall"] for r in rounds) - 8 * image, 0.0),
    }


def steady(told: dict[str, Any], kind: str) -> float:
    """What the images beyond the first third took."""
    taken: float = told["all"][kind] - told["third"][kind]
    return taken


def measured(rounds: list[dict[str, Any]], images: int) -> None:
    """Print what the real clusters did; ratios are of one round's clusters, and then the median."""
    rest, base = images - images // 3, "1 node of 1 core"
    print(f"\n### Measured: {images} images to {CONFIG.height} x {CONFIG.width}, medians of {len(rounds)} rounds\n")
    print("| cluster | images/s, steady | speed-up | efficiency | CPU ms an image | ratio of CPU | whole, s | others |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (nodes, cores) in SHAPES.items():

        def wall(r: dict[str, Any], name: str = name) -> float:
            return steady(r[name], "wall")

        def spent(r: dict[str, Any], name: str = name) -> float:
            return steady(r[name], "work") + steady(r[name], "rest")

        faster = middle(rounds, lambda r, wall=wall: wall(r, base) / wall(r))
        dearer = middle(rounds, lambda r, spent=spent: spent(r) / spent(r, base))
        print(
            f"| {name} | {rest / middle(rounds, wall):.1f} | {faster:.2f} | {faster / (nodes * cores):.2f} "
            f"| {1000 * middle(rounds, spent) / rest:.1f} | {dearer:.2f} "
            f"| {middle(rounds, lambda r, name=name: r[name]['all']['wall']):.1f} "
            f"| {middle(rounds, lambda r, name=name: r[name]['all']['others'] / r[name]['all']['wall']):.2f} |"
        )
    print("\nothers: cores that other programs took meanwhile; above some 0.1 no wall time here is to be used")
    first = middle(rounds, lambda r: r[base]["cold"]["first"])
    print(f"\ntime to the first answer, cold: {first:.1f} s on one core")


def validation(rounds: list[dict[str, Any]], images: int, costs: Costs) -> None:
    """Print what the simulation says of the clusters that were measured; their workers were warm."""
    print("\n### The simulation of what was measured\n")
    print("| cluster | measured, s | simulated, s | ratio |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        took = middle(rounds, lambda r, name=name: r[name]["all"]["wall"])
        said = seconds(images, Shape(nodes=shape[0], cores=shape[1]), costs, PAGE_CACHE, SHARD, warm=True)
        print(f"| {name} | {took:.1f} | {said:.1f} | {said / took:.2f} |")


def scaling(costs: Costs) -> None:
    """Print efficiency by cores and nodes, while the storage costs nothing: what Ray and the driver alone do to it."""
    alone = seconds(RSNA, Shape(nodes=1, cores=1), costs, PAGE_CACHE)
    print(f"\n### Simulated: efficiency of decoding {RSNA} images, storage costing nothing\n")
    print("| cores | one node | bottleneck | nodes of one core | bottleneck |\n|---|---|---|---|---|")
    for cores in (1, 2, 4, 8, 16, 32, 64):
        cells = []
        for shape in (Shape(nodes=1, cores=cores), Shape(nodes=cores, cores=1)):
            cells.append(f"{alone / cores / seconds(RSNA, shape, costs, PAGE_CACHE):.2f}")
            cells.append("{} ({:.0%})".format(*bottleneck(RSNA, shape, costs, PAGE_CACHE)))
        print(f"| {cores} | {' | '.join(cells)} |")
    print("\nIn brackets: the share of the time that would be saved if it cost nothing.")


def model(costs: Costs) -> None:
    """Print time and cost for RSNA on each kind of storage, and what is assumed."""
    print(f"\n### RSNA: {RSNA} images, {RSNA_BYTES / 1e9:.0f} GB, of which {LABELLED} are labelled\n")
    print(
        f"Assumed, not measured: nodes of {NODE_CORES} cores (one smaller node below that), {DOLLARS_A_CORE_HOUR} $ a"
    )
    print(
        f"core and hour for all nodes while it lasts, {DOLLARS_A_THOUSAND_READS} $ for 1000 reads of the object store"
    )
    print("(two a file), all cores as fast as this machine's and each one a whole core, images as costly as the")
    print("phantoms; start of machines, egress and storage itself not counted. Storages:")
    for kind in STORAGES[1:]:
        print(
            f"- {kind.name}: {kind.image_bytes / 1e6:.1f} MB read of an image, {kind.wait * 1000:.0f} ms of waiting, "
            f"{kind.node / 1e9:.2f} GB/s a node, {kind.whole / 1e9:.2f} GB/s in all"
        )
    for kind in STORAGES:
        alone = seconds(RSNA, Shape(nodes=1, cores=1), costs, kind)
        print(f"\n{kind.name}:\n\n| cores | minutes, all | labelled | images/s | efficiency | $ | bottleneck |")
        print("|---|---|---|---|---|---|---|")
        for cores in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            shape = Shape(nodes=max(1, cores // NODE_CORES), cores=min(cores, NODE_CORES))
            took, labelled = (seconds(count, shape, costs, kind) for count in (RSNA, LABELLED))
            reads = 2 * RSNA / 1000 * DOLLARS_A_THOUSAND_READS if kind.name == "object store" else 0.0
            dollars = took / 3600 * cores * DOLLARS_A_CORE_HOUR + reads
            why = "{} ({:.0%})".format(*bottleneck(RSNA, shape, costs, kind))
            print(
                f"| {cores} | {took / 60:.1f} | {labelled / 60:.1f} | {RSNA / took:.0f} "
                f"| {alone / took / cores:.2f} | {dollars:.2f} | {why} |"
            )


if __name__ == "__main__":
    main()
