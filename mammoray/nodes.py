"""Questions to every node of the cluster at once, and whether all of them see the files that a run works with."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mammoray import shortage, storage
from mammoray.errors import ClusterError

LIMIT = 120.0
"""Seconds for the answer of a node: a busy one takes some to start the process that answers."""
_PATIENCE = 2.0  # Seconds in which a file of another node must appear: network storage may be a moment behind.
_FILES = 16  # Of the data set that every node is asked for.
_MOUNT = "a file system that all nodes mount at this path"


@dataclass(frozen=True, slots=True)
class Node:
    """A living node: Ray's id of it, the name that people are told, its address, and what Ray counts there.

    ``memory`` and ``store`` (of objects) are in bytes.
    """

    id: str
    name: str
    address: str
    cpus: float
    gpus: float
    memory: float
    store: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said, or the ``problem`` that kept it from saying anything; ``late`` where it may still say it."""

    value: Any = None
    problem: str = ""
    late: bool = False


def alive() -> list[Node]:
    """The living nodes, in the order of their names. Needs a connection to Ray, as all here."""
    living = [node for node in ray.nodes() if node["Alive"]]
    homes = Counter(node["NodeManagerAddress"] for node in living)
    found = [_node(node, homes[node["NodeManagerAddress"]] > 1) for node in living]
    return sorted(found, key=lambda node: node.name)


def _node(entry: Mapping[str, Any], several: bool) -> Node:
    have, address = entry["Resources"], entry["NodeManagerAddress"]
    return Node(
        id=entry["NodeID"],
        name=f"{address} ({entry['NodeID'][:6]})" if several else address,
        address=address,
        cpus=have.get("CPU", 0.0),
        gpus=have.get("GPU", 0.0),
        memory=have.get("memory", 0.0),
        store=have.get("object_store_memory", 0.0),
    )


def on(node: Node, gpus: float = 0.0) -> dict[str, Any]:
    """Options of a task or an actor that is to run on this node and no other, also where all its CPUs are taken."""
    pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": pinned}


def ask(
    function: Callable[..., Any], args: Mapping[Node, tuple[Any, ...]], limit: float = LIMIT, gpus: bool = False
) -> dict[Node, Answer]:
    """Call a function on nodes, all at once.

    Parameters
    ----------
    function : callable
        Of an importable module.
    args : mapping of Node to tuple
        Its arguments on each node.
    limit : float
        Seconds to wait for all of them.
    gpus : bool
        Reserve all GPUs of the node for the call.

    Returns
    -------
    dict
        An :class:`Answer` of each node. One that does not answer in time, or dies meanwhile, has a problem.
    """
    task = ray.remote(max_retries=0)(function)
    calls = {node: task.options(**on(node, node.gpus if gpus else 0.0)).remote(*own) for node, own in args.items()}
    answers = gather(calls, limit)
    for node, call in calls.items():
        if answers[node].late:
            ray.cancel(call, force=True)
    return answers


def gather(calls: Mapping[Any, Any], limit: float, together: bool = False) -> dict[Any, Answer]:
    """Answers by the keys of their references.

    Parameters
    ----------
    calls : mapping to ObjectRef
    limit : float
        Seconds to wait for all of them; those that have not come by then have a problem.
    together : bool
        They wait for each other: the first problem ends the wait for all.
    """
    deadline, answers = time.monotonic() + limit, {}
    waiting = {call: key for key, call in calls.items()}
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready, _ = ray.wait(list(waiting), num_returns=1 if together else len(waiting), timeout=left)
        for call in ready:
            answers[waiting.pop(call)] = _answer(call)
        if together and any(answer.problem for answer in answers.values()):
            break
    late = Answer(problem=f"no answer within {limit:g} s", late=True)
    return {key: answers.get(key, late) for key in calls}


def _answer(call: Any) -> Answer:
    try:
        return Answer(value=ray.get(call))
    except Exception as error:  # Whatever it is, it is what is wrong with this node.
        return Answer(problem=said(error.cause if isinstance(error, RayTaskError) and error.cause else error))


def said(error: BaseException) -> str:
    r"""One line of an error: the last that names one, as Ray quotes whole tracebacks of other processes.

    Examples
    --------
    >>> said(RuntimeError("It failed. Traceback:\nModuleNotFoundError: No module named 'a'\n"))
    "ModuleNotFoundError: No module named 'a'"
    >>> said(ValueError("a wrong value"))
    'ValueError: a wrong value'
    """
    lines = str(error).strip().splitlines() or [""]
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]*Error: ", line)]
    return (named[-1] if named else f"{type(error).__name__}: {lines[0]}")[:300]


