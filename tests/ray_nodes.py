"""Clusters of several nodes as people start them, by ``ray start``, where a node may be odd in its own way."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
OWN_MOUNTS = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
"""What a program is started with to have mounts that no other sees."""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a process that is to know of no other Ray than its own."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return own | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)} | more


def end_all(ray_folder: Path) -> None:
    """End what is left of the processes of such an environment: nodes outlive the process that began them."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") == str(ray_folder):
                process.kill()
    shutil.rmtree(ray_folder, ignore_errors=True)


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class RayNodes:
    """A cluster whose processes know nothing of other Rays; ``folder`` has to be near the root of the disk.

    With a ``dashboard`` it asks nobody for a token, so that a browser can look at it.
    """

    def __init__(self, folder: Path, dashboard: bool = False) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.token = secrets.token_hex(32)
        self.open = dashboard
        self.address, board = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.dashboard = f"http://{board}"
        port = board.split(":")[1]
        shown = [f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"] if dashboard else []
        head = ["--head", f"--port={self.address.split(':')[1]}", f"--temp-dir={folder}"]
        self._begin([*head, f"--include-dashboard={str(dashboard).lower()}", *shown], (), {})

    def add(self, before: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """A node more; ``before`` is what its command line begins with."""
        self._begin([f"--address={self.address}"], before, environment or {})

    def _begin(self, which: Sequence[str], before: Sequence[str], environment: Mapping[str, str]) -> None:
        words = [*before, RAY, "start", *which, "--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        words += ["--object-store-memory=250000000"]
        done = subprocess.run(
            words, env=self.environment(**environment), cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def environment(self, **more: str) -> dict[str, str]:
        """Of all processes of this cluster, and of programs that use it."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own |= {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.folder), "RAY_ADDRESS": self.address}
        # Said, because a head takes a token that it finds in the home folder, and the nodes behind it do not.
        if self.open:
            return own | {"RAY_AUTH_MODE": "disabled"} | more
        return own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} | more

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``python WORDS`` to its end."""
        return subprocess.run(
            [sys.executable, *words],
            env=self.environment(**environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def processes(self) -> Iterator[psutil.Process]:
        """All that belong to it."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR") == str(self.folder):
                    yield process

    def raylets(self) -> list[psutil.Process]:
        """One a node, the head's first."""
        found = [process for process in self.processes() if process.name() == "raylet"]
        return sorted(found, key=lambda process: process.create_time())

    def close(self) -> None:
        """End it."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
