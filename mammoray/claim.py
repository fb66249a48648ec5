"""Whose an output folder is: its ``run.json`` has the identity of the run that took it, and whether it is finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mammoray import __version__, prepare
from mammoray.errors import RunFolderError
from mammoray.mirror import Mirror

_ANOTHER = "Choose another --outdir."


def is_finished(outdir: Path, identity: str) -> bool:
    """Whether the folder holds this very run, finished; nothing is written.

    Raises
    ------
    RunFolderError
        It holds something else that may not be replaced. A run that has not trained an epoch yet may be: nothing is
        lost but a typing error.
    """
    held = _read_marker(outdir / "run.json")
    if held is not None and held["identity"] == identity:
        return bool(held["finished"]) and (outdir / "metrics.json").exists()
    if held is not None and (held["finished"] or (outdir / "history.jsonl").exists()):
        found = f"another run ({held['identity']}): other settings, another split or other files"
        remedy = "Choose another --outdir, or remove the folder."
        raise RunFolderError(str(outdir), f"an empty folder, or this run ({identity})", found, remedy)
    if held is None and outdir.is_dir() and any(_is_foreign(path) for path in outdir.iterdir()):
        raise RunFolderError(str(outdir), "an empty folder, or a run of mammoray", "other files", _ANOTHER)
    return False


def take(copy: Mirror, identity: str) -> None:
    """Write down that the folder, and its copy, is this run's; where it already is, everything in it stays.

    Raises
    ------
    RunFolderError
        It cannot be written.
    """
    outdir = copy.folder
    held = _read_marker(outdir / "run.json")
    if held is not None and held["identity"] == identity:
        return
    try:
        copy.remove("checkpoints")
        outdir.mkdir(parents=True, exist_ok=True)
        write_json(outdir / "run.json", {"version": __version__, "identity": identity, "finished": False})
        copy.push(("run.json",))  # Before all else, by which another machine would not know the run.
    except OSError as error:
        raise RunFolderError(str(outdir), "a folder that can be written", type(error).__name__, _ANOTHER) from error


def require_writable(outdir: Path) -> None:
    """Refuse a folder that :func:`take` would fail on, as far as can be seen without writing.

    Raises
    ------
    RunFolderError
    """
    nearest = next(folder for folder in (outdir, *outdir.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        found = f"{nearest}, which is {'not writable' if nearest.is_dir() else 'no folder'}"
        raise RunFolderError(str(outdir), "a folder that can be written", found, _ANOTHER)


def _is_foreign(path: Path) -> bool:
    return path.suffix != ".partial" and path.name not in prepare.FILES


def _read_marker(marker: Path) -> dict[str, Any] | None:
    """The content of a run's marker, or None where there is none."""
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
        return {"identity": held["identity"], "finished": held["finished"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        found, remedy = f"a damaged file ({type(error).__name__})", "Choose another --outdir, or remove the folder."
        raise RunFolderError(str(marker), "the marker of a run", found, remedy) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file in one step: whoever reads it finds all of it, or what was there before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
