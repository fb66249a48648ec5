"""How many CPUs a training worker may reserve, how many workers have room by their GPUs, and room that nobody uses."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from mammoray.errors import ClusterError
from mammoray.scale import Scale

# Ray counts the workers of an elastic group by whole-number division: these shares have no rounding error in binary,
# nor in Ray's own ten-thousandths.
_SHARES = tuple(n / 16 for n in range(16, 0, -1))
_SWEEP_SECONDS = 1.0


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


def side_by_side(cluster: list[Node], scale: Scale, asked: int, most: int | None) -> tuple[int, float]:
    """How many trainings run side by side, and the CPUs of each worker.

    Elastic ones are content with room for the least of each; but no more of them are begun unasked than have room for
    all their workers.

    Parameters
    ----------
    asked : int
        So many side by side; 0 for as many as have room.
    most : int or None
        The most of those, where cores are shared.

    Raises
    ------
    ClusterError
        There is no room for one, or for as many as asked for.

    Examples
    --------
    >>> side_by_side([Node(8, places(2, 0.5))], Scale(num_workers=1), 0, None)
    (4, 2.0)
    >>> side_by_side([Node(2, math.inf)], Scale(num_workers=4, min_workers=1, cpus_per_worker=1.0), 0, None)
    (1, 1.0)
    """
    least = scale.min_workers or scale.num_workers
    have = room(cluster, share(cluster, scale) or 1.0)
    fit = max(1, int(have // scale.num_workers))
    at_once = asked or (fit if most is None else min(most, fit))
    every = at_once * scale.num_workers
    together = Scale(num_workers=every, min_workers=at_once * least, cpus_per_worker=scale.cpus_per_worker)
    own = share(cluster, together)
    if own is None:
        raise ClusterError(
            "the Ray cluster",
            f"room for {at_once} trials of {least} workers at once (--trials-at-once)",
            f"room for {have // least:g}",
            "Use fewer --trials-at-once, --num-workers or --cpus-per-worker.",
        )
    whole = None if scale.cpus_per_worker else largest(cluster, every)
    return at_once, whole or own


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """For the time of a ``with`` block, take back what trainings have reserved whose processes were killed.

    Ray keeps such a reservation until the job ends, and a trial that is begun anew would wait for its own. Ray Train
    has a helper for it, which asks the dashboard: it fails where there is none, or several Rays run on a machine.
    """
    done = threading.Event()

    def sweep() -> None:
        while not done.wait(_SWEEP_SECONDS):
            with contextlib.suppress(Exception):  # Ray's control service may be away for a while; it is asked again.
                free_abandoned()

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def free_abandoned() -> list[str]:
    """Remove this job's placement groups whose creator, an actor, is dead; returns their ids.

    Who has created them stands only in Ray's own table, which no public function gives in full.
    """
    from ray.core.generated import gcs_pb2  # noqa: PLC0415 - as Ray's own state module, whose function is too brief

    job = ray.get_runtime_context().get_job_id()
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(entry) for entry in table]
    abandoned = [
        group.placement_group_id
        for group in groups
        if group.creator_job_id.hex() == job
        and not ray.ActorID(group.creator_actor_id).is_nil()  # Nil: created by the driver.
        and group.creator_actor_dead
        and group.state != gcs_pb2.PlacementGroupTableData.REMOVED
    ]
    for name in abandoned:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(name)))
    return [name.hex() for name in abandoned]
