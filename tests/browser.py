"""Headless Chromium without a network: what it shows of a page, says about it and asks for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

_OWN = ("google.com", "googleapis.com", "~notfound")  # What Chromium asks for by itself, in vain.
_QUIET = (
    "headless", "no-sandbox", "disable-gpu", "disable-sync", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A page after its scripts have run."""

    dom: str
    """Its elements."""
    console: list[str]
    """What scripts and the browser complained of."""
    hosts: set[str]
    """Whom it asked for something over a network, this machine's own name included."""


def see(tmp_path: Path, uri: str, milliseconds: int = 10_000, size: str = "1280,2000") -> Seen:
    """Open a page; no name but this machine's can be resolved.

    ``milliseconds`` are of the page's own clock, which runs ahead while nothing is under way.
    """
    log = tmp_path / "net.json"
    arguments = [
        *(f"--{flag}" for flag in _QUIET), f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--virtual-time-budget={milliseconds}",
        f"--window-size={size}", "--enable-logging=stderr", "--dump-dom", uri,
    ]  # fmt: skip
    done = subprocess.run([str(CHROMIUM), *arguments], capture_output=True, text=True, timeout=60, check=True)
    asked = {str(event.get("params", {}).get("url", "")) for event in json.loads(log.read_text())["events"]}
    hosts = {found[1] for url in asked if (found := re.match(r"(?:https?|wss?)://([^/:]+)", url))}
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(done.stdout, complaints, {host for host in hosts if not host.endswith(_OWN)})
