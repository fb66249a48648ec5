"""Functions that a test has called in a child process: well behaved ones, and every kind of accident."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.errors import DecodeError
from mammoray.pixels import PixelFacts, look

WARM: list[bool] = []


def warm_up() -> None:
    """What a child does before its first job."""
    WARM.append(True)


def act(what: str, argument: Any = None) -> Any:
    """Do what a job says, and return its argument if there is a return."""
    if what == "raise":
        raise argument
    accidents: dict[str, Callable[[Any], Any]] = {
        "print": _speak,
        "segfault": lambda _: ctypes.string_at(0),
        "kill": lambda number: os.kill(os.getpid(), number),
        "kill once": _kill_once,
        "exit": os._exit,
        "sleep": _sleep,
        # Holds the interpreter's lock for minutes: no Python thread could interrupt it.
        "spin in C": lambda _: sum(range(10**11)),
        "bomb": lambda _: bytearray(2**40),
    }
    answers: dict[str, Callable[[], Any]] = {
        "return": lambda: argument,
        "pid": os.getpid,
        "threads": lambda: psutil.Process().num_threads(),
        "warm": lambda: WARM,
        "modules": lambda: sorted(sys.modules),
    }
    return answers[what]() if what in answers else accidents[what](argument)


def _speak(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
    sys.stderr.write(text)
    os.write(1, b"\xff" * 100)


def _kill_once(marker: str) -> None:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _sleep(marker: str | None) -> None:
    if marker:
        Path(marker).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(1000)


def decode_with_accidents(source: str, config: DecodeConfig, name: str) -> Decoded:
    """Decode as usual, but for files that are named in ``accidents`` in the root's parent: see :func:`plant`."""
    accident = Path(source).parents[len(Path(name).parts)] / "accidents" / name.replace("/", "-")
    if not accident.is_file():
        return decode(source, config, name)
    what = accident.read_text(encoding="utf-8")
    if what == "kill the worker":
        accident.unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    if what == "remove the cache":
        shutil.rmtree(accident.parents[2] / "cache")
        return decode(source, config, name)
    act(what)
    raise DecodeError(name, "an accident", "none", "Mend the test.")


def look_with_accidents(path: str, name: str) -> PixelFacts:
    """Look at the pixels as usual, but for files that are named in ``accidents`` in the root's parent."""
    accident = Path(path).parents[len(Path(name).parts)] / "accidents" / name.replace("/", "-")
    if accident.is_file():
        act(accident.read_text(encoding="utf-8"), None)
    return look(path, name)


def plant(folder: Path, accidents: dict[str, str]) -> None:
    """Have :func:`decode_with_accidents` meet an accident at some files: their names and what is to happen."""
    (folder / "accidents").mkdir()
    for name, what in accidents.items():
        (folder / "accidents" / name.replace("/", "-")).write_text(what, encoding="utf-8")
