"""The output folder of a verb that is done in one go, and its copy on storage that others see (``--storage``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mammoray import mirror, storage
from mammoray.errors import RunFolderError

_PROBE = ".probe.partial"
_REMEDY = "Choose another --outdir."


@contextlib.contextmanager
def written(outdir: Path, own: Sequence[str], shared: str | None, alone: bool = False) -> Iterator[None]:
    """Make the folder; at the end of the ``with`` block, also where an error ends it, its files are in the copy too.

    Parameters
    ----------
    outdir : Path
    own : sequence of str
        The files that the verb writes. Those that it did not write this time leave the copy.
    shared : str or None
        Path or URI, below which the copy has the folder's name.
    alone : bool
        Refuse a folder or a copy with anything else in it: a run has files of the same names.

    Raises
    ------
    RunFolderError
        The folder cannot be written, or holds something else.
    StorageError
        The storage does not answer, or cannot be written.
    """
    copy = mirror.Mirror(outdir, mirror.place(outdir, shared))
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        here = {path.name for path in outdir.iterdir()}
    except OSError as error:
        found = type(error).__name__
        raise RunFolderError(str(outdir), "a folder that can be written", found, _REMEDY) from error
    if alone:
        _require_own(str(outdir), here, own)
        _require_own(storage.shown(copy.copy or ""), {name.partition("/")[0] for name in copy.names()}, own)
    if copy.copy is not None:  # Not only after hours.
        (outdir / _PROBE).touch()
        copy.push((_PROBE,))
        copy.remove(_PROBE)
    finished = False
    try:
        yield
        finished = True
    finally:
        there = [name for name in own if (outdir / name).exists()]
        copy.push(there)
        for name in set(own).difference(there) if finished else ():
            copy.remove(name)


def _require_own(place: str, names: set[str], own: Sequence[str]) -> None:
    other = sorted(name for name in names.difference(own) if not name.endswith(".partial"))
    if other:
        expected = "an empty folder, or the results of this verb"
        raise RunFolderError(place, expected, ", ".join(other[:5]), _REMEDY)
