"""What is found out about nodes, judged: OK, WARN or FAIL, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mammoray.nodes import Answer, Node
from mammoray.probes import Facts

Level = Literal["OK", "WARN", "FAIL"]
_LEAST_STORE = 200e6  # Bytes: initial weights and the rows of the folds go through it; pixels do not.
_LEAST_FREE = 10e9  # Bytes: checkpoints on their way, spilled objects, logs.
_FULL = 0.05  # Ray writes nothing to a disk with less of it free.
_OPEN_FILES = 8192  # Ray itself warns below.
_SKEW, _MOST_SKEW = 1.0, 900.0  # Seconds; S3 refuses requests that are signed a quarter of an hour off.
_MUST_AGREE = ("ray", "mammoray")  # Others may differ, and results with them.


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table: what was looked at, how it is, what was found, and what to do where it is not OK."""

    check: str
    level: Level
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        advice = f". {self.remedy}" if self.remedy else ""
        return f"{self.level:<4}  {self.check:<13} {self.found}{advice}"


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict on one node; of equal ones, that of the lowest ``rank`` is told."""

    level: Level
    found: str
    remedy: str = ""
    rank: float = 0.0


def of_nodes(check: str, judged: Mapping[Node, Judged]) -> list[Verdict]:
    """A line for each level among the nodes, which tells of the worst of them.

    Examples
    --------
    >>> a, b = (Node(name, name, "", 1, 0, 0, 0) for name in "ab")
    >>> print(*of_nodes("disk", {a: Judged("OK", "9 GB", rank=9), b: Judged("OK", "5 GB", rank=5)}))
    OK    disk          5 GB (the worst of 2 nodes)
    """
    lines = []
    for level in ("FAIL", "WARN", "OK"):
        alike = [node for node, one in judged.items() if one.level == level]
        if alike:
            worst = min(alike, key=lambda node: judged[node].rank)
            where = _where(worst, [node for node in alike if node != worst], judged)
            lines.append(Verdict(check, level, judged[worst].found + where, judged[worst].remedy))
    return lines


def _where(worst: Node, others: Sequence[Node], judged: Mapping[Node, Judged]) -> str:
    if len(judged) == 1:
        return ""
    if not others:
        return f" on {worst.name}"
    if len(others) + 1 == len(judged) and len({one.found for one in judged.values()}) == 1:
        return f" on each of {len(judged)} nodes"
    if judged[worst].level == "OK":
        return f" (the worst of {len(others) + 1} nodes)"
    names = ", ".join(node.name for node in others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f" on {worst.name}; the same of {names}"


def resources(nodes: Sequence[Node]) -> Verdict:
    """All that Ray counts.

    Examples
    --------
    >>> print(resources([Node("1", "a", "a", 4, 1, 8e9, 2e9)] * 2))
    OK    cluster       2 nodes, 8 CPUs, 2 GPUs, 16.0 GB memory
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    kind = "node" if len(nodes) == 1 else "nodes"
    found = f"{len(nodes)} {kind}, {cpus:g} CPUs, {gpus:g} GPUs, {gb(sum(node.memory for node in nodes))} memory"
    if not cpus:
        return Verdict("cluster", "FAIL", found, "Add a node, or begin one with ray start --num-cpus.")
    return Verdict("cluster", "OK", found)


def gb(size: float) -> str:
    """Bytes for people.

    Examples
    --------
    >>> gb(2_500_000_000)
    '2.5 GB'
    """
    return f"{size / 1e9:.1f} GB"


def version(own: str | None, there: str | None, name: str) -> Judged:
    """A package of a node, against that of the driver.

    Examples
    --------
    >>> version("2.60.0", "2.60.0", "ray").level, version("2.9.1", "2.9.0", "torch").level
    ('OK', 'WARN')
    """
    if there is None:
        return Judged("FAIL", "not installed", f"Install {name} {own or ''}".rstrip() + " from requirements.lock.")
    if there == own:
        return Judged("OK", there)
    remedy = "Install the same requirements.lock on all nodes, or use one image, and begin Ray there again."
    return Judged("FAIL" if name in _MUST_AGREE else "WARN", f"{there}, and {own or 'none'} at the driver", remedy)


