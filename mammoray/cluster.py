"""The one connection to Ray: a new local session, the job this runs in, or a cluster by address."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import ray
import ray.data

from mammoray.errors import ClusterError, InterruptedRunError

T = TypeVar("T")
_TIMEOUT = 5.0  # Seconds for the first answer of a cluster's address.


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Connect this process to Ray for the time of a ``with`` block.

    Parameters
    ----------
    address : str or None
        ``auto`` or ``HOST:PORT`` of a running cluster, ``ray://HOST:PORT`` of its client server, or None: the cluster
        of the job that this process belongs to (``RAY_ADDRESS``), or one that ``ray start`` began on this machine,
        else a new session.

    Raises
    ------
    ClusterError
        Nothing answers there, or it refuses.
    """
    if ray.is_initialized():
        yield
        return
    elsewhere = address is not None
    source = "--address" if elsewhere else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or None
    _check_reachable(address, source)
    # The driver says what matters in its own words; all that Ray says stays in the session's folder.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": is_client(address)}
    if elsewhere:
        # The cluster may have other code than the caller, or none: this package goes along.
        options["runtime_env"] = {"py_modules": [str(Path(__file__).parent)]}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:300].rstrip(".")
        raise ClusterError(
            f"{source} {address}",
            "a running Ray cluster",
            reason,
            "Start one with 'ray start --head', or leave the address out.",
        ) from error
    try:
        with _ended_in_peace():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ended_in_peace() -> Iterator[None]:
    """End at a SIGTERM as at an interrupt from the keyboard; a training has a better answer of its own.

    Ray's answer is to end the process at once and print its stack. An exception from a handler could come up in Ray's
    own code, where an interrupt is known. The second SIGTERM kills.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # It is ignored in what a shell has in the background.
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        remedy = "The same command goes on from there."
        raise InterruptedRunError("the run", "to be left alone", "an interrupt", remedy) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def is_client(address: str | None) -> bool:
    """Whether the address is of Ray's client server, whose programs run outside the cluster."""
    return address is not None and address.startswith("ray://")


def run_there(address: str | None, function: Callable[..., T], *args: Any) -> T:
    """Call ``function``, which connects to Ray itself.

    Through ``ray://`` the call itself runs on the cluster, because its files are there and not here; paths then mean
    paths of the cluster.
    """
    if not is_client(address):
        return function(*args)
    with connect(address):
        return run_with(0, 0, function, *args)


def run_with(cpus: float, gpus: float, function: Callable[..., T], *args: Any) -> T:
    """Call ``function`` as a task, on whichever node has these resources free; its errors arrive as they were."""
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(function)
    try:
        result: T = ray.get(remote.remote(*args))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    return result


def _check_reachable(address: str | None, source: str = "--address") -> None:
    """Ask the socket first: Ray itself waits a minute for an address that does not answer."""
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    problem = "no HOST:PORT" if not host or not port.isdigit() else None
    if problem is None:
        try:
            with socket.create_connection((host, int(port)), timeout=_TIMEOUT):
                return
        except OSError as error:
            problem = f"{os.strerror(error.errno) if error.errno else error}"
    raise ClusterError(
        f"{source} {address}",
        "a Ray cluster that answers",
        problem,
        "Check the address, or start one with 'ray start --head'.",
    )
