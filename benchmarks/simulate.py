"""How long a decode takes on a cluster that is not there: tasks, cores, storage and one driver, step by step.

What is simulated is what ``mammoray.ingest`` does: tasks of its own sizes, one slot more than cores on each node, a
driver that looks for finished tasks ten times a second and pays for each task and each answer, decoders that read and
decode in turn. Cores, the nodes' networks and the storage are shared evenly by those who want them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mammoray import ingest

LOOK_S = 0.1
"""Ray Data (2.60) looks for finished tasks as often as this."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What things cost, in seconds; measured."""

    image: float
    """Processor time of an image: decoding, and writing it into its shard."""
    before: float
    """Of each image, on the driver before the first task: listing, keys, the look-up in the index."""
    after: float
    """Of each image, on the driver at the end: the index is written, read and joined with the rows."""
    start: float
    """From the driver's first word to Ray Data until its tasks run."""
    child: float
    """Processor time until a worker process and its decoder have imported what they need; once a slot."""
    task: float
    """Of the driver, for each task."""
    answer: float
    """Of the driver, for each answer, which is a shard's rows."""
    idle: float
    """Cores' worth that driver, raylet and GCS take all the time, on the first node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Where the files are; assumed."""

    name: str
    image_bytes: float
    """Bytes that are read of an image."""
    wait: float
    """Seconds until the bytes of an image are there, where nobody else wants any."""
    node: float
    """Bytes a second that a node can take."""
    whole: float
    """Bytes a second that all nodes together can take."""
    ahead: int = 0
    """Images that are fetched at once while another is decoded; 0 where the decoder itself waits for the bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How many nodes there are, of how many cores."""

    nodes: int
    cores: int

    @property
    def total(self) -> int:
        """Cores of all nodes."""
        return self.nodes * self.cores


def seconds(
    images: int, shape: Shape, costs: Costs, storage: Storage, shard_images: int = 64, warm: bool = False
) -> float:
    """Wall time of ``ingest.prepare`` with an empty cache; ``warm`` where the same Ray session has run one before."""
    sizes = ingest._task_sizes(images, shape.total, shard_images)
    cold = np.full(
        (shape.nodes, shape.cores + 1), costs.child
    )  # Seconds of start that a slot has before its first task.
    if warm:
        cold[:, 1:] = 0.0  # Ray keeps as many idle workers as a node has cores.
    decoding = _decode(sizes, cold, shape, costs, storage, shard_images)
    return images * (costs.before + costs.after) + costs.start + decoding


def _decode(sizes: list[int], cold: Floats, shape: Shape, costs: Costs, storage: Storage, shard_images: int) -> float:
    waiting, now, owed = deque(float(size) for size in sizes), 0.0, 0.0
    left = np.zeros(cold.shape)  # Images of each slot's task.
    while waiting or left.any():
        images = left.sum()
        for slot in zip(*np.nonzero(left == 0), strict=True):  # The driver gives every free slot a task, one by one.
            if waiting:
                left[slot] = waiting.popleft()
                images += left[slot]
                now += _advance(left, cold, costs.task, shape, costs, storage)
        # It is back when its answers are read, and when it looks for the first time after the first end of a task.
        first = _next_end(left, cold, _rates(left, cold, shape, costs, storage))
        step = max(owed, math.ceil(first / LOOK_S) * LOOK_S if left.any() else 0.0)
        now += _advance(left, cold, step, shape, costs, storage)
        owed = max(0.0, owed - step) + costs.answer * (images - left.sum()) / shard_images
    return now + owed + LOOK_S / 2


def _advance(left: Floats, cold: Floats, step: float, shape: Shape, costs: Costs, storage: Storage) -> float:
    """Let all tasks go on for some seconds, or until there is none; returns how long that was. Changes both."""
    passed = 0.0
    while passed < step and left.any():
        images, starts = rates = _rates(left, cold, shape, costs, storage)
        during = min(step - passed, _next_end(left, cold, rates))
        _lessen(left, images * during)
        _lessen(cold, starts * during)
        passed += during
    return passed


def _lessen(state: Floats, by: Floats) -> None:
    state -= by
    state[state < 1e-9] = 0.0


def _next_end(left: Floats, cold: Floats, rates: tuple[Floats, Floats]) -> float:
    """Seconds until the first task or the first start of a slot ends."""
    return min(
        float((state[rate > 0] / rate[rate > 0]).min(initial=math.inf))
        for state, rate in zip((left, cold), rates, strict=True)
    )


def _rates(left: Floats, cold: Floats, shape: Shape, costs: Costs, storage: Storage) -> tuple[Floats, Floats]:
    """Images a second of each slot (its share of a core, a network, the storage), and the progress of its start."""
    begun, reading = left > 0, (left > 0) & (cold == 0)
    cores = np.full((shape.nodes, 1), float(shape.cores))
    cores[0] = max(cores[0, 0] - costs.idle, 0.1)
    share = np.minimum(1.0, cores / np.maximum(begun.sum(axis=1, keepdims=True), 1))
    network = storage.node / np.maximum(reading.sum(axis=1, keepdims=True), 1)
    bytes_a_second = np.minimum(network, storage.whole / max(int(reading.sum()), 1))
    wait = storage.wait / storage.ahead if storage.ahead else costs.image + storage.wait
    alone = 1 / max(costs.image, wait)
    images = np.minimum(np.minimum(alone, share / costs.image), bytes_a_second / storage.image_bytes)
    return np.where(reading, images, 0.0), np.where(begun & (cold > 0), share, 0.0)


FREE = {
    "start": ("start", "child"),
    "tasks": ("task", "answer"),
    "catalog and index": ("before", "after"),
    "driver beside decoders": ("idle",),
}
"""What could cost nothing, to see what it costs; costs by their names."""


def bottleneck(images: int, shape: Shape, costs: Costs, storage: Storage) -> tuple[str, float]:
    """What makes a cluster slower than its cores most, and the share of the time that would be saved without it."""
    took = seconds(images, shape, costs, storage)
    cheaper = {
        name: seconds(images, shape, replace(costs, **dict.fromkeys(fields, 0.0)), storage)
        for name, fields in FREE.items()
    }
    cheaper["size of tasks"] = seconds(images, shape, costs, storage, 8)  # Cores without work at the end.
    cheaper["requests"] = seconds(images, shape, costs, replace(storage, wait=0.0))
    cheaper["node's network"] = seconds(images, shape, costs, replace(storage, node=math.inf))
    cheaper["storage"] = seconds(images, shape, costs, replace(storage, whole=math.inf))
    name = min(cheaper, key=lambda cost: cheaper[cost])
    saved = 1 - cheaper[name] / took
    return (name, saved) if saved > 0.02 else ("none", 0.0)
