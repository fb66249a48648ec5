"""Decodes on clusters of several nodes on this machine, and what befalls them: each is a process of its own.

``python -m tests.node_jobs NAME FOLDER``, where the folder has ``data`` (a data set in the IRMA layout). A scene leaves
FOLDER/NAME.json, and a Parquet file of the rows for each decode in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mammoray import catalog, ingest, sample, storage
from mammoray.batches import ShardConfig
from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.errors import MammorayError
from mammoray.plain import replace
from tests.conftest import SMALL
from tests.proxy import Door
from tests.sandbox_jobs import decode_with_accidents, plant

SETTINGS = replace(SMALL.ingest, shard_images=2)
STORE_BYTES = 80 * 2**20  # The smallest that Ray takes is 75 MB.
BATCH = 16


def decode_slowly(source: str, config: DecodeConfig, name: str) -> Decoded:
    """Decode, and write down the raylet of this node, whose worker is the parent of this process."""
    folder = Path(os.environ["WHO"])
    time.sleep(float((folder / "seconds").read_text()))
    decoded = decode(source, config, name) if storage.is_uri(source) else decode_with_accidents(source, config, name)
    with (folder / os.environ["RAY_RAYLET_PID"]).open("a") as file:
        file.write(f"{name}\n")
    return decoded


@dataclass
class Scene:
    """A head without a CPU, on which the driver is, nodes of one, and what is to be told of them."""

    folder: Path
    cluster: Cluster = field(
        default_factory=lambda: Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
        )
    )
    nodes: list[Any] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def kill(self, node: Any) -> None:
        """As a machine dies: nothing on it says good-bye."""
        self.nodes.remove(node)
        raylet = self.raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    def prepare(
        self,
        name: str,
        seconds: float = 0.0,
        root: Path | str | None = None,
        store: str | None = None,
        then: Callable[[], None] = lambda: None,
        at: int = 4,
    ) -> None:
        """Decode into a cache of that name; ``then`` happens once, when ``at`` files are done."""
        who = Path(os.environ["WHO"])
        shutil.rmtree(who, ignore_errors=True)
        who.mkdir()
        (who / "seconds").write_text(str(seconds))
        data = catalog.build(self.folder / "data" / "classificacao.csv", self.folder / "data")
        waiting = [then]

        def report(progress: ingest.Progress) -> None:
            if progress.done >= at and waiting:
                waiting.pop()()

        started = time.monotonic()
        told: dict[str, Any] = {"nodes": [self.raylet(node).pid for node in self.nodes]}
        try:
            decoded = ingest.prepare(
                data.rows,
                str(root or data.root),
                store or str(self.folder / name),
                SMALL.decode,
                SETTINGS,
                report,
                "tests.node_jobs:decode_slowly",
            )
            decoded.rows.to_parquet(self.folder / f"{name}.parquet")
            told |= {"new": decoded.new, "failures": decoded.failures[["path", "exception"]].to_dict("list")}
        except MammorayError as error:
            told["error"] = str(error)
        told |= {"seconds": time.monotonic() - started, "happened": not waiting}
        told["who"] = {int(p.name): p.read_text().split() for p in who.iterdir() if p.name.isdigit()}
        told["after"] = [self.raylet(node).pid for node in self.nodes]
        self.facts[name] = told

    def fill(self) -> list[Any]:
        """More objects than the stores hold, on each node, as long as they are kept."""
        made = [
            ray.remote(num_cpus=0, scheduling_strategy=_on(node))(_junk).remote()
            for node in self.nodes
            for _ in range(STORE_BYTES // _JUNK_BYTES + 1)
        ]
        ray.wait(made, num_returns=len(made), fetch_local=False)
        return made

    def feed(self) -> None:
        """Have a worker on each node read its part of training and of validation, and tell what it got."""
        rows = pd.read_parquet(self.folder / "three.parquet").assign(target=0)
        workers = len(self.nodes)
        dataset = ray.data.from_pandas(rows[["image_id", "target", "shard", "position"]])
        shards = ShardConfig().configure({"train": dataset}, workers, None, None)
        order = np.random.default_rng(0).permutation(len(rows))[: len(rows) // BATCH * BATCH]
        got = [
            ray.remote(num_cpus=0.1, scheduling_strategy=_on(node))(_eat).remote(shard["train"], order)
            for node, shard in zip(self.nodes, shards, strict=True)
        ]
        trained, judged, raylets = zip(*ray.get(got), strict=True)
        self.facts["feed"] = {"order": order.tolist(), "rows": len(rows), "trained": trained, "judged": judged}
        self.facts["feed"]["raylets"] = raylets


_JUNK_BYTES = 16 * 2**20


def _junk() -> Any:
    return np.ones(_JUNK_BYTES, np.uint8)


def _eat(shard: Any, order: Any) -> tuple[list[list[int]], list[int], int]:
    mine = sample.part(BATCH, shard.workers, shard.rank)
    trained = [b["row"].tolist() for b in shard.training_batches(order, BATCH, mine, SMALL.decode)]
    judged = [int(row) for b in shard.evaluation_batches(BATCH, SMALL.decode) for row in b["row"]]
    return trained, judged, int(os.environ["RAY_RAYLET_PID"])


def _on(node: Any) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


def _spilled(address: str) -> int:
    """Bytes that all nodes together have moved from their object stores to their disks."""
    return int(get_memory_info_reply(get_state_from_address(address)).store_stats.spilled_bytes_total)


def nodes(folder: Path) -> None:
    """Three nodes; a poisonous file; full object stores; a node is lost, and one comes."""
    scene = Scene(folder)
    for _ in range(3):
        scene.add()
    ray.init(scene.cluster.address, logging_level="ERROR", log_to_driver=False)
    scene.prepare("three", seconds=0.2)
    scene.feed()
    files = pd.read_parquet(folder / "three.parquet")["path"]
    plant(folder / "data", {files.iloc[5]: "segfault"})
    scene.prepare("poison")
    shutil.rmtree(folder / "data" / "accidents")
    junk = scene.fill()
    scene.prepare("full")
    scene.facts["full"]["spilled"] = _spilled(scene.cluster.address)
    del junk
    scene.prepare("killed", seconds=0.4, then=lambda: scene.kill(scene.nodes[0]), at=8)
    scene.prepare("added", seconds=1.0, then=scene.add, at=1)
    (folder / "nodes.json").write_text(json.dumps(scene.facts))


def outage(folder: Path) -> None:
    """Two nodes decode from an S3 into it; it refuses and is busy for half a minute, and then for good."""
    scene = Scene(folder)
    for _ in range(2):
        scene.add()
    ray.init(scene.cluster.address, logging_level="ERROR", log_to_driver=False)
    given = (folder / "s3").read_text()
    found = re.search(r"127.0.0.1:(\d+)", given)
    assert found
    door = Door(int(found[1]))
    store = given.replace(found[0], f"127.0.0.1:{door.port}")
    _upload(folder / "data", store)

    def shut() -> None:
        door.turn("shut")
        threading.Timer(15, door.turn, ["busy"]).start()
        threading.Timer(30, door.turn, ["open"]).start()

    archive = storage.join(store, "archive")
    scene.prepare("refused", 0.3, archive, storage.join(store, "refused"), shut)
    scene.facts["refused"]["times"] = door.refused
    scene.prepare("gone", 0.3, archive, storage.join(store, "gone"), lambda: door.turn("shut"))
    door.turn("open")
    scene.prepare("lost", 0.3, archive, then=lambda: door.turn("shut"))  # The files only; the cache is on the disk.
    (folder / "outage.json").write_text(json.dumps(scene.facts))


def _upload(folder: Path, store: str) -> None:
    for file in sorted(folder.rglob("*.dcm")):
        system, path = storage.filesystem(storage.join(store, file.relative_to(folder).as_posix()))
        with system.open_output_stream(path) as sink:
            sink.write(file.read_bytes())


if __name__ == "__main__":
    {"nodes": nodes, "outage": outage}[sys.argv[1]](Path(sys.argv[2]))
