import math

import pytest

from mammoray import rooms
from mammoray.config import Scale
from mammoray.rooms import Node

CLUSTERS = [[4], [2], [1], [1, 1], [2, 2], [2, 2, 2, 2], [1, 2, 3], [16], [16, 16], [0, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize("cpus", CLUSTERS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_workers_have_a_cpu_each_where_there_are_enough_and_else_the_largest_share_that_fits(
    cpus: list[int], workers: int
) -> None:
    share = rooms.share([Node(n, math.inf) for n in cpus], Scale(num_workers=workers))
    assert share is not None
    assert sum(n // share for n in cpus) >= workers
    assert share == 1 or sum(n // (share + 1 / 16) for n in cpus) < workers


def test_an_elastic_group_is_content_with_room_for_its_least() -> None:
    cluster = [Node(2, math.inf)]
    assert rooms.share(cluster, Scale(num_workers=8, min_workers=2)) == 1
    assert rooms.share(cluster, Scale(num_workers=8, min_workers=3)) == 0.625


@pytest.mark.parametrize("workers", range(1, 17))
def test_shares_add_up_without_a_rounding_error(workers: int) -> None:
    share = rooms.share([Node(8, math.inf)], Scale(num_workers=workers))
    assert share is not None
    assert math.fsum([share] * workers) // share == sum([share] * workers) // share == workers


def test_a_worker_wants_a_gpu_of_its_own_where_it_wants_one() -> None:
    assert rooms.share([Node(8, 1)] * 2, Scale(num_workers=2)) == 1
    assert rooms.share([Node(8, 1)] * 2, Scale(num_workers=3)) is None


@pytest.mark.parametrize(("share", "fits"), [(2.0, True), (1.5, True), (3.0, False)])
def test_a_share_that_was_asked_for_is_taken_or_refused(share: float, fits: bool) -> None:
    got = rooms.share([Node(2, math.inf)] * 2, Scale(num_workers=2, cpus_per_worker=share))
    assert got == (share if fits else None)