def versions(own: Mapping[str, str | None], heard: Mapping[Node, Facts]) -> list[Verdict]:
    """One line for all packages that agree on all nodes, and lines for each that does not."""
    lines, same = [], []
    for name, here in own.items():
        judged = {node: version(here, facts["versions"].get(name), name) for node, facts in heard.items()}
        lines += [line for line in of_nodes(name, judged) if line.level != "OK"]
        if all(one.level == "OK" for one in judged.values()):
            same.append(f"{name} {here}")
    return [Verdict("versions", "OK", ", ".join(same)), *lines] if same else lines


def cpus(node: Node, facts: Facts) -> Judged:
    """Ray's CPUs, against the cores that there are."""
    found = f"{node.cpus:g} CPUs by Ray, {facts['cores']} cores, {facts['threads']} threads"
    if node.cpus > facts["threads"]:
        return Judged("WARN", found, "They share cores: begin Ray with fewer --num-cpus.", -node.cpus)
    return Judged("OK", found, rank=node.cpus)


def shared_memory(node: Node, facts: Facts) -> Judged:
    """The memory behind the object store."""
    shared = facts["shared"]
    if shared is None:
        return Judged("OK", "none on this system")
    found = f"{gb(shared)} for an object store of {gb(node.store)}"
    if shared < node.store:
        remedy = "Give the container more (docker run --shm-size), or Ray less (--object-store-memory)."
        return Judged("WARN", found, remedy, shared)
    return Judged("OK", found, rank=shared)


def object_store(node: Node, facts: Facts) -> Judged:
    """Its size."""
    if node.store < _LEAST_STORE:
        remedy = f"Begin Ray with an --object-store-memory of {gb(_LEAST_STORE)} or more, or it spills to the disk."
        return Judged("WARN", gb(node.store), remedy, node.store)
    return Judged("OK", gb(node.store), rank=node.store)


def disk(node: Node, facts: Facts) -> Judged:
    """Room below Ray's temporary folder."""
    folder, total, free = facts["disk"]
    found, remedy = f"{gb(free)} of {gb(total)} free below {folder}", "Make room, or choose another ray --temp-dir."
    level: Level = "FAIL" if free < _FULL * total else "WARN" if free < _LEAST_FREE else "OK"
    return Judged(level, found, "" if level == "OK" else remedy, free)


def open_files(node: Node, facts: Facts) -> Judged:
    """The limit of open files: each connection between processes is one."""
    limit = facts["open_files"]
    if limit < _OPEN_FILES:
        return Judged("WARN", f"at most {limit}", "Say ulimit -n 65536 before ray start.", limit)
    return Judged("OK", f"at most {limit}", rank=limit)


def gpu(node: Node, facts: Facts, computed: Answer | None) -> Judged:
    """The GPUs of a node: those that the driver program tells of, those of Ray, and whether these compute."""
    seen = "; ".join(facts["gpus"])
    if computed is None:
        if seen and not node.gpus:
            remedy = "Begin Ray where they can be seen, or with --num-gpus; without, training runs on CPUs."
            return Judged("WARN", f"{seen}, and Ray counts none", remedy)
        return Judged("OK", "none, training runs on CPUs")
    found = f"{node.gpus:g} by Ray: {seen or 'unknown to nvidia-smi'}"
    if computed.late:
        return Judged("WARN", f"{found}; {computed.problem}", "They may be taken: run this again when they are free.")
    problems = [computed.problem] if computed.problem else computed.value
    if problems:
        remedy = "Install a torch for the CUDA version of this driver, or a newer driver."
        return Judged("FAIL", f"{found}; {'; '.join(problems)}", remedy)
    return Judged("OK", f"{found}; all compute", rank=node.gpus)


def clock(answer: Answer) -> Judged:
    """How far a node's clock is from the driver's."""
    if answer.problem:
        return Judged("FAIL", answer.problem, "Look at the logs of this node, below Ray's temporary folder.")
    offset, uncertainty = answer.value
    found = f"{offset:+.4f} s from the driver's, known to {uncertainty:.4f} s"
    sure = abs(offset) - uncertainty
    if sure > _SKEW:
        remedy = "Start chrony or ntpd there; S3 refuses clocks that are 15 minutes off."
        return Judged("FAIL" if sure > _MOST_SKEW else "WARN", found, remedy, -sure)
    return Judged("OK", found, rank=-sure)
