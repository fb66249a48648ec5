"""What nodes are to each other: their clocks, whether they reach each other, and how fast they add tensors up.

A :class:`Wire` is an actor on a node, or on one of its GPUs; the functions beside it drive many of them.
"""

from __future__ import annotations

import datetime
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist

from mammoray.nodes import Answer, Node, gather, on

Backend = Literal["gloo", "nccl"]
SIZE = 16 * 2**20
"""Bytes that an all-reduce is measured with: the gradients of a small network."""
_ROUNDS = 5


class Wire:
    """One end of all connections, on a node."""

    def now(self) -> float:
        """Seconds of the epoch, by this node's clock."""
        return time.time()

    def listen(self, address: str) -> int:
        """Take connections at this address, and greet them; returns the port."""
        server = socket.create_server((address, 0))
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        port: int = server.getsockname()[1]
        return port

    def reach(self, places: Mapping[str, tuple[str, int]], limit: float) -> dict[str, str]:
        """Connect to others, by name; returns what is wrong with those that do not answer within ``limit`` seconds."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = pool.map(lambda place: connect(place[0], place[1], limit), places.values())
            return {name: problem for name, problem in zip(places, found, strict=True) if problem}

    def free_port(self, address: str) -> int:
        """A port that nothing listens at."""
        with socket.create_server((address, 0)) as server:
            port: int = server.getsockname()[1]
            return port

    def reduce(self, backend: Backend, place: tuple[str, int], rank: int, world: int, limit: float) -> float:
        """Add up 16 MB over all ends, some times; returns the seconds of the quickest time.

        Raises
        ------
        RuntimeError
            The others were not reached, or the sum is wrong.
        """
        method = f"tcp://{place[0]}:{place[1]}"
        seconds = datetime.timedelta(seconds=limit)
        dist.init_process_group(backend, init_method=method, rank=rank, world_size=world, timeout=seconds)
        try:
            return min(_reduce("cuda" if backend == "nccl" else "cpu", rank, world) for _ in range(_ROUNDS))
        finally:
            dist.destroy_process_group()


def _greet(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"!")


def connect(address: str, port: int, limit: float) -> str:
    """Connect to a listening :class:`Wire`; returns what is wrong, or nothing.

    Examples
    --------
    >>> connect("127.0.0.1", 1, 1.0)
    'ConnectionRefusedError'
    """
    try:
        with socket.create_connection((address, port), timeout=limit) as connection:
            return "" if connection.recv(1) == b"!" else "something else answered"
    except OSError as error:
        return type(error).__name__


def _reduce(device: str, rank: int, world: int) -> float:
    x_N = torch.full((SIZE // 4,), float(rank + 1), device=device)
    started = time.perf_counter()
    dist.all_reduce(x_N)
    total = x_N.sum().item()  # Waits for a GPU.
    seconds = time.perf_counter() - started
    expected = world * (world + 1) / 2 * len(x_N)
    if abs(total - expected) > 1e-3 * expected:
        raise RuntimeError(f"all-reduce: a sum of {total:g} instead of {expected:g}")
    return seconds


def wire(node: Node, gpus: float = 0.0) -> Any:
    """The actor of a node, with one of its GPUs where ``gpus`` is 1."""
    return ray.remote(Wire).options(**on(node, gpus)).remote()


def cut(wires: Sequence[Any]) -> None:
    """End the actors, also those that hang."""
    for one in wires:
        ray.kill(one)


def skews(wires: Mapping[Node, Any], limit: float, rounds: int = 8) -> dict[Node, Answer]:
    """How far each node's clock is before this one's, and the uncertainty of it, in seconds."""
    begun = gather({node: one.now.remote() for node, one in wires.items()}, limit)
    return {node: begun[node] if begun[node].problem else _skew(one, limit, rounds) for node, one in wires.items()}


def _skew(one: Any, limit: float, rounds: int) -> Answer:
    asked = []
    for _ in range(rounds):
        sent = time.time()
        answer = gather({0: one.now.remote()}, limit)[0]
        if answer.problem:
            return answer
        asked.append((sent, answer.value, time.time()))
    return Answer(value=estimate(asked))


def estimate(asked: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Offset of another clock from times of sending, of the other clock, and of the answer.

    As NTP does: the other clock was read somewhere between sending and answer, so that half of the round trip is the
    uncertainty, and the shortest round trip says most.

    Returns
    -------
    float, float
        Seconds that the other clock is ahead, and how far that may be off.

    Examples
    --------
    >>> estimate([(10.0, 15.5, 11.0), (20.0, 25.125, 20.25)])
    (5.0, 0.125)

    References
    ----------
    RFC 5905, section 8.
    """
    sent, theirs, received = min(asked, key=lambda one: one[2] - one[0])
    return theirs - (sent + received) / 2, (received - sent) / 2


def unreached(wires: Mapping[Node, Any], limit: float) -> list[tuple[str, str, str]]:
    """Pairs that cannot connect at the addresses that Ray knows, in either direction: from, to, what is wrong."""
    ports = gather({node: one.listen.remote(node.address) for node, one in wires.items()}, limit)
    broken = [(node.name, node.name, answer.problem) for node, answer in ports.items() if answer.problem]
    places = {node.name: (node.address, answer.value) for node, answer in ports.items() if not answer.problem}
    calls = {
        node: one.reach.remote({name: place for name, place in places.items() if name != node.name}, limit / 4)
        for node, one in wires.items()
    }
    for node, answer in gather(calls, limit).items():
        problems = {"the others": answer.problem} if answer.problem else answer.value
        broken += [(node.name, other, problem) for other, problem in problems.items()]
    return broken


def all_reduce(ends: Sequence[tuple[Node, Any]], backend: Backend, limit: float) -> tuple[str, float]:
    """Add tensors up over processes on several nodes or GPUs.

    Parameters
    ----------
    ends : sequence of Node and Wire
    limit : float
        Seconds that the processes may wait for each other.

    Returns
    -------
    str, float
        What is wrong, or nothing; and the seconds of adding up :data:`SIZE` bytes.
    """
    node, first = ends[0]
    port = gather({0: first.free_port.remote(node.address)}, limit)[0]
    if port.problem:
        return f"{node.name}: {port.problem}", 0.0
    place, world = (node.address, port.value), len(ends)
    calls = {rank: one.reduce.remote(backend, place, rank, world, limit) for rank, (_, one) in enumerate(ends)}
    answers = gather(calls, limit, together=True)
    # Those that only waited for the one that failed have nothing to say.
    spoken = {rank: answer.problem for rank, answer in answers.items() if answer.problem and not answer.late}
    wrong = spoken or {rank: answer.problem for rank, answer in answers.items() if answer.late}
    if wrong:
        return "; ".join(f"{ends[rank][0].name}: {problem}" for rank, problem in list(wrong.items())[:3]), 0.0
    return "", max(answer.value for answer in answers.values())
