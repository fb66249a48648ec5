import math
import time

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from mammoray import rooms
from mammoray.errors import ClusterError
from mammoray.rooms import Node
from mammoray.scale import Scale

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


@pytest.mark.parametrize(
    ("gpus", "each", "fit"),
    [(8, 1, 8), (8, 3, 2), (1, 2, 0), (0, 1, 0), (1, 0.25, 4), (3, 0.25, 12), (1, 0.3333, 3), (2, 0.7, 2), (0, 0.5, 0)],
)
def test_a_worker_has_the_gpus_of_one_node_or_a_part_of_one_gpu(gpus: int, each: float, fit: int) -> None:
    assert rooms.places(gpus, each) == fit


@pytest.mark.parametrize("parts", range(1, 41))
def test_a_gpu_has_room_for_as_many_workers_as_the_parts_it_is_cut_into(parts: int) -> None:
    # As Ray counts: in ten-thousandths.
    each = 1 / parts
    assert rooms.places(1, each) == parts == 10_000 // int(10_000 * each + 1e-6)


def test_two_gpus_on_two_nodes_are_no_place_for_a_worker_with_two() -> None:
    nodes = [Node(8, rooms.places(1, 2))] * 2
    assert rooms.share(nodes, Scale(num_workers=1, gpus_per_worker=2)) is None
    assert rooms.share([Node(8, rooms.places(2, 2))], Scale(num_workers=1, gpus_per_worker=2)) == 1


@pytest.mark.parametrize("gpus_each", [0, 0.25, 0.5, 1, 2])
@pytest.mark.parametrize("gpus", [1, 2, 5])
def test_what_one_training_can_have_a_search_of_such_trainings_can_have(gpus: int, gpus_each: float) -> None:
    cluster = [Node(2, rooms.places(gpus, gpus_each)), Node(5, rooms.places(1, gpus_each))]
    for workers in range(1, 9):
        for least in range(workers + 1):
            for cpus in (0.0, 1.0, 2.0):
                scale = Scale(num_workers=workers, min_workers=least, cpus_per_worker=cpus)
                if rooms.share(cluster, scale) is None:
                    for asked in (0, 1):
                        with pytest.raises(ClusterError, match="trials-at-once"):
                            rooms.side_by_side(cluster, scale, asked, None)
                    continue
                assert rooms.side_by_side(cluster, scale, 1, None)[0] == 1
                at_once, share = rooms.side_by_side(cluster, scale, 0, None)
                assert rooms.room(cluster, share) >= at_once * (least or workers), (scale, at_once, share)
                if rooms.room(cluster, 1.0) >= workers:
                    assert at_once > 1 or rooms.room(cluster, cpus or 1.0) < 2 * workers, "no room is left unused"


def test_elastic_trainings_side_by_side_need_room_for_the_least_of_each() -> None:
    one_gpu, elastic = [Node(8, rooms.places(1, 1))], Scale(num_workers=2, min_workers=1)
    assert rooms.side_by_side(one_gpu, elastic, 0, None) == (1, 1.0)
    with pytest.raises(ClusterError, match="found room for 1"):
        rooms.side_by_side(one_gpu, elastic, 2, None)
    two_gpus = [Node(8, rooms.places(2, 1))]
    assert rooms.side_by_side(two_gpus, elastic, 0, None) == (1, 4.0)
    assert rooms.side_by_side(two_gpus, elastic, 2, None) == (2, 1.0)


def test_parts_of_a_gpu_are_a_trial_each() -> None:
    part = Scale(num_workers=1, gpus_per_worker=0.25)
    assert rooms.side_by_side([Node(8, rooms.places(2, 0.25))], part, 0, None) == (8, 1.0)
    with pytest.raises(ClusterError, match="found room for 8"):
        rooms.side_by_side([Node(8, rooms.places(2, 0.25))], part, 9, None)


class Holder:
    """Reserves places as Ray Train's controller does."""

    def hold(self) -> PlacementGroup:
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready())
        return group


@pytest.mark.usefixtures("ray_session")
def test_places_of_a_killed_actor_come_free_and_no_others() -> None:
    lost, living = (ray.remote(num_cpus=0)(Holder).remote() for _ in range(2))
    abandoned, used = ray.get([lost.hold.remote(), living.hold.remote()])
    own = placement_group([{"CPU": 0.5}])
    ray.get(own.ready())
    assert rooms.free_abandoned() == []
    with rooms.swept():
        ray.kill(lost)
        end = time.monotonic() + 30
        while placement_group_table(abandoned)["state"] != "REMOVED":
            assert time.monotonic() < end
            time.sleep(0.1)
    assert rooms.free_abandoned() == []
    for group in (own, used):
        assert placement_group_table(group)["state"] == "CREATED"
        remove_placement_group(group)
