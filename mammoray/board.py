"""What the driver and the workers of a training tell each other while Ray Train runs them: an actor beside them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mammoray.errors import MammorayError

_POLL_SECONDS = 0.5
Say = Callable[[str], None]
Log = Callable[[dict[str, Any]], None]


class Board:
    """Messages and records of rank 0 on their way to the driver; a request to stop on its way to rank 0."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._records: list[dict[str, Any]] = []
        self._asked = False
        self._failure: MammorayError | None = None
        self._stopped: str | None = None

    def put(self, message: str) -> None:
        """Say something to people."""
        self._messages.append(message)

    def log(self, record: dict[str, Any]) -> None:
        """Tell the record of an epoch."""
        self._records.append(record)

    def take(self, stop: bool) -> tuple[list[str], list[dict[str, Any]]]:
        """Messages and records since the last time; ``stop`` asks the training to stop."""
        self._asked = self._asked or stop
        taken = self._messages, self._records
        self._messages, self._records = [], []
        return taken

    def asked(self) -> bool:
        """Whether the training is to stop."""
        return self._asked

    def stopped(self, where: str) -> None:
        """The training has stopped because it was asked to."""
        self._stopped = where

    def where(self) -> str | None:
        """Where the training has stopped."""
        return self._stopped

    def fail(self, error: MammorayError) -> None:
        """Tell of an error that would come again if the training went on."""
        self._failure = self._failure or error

    def failure(self) -> MammorayError | None:
        """The first such error."""
        return self._failure


def open_board() -> Any:
    """A board on this node: it must not be lost with one that can be."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


@contextlib.contextmanager
def listening(board: Any, say: Say, log: Log, told: threading.Event | None = None) -> Iterator[None]:
    """Pass on what the workers say, and to them the wish to stop, for the time of a ``with`` block.

    They are to stop when ``told`` is set, or when this process gets a SIGTERM.
    """
    done, told = threading.Event(), told or threading.Event()

    def listen() -> None:
        while not done.wait(_POLL_SECONDS):
            drain()

    def drain() -> None:
        with contextlib.suppress(ray.exceptions.RayActorError):  # Lost with its node; only words are lost with it.
            messages, records = ray.get(board.take.remote(told.is_set()))
            for message in messages:
                say(message)
            for record in records:
                log(record)

    thread = threading.Thread(target=listen, daemon=True)
    with _on_sigterm(told):
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            drain()


@contextlib.contextmanager
def _on_sigterm(told: threading.Event) -> Iterator[None]:
    """Only sets ``told``: a handler runs in the middle of whatever the main thread does. The second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        told.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
