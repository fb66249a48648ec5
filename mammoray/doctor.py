"""``mammoray doctor``: whether a cluster, or this machine, can run what mammoray runs on it, and what to do if not."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from mammoray import cluster, gpus, nodes, probes, scratch, storage, verdicts, wires
from mammoray.nodes import Answer, Node
from mammoray.probes import Facts
from mammoray.verdicts import Judged, Verdict

_PER_NODE: dict[str, Callable[[Node, Facts], Judged]] = {
    "CPUs": verdicts.cpus,
    "/dev/shm": verdicts.shared_memory,  # noqa: S108 - The name of a line.
    "object store": verdicts.object_store,
    "disk": verdicts.disk,
    "open files": verdicts.open_files,
}


def run(place: str | None, address: str | None, limit: float) -> list[Verdict]:
    """Look at all nodes.

    Parameters
    ----------
    place : str or None
        Path or URI of storage that every node is to write and read.
    address : str or None
        Of a Ray cluster, as in :class:`mammoray.scale.Scale`.
    limit : float
        Seconds to wait for a node, each time that it is asked.

    Returns
    -------
    list of Verdict

    Raises
    ------
    ClusterError
        There is no cluster to look at.
    """
    with cluster.connect(address):
        return examine(place, limit)


def examine(place: str | None, limit: float) -> list[Verdict]:
    """As :func:`run`, of the cluster that this process is connected to."""
    everyone = nodes.alive()
    folder = ray.get_runtime_context().get_temp_dir()
    answers = nodes.ask(probes.facts, dict.fromkeys(everyone, (folder,)), limit)
    heard = {node: answer.value for node, answer in answers.items() if not answer.problem}
    lines = [verdicts.resources(everyone), *_silent(answers)]
    lines += verdicts.versions(probes.versions(), heard)
    for check, judge in _PER_NODE.items():
        lines += verdicts.of_nodes(check, {node: judge(node, facts) for node, facts in heard.items()})
    lines += _gpus(heard, limit)
    lines += _storage(place, list(heard), limit)
    return lines + _network(list(heard), limit)


def _silent(answers: Mapping[Node, Answer]) -> list[Verdict]:
    """A line for each node that does not answer."""
    return [
        Verdict("node", "FAIL", f"{node.name}: {answer.problem}", _help(answer.problem))
        for node, answer in answers.items()
        if answer.problem
    ]


def _help(problem: str) -> str:
    if "ModuleNotFoundError" in problem:
        return "Install requirements.lock and mammoray there; with --address, mammoray itself goes along."
    return "Look at the logs of this node, below Ray's temporary folder; mend it or take it away."


def _gpus(heard: Mapping[Node, Facts], limit: float) -> list[Verdict]:
    computed = nodes.ask(gpus.multiply_on_all, {node: () for node in heard if node.gpus}, limit, gpus=True)
    judged = {node: verdicts.gpu(node, facts, computed.get(node)) for node, facts in heard.items()}
    return verdicts.of_nodes("GPUs", judged)


def _storage(place: str | None, heard: Sequence[Node], limit: float) -> list[Verdict]:
    """Every node writes a file, reads those of all, and removes its own."""
    if place is None:
        if len(heard) < 2:
            return []
        return [Verdict("storage", "WARN", "not looked at", "Name the one that runs will use: --storage PATH_OR_URI.")]
    token = secrets.token_hex(8)
    writers = {node.id: node.name for node in heard}
    written = nodes.ask(scratch.write, {node: (place, token, node.id) for node in heard}, limit)
    good = [node for node in heard if not (written[node].problem or written[node].value[0])]
    seen = nodes.ask(scratch.read, {node: (place, token, {n.id: writers[n.id] for n in good}) for node in good}, limit)
    removed = nodes.ask(scratch.remove, {node: (place, token, node.id) for node in good}, limit)
    if good:
        scratch.clear(place, token)
    judged = {node: _stored(place, written[node], [seen.get(node), removed.get(node)]) for node in heard}
    return verdicts.of_nodes("storage", judged)


def _stored(place: str, written: Answer, later: Sequence[Answer | None]) -> Judged:
    where = storage.shown(place)
    problem, seconds = written.value or ("", 0.0)
    problems = [written.problem, problem, *(one.problem or one.value for one in later if one is not None)]
    wrong = next((one for one in problems if one), "")
    if wrong:
        remedy = (
            "Check its address, and the credentials in the environment of the node, with rights to put, get, list and "
            "delete."
            if storage.local_path(place) is None
            else "Make it, with rights to write; on several nodes, mount one file system there, or use an s3:// URI."
        )
        return Judged("FAIL", f"{where}: {wrong}", remedy)
    return Judged("OK", f"{where}: written, read by all, removed; {seconds:.2f} s to write", rank=-seconds)


def _network(heard: Sequence[Node], limit: float) -> list[Verdict]:
    """Clocks, connections and sums between nodes, and between GPUs."""
    if len(heard) < 2:
        return [Verdict("network", "OK", "one node, nothing to reach"), *_sum_on_gpus(heard, limit)]
    ends = {node: wires.wire(node) for node in heard}
    try:
        skews = wires.skews(ends, limit)
        lines = verdicts.of_nodes("clock", {node: verdicts.clock(answer) for node, answer in skews.items()})
        ready = {node: end for node, end in ends.items() if not skews[node].problem}
        broken = wires.unreached(ready, limit)
        lines.append(_reached(broken, len(ready)))
        if not broken:
            lines.append(_sum(list(ready.items()), "gloo", limit))
    finally:
        wires.cut(list(ends.values()))
    return lines if broken else [*lines, *_sum_on_gpus(heard, limit)]


def _reached(broken: Sequence[tuple[str, str, str]], ends: int) -> Verdict:
    if not broken:
        return Verdict("network", "OK", f"all {ends} nodes reach each other")
    pairs = "; ".join(f"{source} to {target}: {problem}" for source, target, problem in broken[:5])
    more = f"; {len(broken) - 5} more" if len(broken) > 5 else ""
    remedy = "Open all TCP ports between the nodes (in one security group, say)."
    return Verdict("network", "FAIL", pairs + more, remedy)


def _sum_on_gpus(heard: Sequence[Node], limit: float) -> list[Verdict]:
    places = [node for node in heard for _ in range(int(node.gpus))]
    if len(places) < 2:
        return []
    ends = [(node, wires.wire(node, gpus=1)) for node in places]
    try:
        return [_sum(ends, "nccl", limit)]
    finally:
        wires.cut([end for _, end in ends])


def _sum(ends: Sequence[tuple[Node, Any]], backend: wires.Backend, limit: float) -> Verdict:
    """An all-reduce over these ends."""
    problem, seconds = wires.all_reduce(ends, backend, limit)
    if problem and backend == "nccl" and "no answer" in problem:
        remedy = "Look again when no training holds the GPUs."
        return Verdict(backend, "WARN", f"{problem}; they may be taken", remedy)
    if problem:
        remedy = f"Set {backend.upper()}_SOCKET_IFNAME before ray start, to the interface of the address that Ray uses."
        return Verdict(backend, "FAIL", problem, remedy)
    found = f"{len(ends)} processes add up 16 MB in {seconds * 1000:.1f} ms, {wires.SIZE / seconds / 1e9:.2f} GB/s"
    return Verdict(backend, "OK", found)


def counted(lines: Sequence[Verdict]) -> str:
    """A last line.

    Examples
    --------
    >>> counted([Verdict("a", "OK", ""), Verdict("b", "FAIL", "")])
    '1 OK, 0 warnings, 1 failure'
    """
    ok, warnings, failures = (sum(line.level == level for line in lines) for level in ("OK", "WARN", "FAIL"))
    return f"{ok} OK, {warnings} warning{'s' * (warnings != 1)}, {failures} failure{'s' * (failures != 1)}"