def require_seen(written: Mapping[str, storage.Place], root: storage.Place = "", paths: Iterable[str] = ()) -> None:
    """Refuse a local path that means another folder on some node, before hours of work go into it.

    On a cluster of one node, and for URIs of a storage, nothing is asked. A node that joins later is not asked either.

    Parameters
    ----------
    written : mapping of str to str or Path
        By flag, the folders that workers write into and others read. Every node must see a file that the driver
        writes there, and the driver the file that every node writes; of a folder that is not there yet, in the nearest
        one above it.
    root : str or Path
        Path or URI of the images.
    paths : iterable of str
        Files below ``root``. Some of them must be on every node, of the size that they have here. Nothing is written
        there, and equal copies on the nodes' own disks will do.

    Raises
    ------
    ClusterError
        Names the node, the flag and the path, and what to do.
    """
    # A head without CPUs runs no worker, but the driver may be on it.
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in alive() if node.cpus or node.id == here]
    folders = {flag: place for flag, given in written.items() if (place := storage.local_path(str(given)))}
    base = storage.local_path(str(root)) if root else None
    if len(nodes) < 2 or not (folders or base):
        return
    sizes = _sizes(base, list(paths)) if base else {}
    token = f".mammoray-{secrets.token_hex(8)}"
    probes = {flag: str(_nearest(Path(folder)) / token) for flag, folder in folders.items()}
    try:
        for flag, probe in probes.items():
            _leave(flag, probe)
        answers = ask(look, {node: (node.id, probes, sizes) for node in nodes})
        for node in nodes:
            problem = _unseen(node, answers[node], probes)
            # One that died, or kills its processes for want of memory, is the business of those who would have used it.
            short = shortage.is_memory(RuntimeError(answers[node].problem))
            if problem is not None and not short and node.id in {one.id for one in alive()}:
                raise _refusal(node, problem, {**folders, "--dicom-root": base})
    finally:
        for probe in probes.values():
            for file in Path(probe).parent.glob(f"{token}*"):
                file.unlink(missing_ok=True)


def _sizes(base: str, paths: list[str]) -> dict[str, int]:
    """Bytes of some files, by path, as far as they are here."""
    some = [Path(base, path) for path in paths[:: max(1, len(paths) // _FILES)]]
    return {str(path): path.stat().st_size for path in some if path.is_file()}


def _nearest(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _leave(flag: str, probe: str) -> None:
    try:
        Path(probe).write_text(probe, encoding="utf-8")
    except OSError as error:
        folder = str(Path(probe).parent)
        remedy = f"Choose another {flag}."
        raise ClusterError(f"{flag} {folder}", "a folder that can be written", storage.reason(error), remedy) from None


def look(node: str, probes: Mapping[str, str], sizes: Mapping[str, int]) -> tuple[str, str] | None:
    """On a node: look for the driver's probe of each flag, answer it with a file beside it, and look for the images.

    Returns
    -------
    tuple of str or None
        Flag, and what is wrong with it here.
    """
    for flag, probe in probes.items():
        if not _appears(probe):
            return flag, "another folder, or none"
        try:
            Path(f"{probe}-{node}").write_text(node, encoding="utf-8")
        except OSError as error:
            return flag, f"a folder that it cannot write ({storage.reason(error)})"
    for path, size in sizes.items():
        try:
            found = Path(path).stat().st_size
        except OSError as error:
            return "--dicom-root", f"no {path} ({storage.reason(error)})"
        if found != size:
            return "--dicom-root", f"{path} of {found} bytes instead of {size}"
    return None


def _appears(path: str) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not Path(path).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _unseen(node: Node, answer: Answer, probes: Mapping[str, str]) -> tuple[str, str] | None:
    """Flag and problem of a node, seen from here."""
    if answer.problem:
        return "", answer.problem
    if answer.value is not None:
        flag, problem = answer.value
        return flag, problem
    hidden = [flag for flag, probe in probes.items() if not _appears(f"{probe}-{node.id}")]
    return (hidden[0], "a folder whose new files are not seen here") if hidden else None


def _refusal(node: Node, problem: tuple[str, str], folders: Mapping[str, str | None]) -> ClusterError:
    flag, found = problem
    if not flag:
        return ClusterError(
            f"node {node.name}", "an answer", found, "Run mammoray doctor, and mend or remove the node."
        )
    where = f"{flag} {folders[flag]} on node {node.name}"
    instead = "an s3:// URI" if flag == "--dicom-root" else "--storage s3://bucket/prefix"
    return ClusterError(where, "the same folder on every node", found, f"Use {instead}, or {_MOUNT}.")
