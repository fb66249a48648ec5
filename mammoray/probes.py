"""What a node finds out about itself, without torch: on some node it may be missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

from mammoray import __version__

PACKAGES = ("ray", "torch", "timm", "pydicom", "pyarrow", "imagecodecs")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Ray's object store is there, and nothing else is done with it.


class Facts(TypedDict):
    """What a node is.

    ``versions`` by package, None where it is missing; bytes of all shared memory, and of the disk of Ray's temporary
    folder, all and free; the limit of open files; cores that are not hyper-threads of each other, and threads that
    this process may use; a line for each GPU that its driver tells of.
    """

    versions: dict[str, str | None]
    shared: int | None
    disk: tuple[str, int, int]
    open_files: int
    cores: int
    threads: int
    gpus: list[str]


def facts(folder: str) -> Facts:
    """Look at this machine; ``folder`` is Ray's temporary one."""
    disk = shutil.disk_usage(folder)
    shared = shutil.disk_usage(_SHARED_MEMORY).total if Path(_SHARED_MEMORY).is_dir() else None
    return Facts(
        versions=versions(),
        shared=shared,
        disk=(folder, disk.total, disk.free),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=cores(),
        threads=threads(),
        gpus=gpus(),
    )


def versions() -> dict[str, str | None]:
    """Of Python, the packages, and mammoray with a digest of its code: two states of it may have one number."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "mammoray": f"{__version__} ({code_digest(Path(__file__).parent)})"}


def code_digest(folder: Path) -> str:
    """Eight digits that follow from the modules in a folder, their names and all they say."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def cores() -> int:
    """Cores of the machine, each counted once for all its hyper-threads."""
    lists = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({file.read_text() for file in lists}) or os.cpu_count() or 1


def threads() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Name, memory and driver of each GPU, as ``nvidia-smi`` has them; none where there is no such program."""
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
