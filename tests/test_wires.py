from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mammoray import nodes, wires
from mammoray.nodes import Node


@pytest.fixture(scope="module")
def ends(ray_session: None) -> Iterator[dict[Node, Any]]:
    """Two processes of one node, as if of two."""
    node = dataclasses.replace(nodes.alive()[0], address="127.0.0.1")
    made = {dataclasses.replace(node, name=name): wires.wire(node) for name in ("a", "b")}
    yield made
    wires.cut(list(made.values()))


def test_clocks_of_one_machine_agree_within_the_uncertainty_that_is_told(ends: dict[Node, Any]) -> None:
    for answer in wires.skews(ends, 60.0).values():
        offset, uncertainty = answer.value
        assert 0 < uncertainty < 0.5
        assert abs(offset) <= uncertainty


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 12.5])
def test_an_offset_is_found_to_half_the_shortest_round_trip_wherever_the_delay_lies(ahead: float) -> None:
    for there, back in ((0.5, 0.0), (0.0, 0.5), (0.25, 0.25)):
        asked = [(at, at + out + ahead, at + out + home) for at, out, home in ((0.0, 3.0, 1.0), (9.0, there, back))]
        offset, uncertainty = wires.estimate(asked)
        assert uncertainty == 0.25
        assert abs(offset - ahead) <= uncertainty


def test_processes_reach_each_other(ends: dict[Node, Any]) -> None:
    assert wires.unreached(ends, 40.0) == []


def test_a_node_that_cannot_listen_at_its_address_is_named(ends: dict[Node, Any]) -> None:
    (a, first), (b, second) = ends.items()
    elsewhere = dataclasses.replace(b, address="192.0.2.99")  # Of nobody: RFC 5737.
    (broken,) = wires.unreached({a: first, elsewhere: second}, 40.0)
    assert broken[:2] == ("b", "b") and "OSError" in broken[2]


def test_ports_that_are_closed_or_answered_by_another_program_are_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert wires.connect("127.0.0.1", port, 0.2) == "TimeoutError"
    assert wires.connect("127.0.0.1", port, 0.2) == "ConnectionRefusedError"


def test_processes_add_up_and_are_timed_and_one_that_is_missing_is_a_problem(ends: dict[Node, Any]) -> None:
    problem, seconds = wires.all_reduce(list(ends.items()), "gloo", 60.0)
    assert problem == "" and 0 < seconds < 30
    (a, first), _ = ends.items()
    dead = wires.wire(a)
    wires.cut([dead])
    problem, _ = wires.all_reduce([(a, first), (dataclasses.replace(a, name="dead"), dead)], "gloo", 30.0)
    assert problem.startswith("dead: ")
