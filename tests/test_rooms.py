import itertools
import math

import pytest

from mammoray import rooms
from mammoray.config import Scale
from mammoray.rooms import Node


def left_by(cluster: list[Node], share: float, workers: int) -> float:
    """The most CPUs left on one node, in the worst of all ways to put the workers."""
    most = [int(min(node.cpus // share, node.places, workers)) for node in cluster]
    ways = [way for way in itertools.product(*(range(n + 1) for n in most)) if sum(way) == min(workers, sum(most))]
    return min(max(node.cpus - share * n for node, n in zip(cluster, way, strict=True)) for way in ways)


CLUSTERS = [[4], [2], [1], [1, 1], [2, 2], [2, 2, 2, 2], [1, 2, 3], [16], [16, 16], [0, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize("cpus", CLUSTERS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_wherever_the_workers_are_put_a_read_task_has_room(cpus: list[int], workers: int) -> None:
    cluster = [Node(n, math.inf) for n in cpus]
    share = rooms.share(cluster, Scale(num_workers=workers))
    assert share is not None
    assert sum(node.cpus // share for node in cluster) >= workers
    assert left_by(cluster, share, workers) >= 0.5


@pytest.mark.parametrize("cpus", [cpus for cpus in CLUSTERS if 0 not in cpus])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_an_elastic_group_leaves_room_on_any_node_that_is_the_last(cpus: list[int], most: int) -> None:
    share = rooms.share([Node(n, math.inf) for n in cpus], Scale(num_workers=most, min_workers=1))
    assert share is not None
    for n in cpus:
        assert left_by([Node(n, math.inf)], share, most) >= 0.5


@pytest.mark.parametrize("workers", range(1, 17))
def test_shares_add_up_without_a_rounding_error(workers: int) -> None:
    share = rooms.share([Node(8, math.inf)], Scale(num_workers=workers))
    assert share is not None
    assert math.fsum([share] * workers) // share == sum([share] * workers) // share == workers


def test_one_worker_a_gpu_leaves_room_beside_them() -> None:
    cluster = [Node(1, 1)] * 2
    share = rooms.share(cluster, Scale(num_workers=2, min_workers=1))
    assert share is not None
    assert left_by(cluster, share, 2) >= 0.5


@pytest.mark.parametrize(("share", "fits"), [(2.0, False), (1.5, True), (3.0, False)])
def test_a_share_that_was_asked_for_is_taken_or_refused(share: float, fits: bool) -> None:
    got = rooms.share([Node(2, math.inf)] * 2, Scale(num_workers=2, cpus_per_worker=share))
    assert got == (share if fits else None)
