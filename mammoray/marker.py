"""Whose folder it is: ``search.json`` says which search the folder holds, and what it was begun with."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from mammoray import __version__, claim, plain
from mammoray import space as spaces
from mammoray.config import Config, TuneConfig
from mammoray.errors import RunFolderError
from mammoray.pipeline import Source
from mammoray.scale import Scale

NAME = "search.json"
"""The marker's name."""
_NEEDED = {"identity", "csv", "dicom_root", "space", "tune", "scale"}


def read(outdir: Path) -> dict[str, Any] | None:
    """What the search in a folder was begun with, or None where there is none.

    Raises
    ------
    RunFolderError
        It cannot be read.
    """
    path = outdir / NAME
    remedy = "Choose another --outdir."
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RunFolderError(str(path), "the marker of a search", type(error).__name__, remedy) from error
    if not isinstance(content, dict) or not set(content) >= _NEEDED:
        raise RunFolderError(str(path), "the marker of a search", "something else", remedy)
    return content


def search(outdir: Path) -> str:
    """Which search it is, of all that may share a database: of those with the same identity, each folder is one.

    Raises
    ------
    RunFolderError
        As of :func:`read`.
    """
    held = read(outdir) or {}
    return str(held.get("search") or uuid.uuid4().hex)


def take(
    source: Source, space: str, config: Config, search: TuneConfig, scale: Scale, identity: str, name: str
) -> None:
    """Write down what a search is begun with; where the folder is this search's already, its trials stay.

    Parameters
    ----------
    name : str
        Of :func:`search`.

    Raises
    ------
    RunFolderError
        The folder holds anything else, or cannot be written.
    """
    outdir = source.outdir
    held = read(outdir)
    if held is None and outdir.is_dir() and any(outdir.iterdir()):
        raise RunFolderError(str(outdir), "an empty folder, or this search", "other files", "Choose another --outdir.")
    if held is not None and held["identity"] != identity:
        found = f"another search ({held['identity']}): another space, other settings, another split or other files"
        raise RunFolderError(str(outdir), f"an empty folder, or this search ({identity})", found, "Choose another.")
    try:
        (outdir / "trials").mkdir(parents=True, exist_ok=True)
        (outdir / "config.toml").write_text(plain.to_toml(config), encoding="utf-8")
        begun = {
            "version": __version__,
            "identity": identity,
            "search": name,
            "csv": None if source.csv is None else str(source.csv),
            "dicom_root": str(source.dicom_root),
            "space": Path(spaces.copy(space, outdir)).name,
            "tune": plain.to_dict(search),
            "scale": plain.to_dict(scale),
        }
        claim.write_json(outdir / NAME, begun)
    except OSError as error:
        found, remedy = type(error).__name__, "Choose another --outdir."
        raise RunFolderError(str(outdir), "a folder that can be written", found, remedy) from error
