"""How many CPUs a training worker may reserve, so that Ray Data always has some to read with.

Ray puts workers where they fit, and an elastic group takes all the room there is. Ray Data, left without a CPU on any
node, would wait for one for ever, and the training for its batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray

from mammoray.config import Scale

_LEFT = (1.0, 0.5)  # CPUs for a read task to run in: its own need is half a CPU (batches.stream).
# Ray counts the workers of an elastic group by whole-number division: these shares have no rounding error in binary,
# nor in Ray's own ten-thousandths.
_SHARES = tuple(n / 16 for n in range(16, 0, -1))


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has: CPUs, and places for workers, one a GPU; without limit where they need none."""

    cpus: float
    places: float


def nodes(use_gpu: bool) -> list[Node]:
    """The living nodes of the cluster."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(have.get("CPU", 0.0), have.get("GPU", 0.0) if use_gpu else math.inf) for have in found]


def share(cluster: list[Node], scale: Scale) -> float | None:
    """CPUs to reserve for each worker, at most 1 unless ``scale`` asks for more; None where nothing is enough.

    Examples
    --------
    >>> share([Node(4, math.inf)], Scale(num_workers=2)), share([Node(4, math.inf)], Scale(num_workers=8))
    (1.0, 0.375)
    >>> share([Node(2, math.inf)] * 2, Scale(num_workers=4)), share([Node(1, math.inf)], Scale(num_workers=1))
    (0.5, 0.5)
    >>> share([Node(2, math.inf)] * 2, Scale(num_workers=2, cpus_per_worker=2))
    """
    for left in _LEFT:
        for wanted in (scale.cpus_per_worker,) if scale.cpus_per_worker else _SHARES:
            if _suits(cluster, scale, wanted, left):
                return wanted
    return None


def _suits(cluster: list[Node], scale: Scale, wanted: float, left: float) -> bool:
    """Whether the workers fit, and leave a node with ``left`` CPUs wherever they are put."""
    fitting = sum(min(node.cpus // wanted, node.places) for node in cluster)
    filling = [_filling(node, wanted, left) for node in cluster if node.cpus >= left]
    # An elastic group may have to do with any one of the nodes.
    needed = min(filling, default=0) if scale.min_workers else sum(filling)
    return fitting >= (scale.min_workers or scale.num_workers) and needed > scale.num_workers


def _filling(node: Node, wanted: float, left: float) -> float:
    """Workers that leave a node with less than ``left`` CPUs; infinite where so many do not fit."""
    workers = math.floor((node.cpus - left) / wanted) + 1
    return workers if workers * wanted <= node.cpus and workers <= node.places else math.inf
