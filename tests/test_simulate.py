import math

import pytest

from benchmarks.simulate import Costs, Shape, Storage, bottleneck, seconds
from mammoray.plain import replace

IDEAL = Costs(image=0.025, before=0.0, after=0.0, start=0.0, child=0.0, task=0.0, answer=0.0, idle=0.0)
MEMORY = Storage(name="memory", image_bytes=1.0, wait=0.0, node=math.inf, whole=math.inf)
IMAGES = 54_706
SHAPES = [Shape(nodes=1, cores=1), Shape(nodes=1, cores=16), Shape(nodes=16, cores=1), Shape(nodes=16, cores=16)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cores_that_nothing_hinders_take_the_images_times_the_cost_of_one(shape: Shape) -> None:
    took, ideal = seconds(IMAGES, shape, IDEAL, MEMORY), IMAGES * IDEAL.image / shape.total
    assert ideal < took < 1.3 * ideal + 1


@pytest.mark.parametrize("cost", ["before", "after", "start", "child", "task", "answer", "idle"])
def test_every_cost_costs_time_on_a_large_cluster(cost: str) -> None:
    dearer = replace(IDEAL, **{cost: 0.5 if cost in ("start", "child", "idle") else 0.01})
    assert seconds(IMAGES, SHAPES[-1], dearer, MEMORY) > seconds(IMAGES, SHAPES[-1], IDEAL, MEMORY)


def test_no_cluster_reads_faster_than_its_storage_gives() -> None:
    server = replace(MEMORY, image_bytes=5e6, whole=1e9)
    assert seconds(IMAGES, SHAPES[-1], IDEAL, server) == pytest.approx(IMAGES * 5e6 / 1e9, rel=0.02)
    network = replace(MEMORY, image_bytes=5e6, node=1e9 / 16)
    assert IMAGES * 5e6 / 1e9 < seconds(IMAGES, SHAPES[-1], IDEAL, network) < 1.3 * IMAGES * 5e6 / 1e9


@pytest.mark.parametrize(
    ("costs", "storage", "name"),
    [
        (replace(IDEAL, before=0.001), MEMORY, "catalog and index"),
        (replace(IDEAL, start=20.0), MEMORY, "start"),
        (replace(IDEAL, answer=0.1), MEMORY, "tasks"),
        (IDEAL, replace(MEMORY, wait=0.1), "requests"),
        (IDEAL, replace(MEMORY, image_bytes=5e6, node=1e8), "node's network"),
        (IDEAL, replace(MEMORY, image_bytes=5e6, whole=1e9), "storage"),
    ],
)
def test_the_bottleneck_is_what_is_dear(costs: Costs, storage: Storage, name: str) -> None:
    found, share = bottleneck(IMAGES, SHAPES[-1], costs, storage)
    assert found == name
    assert 0.02 < share < 1


def test_one_core_has_no_bottleneck_but_itself() -> None:
    assert bottleneck(IMAGES, SHAPES[0], IDEAL, MEMORY) == ("none", 0.0)
