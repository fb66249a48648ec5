from __future__ import annotations

import pytest

from mammoray import verdicts
from mammoray.nodes import Answer, Node
from mammoray.probes import Facts
from mammoray.verdicts import Judged, Level

NODE = Node(id="1", name="a", address="a", cpus=4, gpus=0, memory=8e9, store=2e9)
GPU_NODE = Node(id="1", name="a", address="a", cpus=4, gpus=1, memory=8e9, store=2e9)


def facts(**changed: object) -> Facts:
    own = {"ray": "2.60.0", "torch": "2.15.0"}
    made = Facts(
        versions=dict(own),
        shared=int(4e9),
        disk=("/tmp/ray", int(100e9), int(50e9)),
        open_files=65536,
        cores=4,
        threads=8,
        gpus=[],
    )
    made.update(changed)  # type: ignore[typeddict-item]
    return made


@pytest.mark.parametrize(
    ("check", "changed", "level"),
    [
        ("cpus", {"threads": 2}, "WARN"),
        ("shared_memory", {"shared": 64_000_000}, "WARN"),
        ("shared_memory", {"shared": None}, "OK"),
        ("disk", {"disk": ("/tmp/ray", int(100e9), int(8e9))}, "WARN"),
        ("disk", {"disk": ("/tmp/ray", int(1e12), int(40e9))}, "FAIL"),
        ("open_files", {"open_files": 1024}, "WARN"),
    ],
)
def test_what_is_short_is_judged_so_and_all_else_is_well(check: str, changed: dict[str, object], level: Level) -> None:
    judge = getattr(verdicts, check)
    assert judge(NODE, facts()).level == "OK"
    judged = judge(NODE, facts(**changed))
    assert judged.level == level
    assert bool(judged.remedy) == (level != "OK")


def test_an_object_store_that_must_spill_is_a_warning() -> None:
    small = Node(id="1", name="a", address="a", cpus=4, gpus=0, memory=8e9, store=80e6)
    assert verdicts.object_store(small, facts()).level == "WARN"


def test_another_ray_is_a_failure_another_torch_a_warning_and_none_a_failure() -> None:
    own = facts()["versions"]
    for name, there, level in (("ray", "2.59.0", "FAIL"), ("torch", "2.14.0", "WARN"), ("torch", None, "FAIL")):
        lines = verdicts.versions(own, {NODE: facts(versions={**own, name: there})})
        assert [(line.check, line.level) for line in lines] == [("versions", "OK"), (name, level)]
        assert name not in lines[0].found


@pytest.mark.parametrize(
    ("node", "seen", "computed", "level"),
    [
        (NODE, [], None, "OK"),
        (NODE, ["GPU One, 16384 MiB, 550.54"], None, "WARN"),
        (GPU_NODE, ["GPU One, 16384 MiB, 550.54"], Answer(value=[]), "OK"),
        (GPU_NODE, [], Answer(value=["GPU One: wrong"]), "FAIL"),
        (GPU_NODE, [], Answer(problem="ModuleNotFoundError: torch"), "FAIL"),
        (GPU_NODE, [], Answer(problem="no answer within 60 s", late=True), "WARN"),
    ],
)
def test_gpus_are_judged_by_what_they_computed(
    node: Node, seen: list[str], computed: Answer | None, level: Level
) -> None:
    assert verdicts.gpu(node, facts(gpus=seen), computed).level == level


@pytest.mark.parametrize(
    ("offset", "uncertainty", "level"),
    [(0.2, 0.001, "OK"), (-1.5, 0.01, "WARN"), (1.5, 1.0, "OK"), (-1000.0, 0.1, "FAIL")],
)
def test_a_clock_is_judged_by_what_is_sure_of_its_offset(offset: float, uncertainty: float, level: Level) -> None:
    assert verdicts.clock(Answer(value=(offset, uncertainty))).level == level


def test_a_line_names_the_worst_node_and_those_that_share_its_level() -> None:
    nodes = [Node(str(i), f"n{i}", "", 1, 0, 0, 0) for i in range(6)]
    judged = {node: Judged("FAIL", f"{5 - i} GB", "Mend it.", rank=5 - i) for i, node in enumerate(nodes)}
    judged[nodes[0]] = Judged("OK", "9 GB")
    lines = verdicts.of_nodes("disk", judged)
    assert [line.level for line in lines] == ["FAIL", "OK"]
    assert lines[0].found == "0 GB on n5; the same of n1, n2, n3 and 1 more"
    assert str(lines[0]).endswith(". Mend it.")


def test_a_cluster_without_cpus_is_a_failure() -> None:
    assert verdicts.resources([Node("1", "a", "", 0, 0, 0, 0)]).level == "FAIL"
