"""A function that a test has called in a child process, of a module that wants to know what comes next."""

from __future__ import annotations

import os
import signal
import threading
import time

KNOWN: list[int] = []


def announce(number: int, wait: float) -> None:
    """Called before :func:`act`, in another thread."""
    if number == 99:
        raise RuntimeError("no thread can be begun")
    KNOWN.append(number)


def act(number: int, wait: float) -> list[int]:
    """The numbers that are known by the end of some seconds; a number below 0 is an accident."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    assert threading.current_thread() is threading.main_thread()
    time.sleep(wait)
    return list(KNOWN)
