"""A storage tried by every node: all write a small file, all read what all have written, all remove their own.

Each call returns what is wrong, in words without the URI, or "".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mammoray import storage
from mammoray.errors import StorageError

_FLAG = "--storage"


def write(folder: str, token: str, name: str) -> tuple[str, float]:
    """Write the file ``name`` below a folder or URI that is there, and read it back.

    Returns
    -------
    str, float
        What is wrong, and the seconds that it took.
    """
    started = time.monotonic()
    problem = _tried(_write, folder, token, name)
    return problem, time.monotonic() - started


def _write(folder: str, token: str, name: str) -> str:
    local = storage.local_path(folder)
    if local is not None and not Path(local).is_dir():
        return "no such folder"
    system, path = storage.filesystem(_own(folder, token), _FLAG)
    system.create_dir(path, recursive=True)
    with system.open_output_stream(f"{path}/{name}") as sink:
        sink.write(name.encode())
    return "" if storage.read(storage.join(_own(folder, token), name)) == name.encode() else "it reads other bytes back"


def read(folder: str, token: str, writers: Mapping[str, str]) -> str:
    """List and read the files of all nodes; ``writers`` has who wrote each, by its name."""
    return _tried(_read, folder, token, writers)


def _read(folder: str, token: str, writers: Mapping[str, str]) -> str:
    own = _own(folder, token)
    listed = {entry.path for entry in storage.walk(own)}
    good = {name for name in listed & set(writers) if storage.read(storage.join(own, name)) == name.encode()}
    missing = sorted(who for name, who in writers.items() if name not in good)
    return f"what {', '.join(missing)} wrote is not seen" if missing else ""


def remove(folder: str, token: str, name: str) -> str:
    """Remove the file of one node, and on a disk the folder of all of them with the last one."""
    return _tried(_remove, folder, token, name)


def _remove(folder: str, token: str, name: str) -> str:
    own = _own(folder, token)
    system, path = storage.filesystem(own, _FLAG)
    system.delete_file(f"{path}/{name}")
    local = storage.local_path(own)
    if local is not None:
        with contextlib.suppress(OSError):  # There are more files in it.
            Path(local).rmdir()
    return ""


def clear(folder: str, token: str) -> str:
    """Remove the folder of all files, with what is left in it."""
    return _tried(_clear, folder, token)


def _clear(folder: str, token: str) -> str:
    system, path = storage.filesystem(_own(folder, token), _FLAG)
    system.delete_dir(path)
    return ""


def _own(folder: str, token: str) -> str:
    return storage.join(folder, f"mammoray-doctor-{token}")


def _tried(function: Callable[..., str], *args: Any) -> str:
    try:
        return function(*args)
    except StorageError as error:
        return error.found
    except (OSError, ValueError) as error:  # Those of pyarrow are among them.
        return storage.reason(error)
