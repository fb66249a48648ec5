"""Trainings on clusters of several nodes on this machine, and what befalls them: each is a process of its own.

``python -m tests.fault_jobs NAME FOLDER``, where the folder has ``rows.parquet`` and ``settings.toml``; the training's
output goes to FOLDER/run, and what it said to the standard output.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from mammoray import plain, train, tune
from mammoray.config import TuneConfig
from mammoray.controller import read_history
from mammoray.errors import MammorayError
from mammoray.nodes import alive, ask
from mammoray.pipeline import Source
from mammoray.scale import Scale

# A node with 2 CPUs has room for one worker.
SHARE = 1.5
Story = Iterator[Callable[[str], bool]]
"""What happens next, each time the condition that was yielded before holds for a line that the training says."""


class Nodes:
    """A head with one CPU, on which the driver is, and nodes of two."""

    def __init__(self, nodes: int, **head: Any) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,  # It would want to handle signals itself, in the main thread.
            head_node_args={"num_cpus": 1, "include_dashboard": False, **head},
        )
        self.nodes = [self.cluster.add_node(num_cpus=2) for _ in range(nodes)]

    def add(self, **options: Any) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=2, **options))

    def workers(self, node: Any, kind: str = "RayTrainWorker") -> list[int]:
        """Processes of the training workers on a node, or of others."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [p.pid for p in raylet.children(recursive=True) if kind in " ".join(p.cmdline())]

    def busy(self, kind: str = "RayTrainWorker") -> list[Any]:
        """Nodes with a training worker, or another kind of process."""
        return [node for node in self.nodes if self.workers(node, kind)]

    def kill(self, node: Any) -> None:
        """As a machine dies: nothing on it says good-bye."""
        self.nodes.remove(node)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    def drain(self, node: Any, seconds: int) -> None:
        """As a cloud provider takes a spot machine back."""
        self.nodes.remove(node)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = time.time_ns() // 1_000_000 + 1000 * seconds
        gcs = ray._raylet.GcsClient(address=self.cluster.address)
        assert gcs.drain_node(node.node_id, reason, "spot", deadline)[0]


def storm(nodes: Nodes) -> Story:
    """Two workers; one is killed, the node of one is taken back, the node of one is lost."""
    yield is_middle
    tell("FAULT a worker is killed")
    os.kill(nodes.workers(nodes.busy()[0])[0], signal.SIGKILL)
    yield is_start
    yield is_middle
    tell("FAULT a node is drained")
    nodes.drain(nodes.busy()[0], 10)
    yield is_start
    nodes.add()
    yield is_middle
    tell("FAULT a node is lost")
    nodes.kill(nodes.busy()[0])
    yield is_start
    yield is_epoch


def tide(nodes: Nodes) -> Story:
    """One to two workers, on a node with room for one; a second node comes, and a node goes."""
    yield is_middle
    tell("FAULT a node comes")
    nodes.add()
    yield is_start
    yield is_middle
    tell("FAULT a node is lost")
    nodes.kill(nodes.busy()[0])
    yield is_start
    yield is_epoch


def is_middle(line: str) -> bool:
    """Far enough in an epoch that there is a checkpoint of it."""
    found = re.search(r": step (\d+)/", line)
    return found is not None and int(found[1]) > 60


def is_epoch(line: str) -> bool:
    return "train loss" in line


def is_start(line: str) -> bool:
    return "workers, from epoch" in line


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def play(story: Story) -> Callable[[str], None]:
    """A listener that lets the story go on, and tells this process to stop when it has ended."""
    wanted = [next(story)]

    def say(line: str) -> None:
        tell(line)
        if wanted and wanted[0](line):
            wanted[:] = [step for step in [next(story, None)] if step]
            if not wanted:
                os.kill(os.getpid(), signal.SIGTERM)

    return say


def fit(folder: Path, scale: Scale, say: Callable[[str], None]) -> None:
    """Train, and tell how it ended."""
    rows = pd.read_parquet(folder / "rows.parquet")
    try:
        train.fit(rows, "digest", plain.load_toml(folder / "settings.toml"), scale, folder / "run", say)
    except MammorayError as error:
        tell(f"{type(error).__name__}: {error}")


def limit_memory() -> None:
    """Take the address space that is left from each training worker: for Ray's ``worker_process_setup_hook``."""

    def limit() -> None:
        while "RayTrainWorker" not in " ".join(psutil.Process().cmdline()) or "mammoray.learner" not in sys.modules:
            time.sleep(0.05)
        most = psutil.Process().memory_info().vms + 600 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    threading.Thread(target=limit, daemon=True).start()


def play_at(story: Callable[[Nodes], Story], nodes: Nodes, folder: Path, most: int, least: int) -> None:
    """Train while a story happens."""
    ray.init(nodes.cluster.address, logging_level="ERROR", log_to_driver=False)
    scale = Scale(num_workers=most, min_workers=least, cpus_per_worker=SHARE, resize_seconds=2)
    fit(folder, scale, play(story(nodes)))


def storms(folder: Path) -> None:
    """:func:`storm` with a fixed number of workers."""
    play_at(storm, Nodes(3), folder, 2, 0)


def tides(folder: Path) -> None:
    """:func:`tide` with an elastic group."""
    play_at(tide, Nodes(1), folder, 2, 1)


def hunt(folder: Path) -> None:
    """A search over nodes of two CPUs, two trials side by side; the node of one is lost when both have trained."""
    nodes = Nodes(3, memory=0)  # No room for a trial's process on the head.
    ray.init(nodes.cluster.address, logging_level="ERROR", log_to_driver=False)
    source = Source(csv=folder / "table.csv", dicom_root=folder / "set", outdir=folder / "run")
    search = TuneConfig(num_trials=3, trials_at_once=2, scheduler="none", search="random", prune_collapsed=False)

    def lose() -> None:
        trials = [source.outdir / "trials" / name for name in ("0000", "0001")]
        while min(len(read_history(trial)) for trial in trials) < 3:
            time.sleep(0.1)
        tell(f"BUSY {len(nodes.busy())}")
        nodes.kill(nodes.busy("ray::Trial")[0])
        for trial in trials:
            shutil.copy(trial / "history.jsonl", folder / f"{trial.name}.jsonl")

    threading.Thread(target=lose, daemon=True).start()
    space, config = str(folder / "space.toml"), plain.load_toml(folder / "settings.toml")
    tune.run(source, space, config, search, Scale(cpus_per_worker=SHARE), tell)


def scarce(folder: Path) -> None:
    """One worker whose node is short of memory in the eyes of Ray, and one that gets no more from the kernel."""
    nodes = Nodes(0)
    nodes.add(env_vars={"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"})
    for hook in ({}, {"worker_process_setup_hook": limit_memory}):
        with ray.init(nodes.cluster.address, logging_level="ERROR", log_to_driver=False, runtime_env=hook):
            if not hook:
                asked = ask(lambda: time.sleep(20), {node: () for node in alive() if node.id == nodes.nodes[0].node_id})
                tell(f"asked: {', '.join(answer.problem for answer in asked.values())}")
            fit(folder, Scale(cpus_per_worker=SHARE), tell)
        if not hook:
            nodes.kill(nodes.nodes[0])
            nodes.add()


if __name__ == "__main__":
    {"storm": storms, "tide": tides, "hunt": hunt, "scarce": scarce}[sys.argv[1]](Path(sys.argv[2]))
