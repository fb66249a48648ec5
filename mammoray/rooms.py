"""How many CPUs a training worker may reserve, and how many workers have room by their GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray

from mammoray.config import Scale

# Ray counts the workers of an elastic group by whole-number division: these shares have no rounding error in binary,
# nor in Ray's own ten-thousandths.
_SHARES = tuple(n / 16 for n in range(16, 0, -1))


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has: CPUs, and places for workers by its GPUs; without limit where they need none."""

    cpus: float
    places: float


def nodes(gpus_each: float) -> list[Node]:
    """The living nodes of the cluster, for workers with so many GPUs each; 0 for workers without."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(have.get("CPU", 0.0), places(have.get("GPU", 0.0), gpus_each)) for have in found]


def places(gpus: float, each: float) -> float:
    """Workers that a node's GPUs have room for; a fraction of a GPU is never put together from two of them.

    Examples
    --------
    >>> places(4, 1), places(5, 2), places(2, 0.5), places(2, 0.6), places(1, 0.1), places(0, 0)
    (4, 2, 4, 2, 10, inf)
    """
    if not each:
        return math.inf
    # 1 // 0.1 would be 9; Ray counts in ten-thousandths.
    return int(gpus) * math.floor(1 / each + 1e-4) if each < 1 else int(gpus // each)


def share(cluster: list[Node], scale: Scale) -> float | None:
    """CPUs to reserve for each worker, at most 1 unless ``scale`` asks for more; None where nothing is enough.

    Examples
    --------
    >>> share([Node(4, math.inf)], Scale(num_workers=2)), share([Node(4, math.inf)], Scale(num_workers=8))
    (1.0, 0.5)
    >>> share([Node(2, math.inf)] * 2, Scale(num_workers=2, cpus_per_worker=3))
    """
    wanted = (scale.cpus_per_worker,) if scale.cpus_per_worker else _SHARES
    least = scale.min_workers or scale.num_workers
    return next((each for each in wanted if room(cluster, each) >= least), None)


def room(cluster: list[Node], share: float) -> float:
    """Workers that fit, with so many CPUs each.

    Examples
    --------
    >>> room([Node(3, math.inf), Node(2, 1)], 1.5)
    3.0
    """
    return sum(min(node.cpus // share, node.places) for node in cluster)


def largest(cluster: list[Node], workers: int) -> float | None:
    """The most whole CPUs that each of so many workers can have; None where not even one.

    Examples
    --------
    >>> largest([Node(16, math.inf)], 3), largest([Node(2, math.inf)], 4)
    (5.0, None)
    """
    most = int(max((node.cpus for node in cluster), default=0))
    return next((float(n) for n in range(most, 0, -1) if room(cluster, n) >= workers), None)
