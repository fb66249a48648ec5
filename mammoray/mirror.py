"""A run's folder on this machine, and its copy on storage that the nodes of a cluster share (``--storage``).

The copy is the truth: it is fetched before a run goes on, wherever the driver now is, and brought up to date while it
works. Ray's own checkpoints, which workers write, lie there only; what a driver that is lost can take along is some
seconds of what they tell.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from mammoray import storage
from mammoray.errors import MammorayError, RunFolderError, StorageError

_EVERY = 5.0  # Seconds between looks for new files.
_MARKERS = ("run.json", "search.json")  # Each says whose the folder is, by its identity.
RAYS = "checkpoints/ray"
"""Folder of Ray's own checkpoints in a run's folder."""
Known = dict[str, tuple[int, int]]
"""Size and time of each file that is the same on both sides."""


def place(outdir: Path, shared: str | None) -> str | None:
    """Where a run's folder has its copy, or None where all nodes see the folder itself.

    Examples
    --------
    >>> place(Path("runs/first"), "s3://bucket/runs?region=eu-west-1")
    's3://bucket/runs/first?region=eu-west-1'
    >>> place(Path("/shared/runs/first"), "/shared/runs") is None
    True
    """
    if not shared:
        return None
    copy = storage.join(storage.absolute(shared), outdir.name)
    own = storage.local_path(copy)
    return None if own and Path(own).resolve() == outdir.resolve() else copy


class Mirror:
    """A folder and its copy; without a copy, nothing happens.

    Parameters
    ----------
    folder : Path
    copy : str or None
        Path or URI.
    without : str
        Files with this in their path stay where they are.
    """

    def __init__(self, folder: Path, copy: str | None, without: str = "") -> None:
        self.folder, self.copy, self.without = folder, copy, without
        self.known: Known = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Mirror], tuple[Path, str | None, str]]:
        """For Ray Tune, which pickles all that a search has; the copy of an object begins to look anew."""
        return Mirror, (self.folder, self.copy, self.without)

    def fetch(self, below: str = "") -> None:
        """Take all files that the copy has, or those below one of its folders, in place of those that are here.

        Raises
        ------
        StorageError
            It does not answer.
        """
        if self.copy is None:
            return
        with answering(self.copy), self.lock:
            # The marker first: without it, what a broken fetch has brought would count as somebody else's.
            for entry in sorted(self._entries(below), key=lambda entry: entry.path not in _MARKERS):
                name = f"{below}/{entry.path}" if below else entry.path
                if not self._is_left(name) and not self._is_same(name, entry.size):
                    storage.download(storage.join(self.copy, name), self.folder / name)
                    self.known[name] = _stamp(self.folder / name)

    def names(self) -> list[str]:
        """Files of the copy, by their paths in it.

        Raises
        ------
        StorageError
            It does not answer.
        """
        return [entry.path for entry in self._entries("")]

    def _entries(self, below: str) -> list[storage.Entry]:
        source = storage.join(self.copy, below) if self.copy and below else self.copy
        if source is None or not storage.is_folder(source, "--storage"):
            return []
        with answering(source):
            return list(storage.walk(source))

    def push(self, names: Iterable[str] | None = None) -> None:
        """Bring the copy up to date, or only these files of it.

        Raises
        ------
        StorageError
            It cannot be written.
        """
        if self.copy is None:
            return
        with answering(self.copy), self.lock:
            for name in self._changed() if names is None else names:
                with contextlib.suppress(FileNotFoundError):  # Replaced or removed meanwhile.
                    stamp = _stamp(self.folder / name)
                    storage.upload(self.folder / name, storage.join(self.copy, name))
                    self.known[name] = stamp

    def remove(self, name: str) -> None:
        """Remove a file or a folder below, here and in the copy.

        Raises
        ------
        StorageError
        """
        storage.remove(str(self.folder / name))
        if self.copy is not None:
            with answering(self.copy), self.lock:
                storage.remove(storage.join(self.copy, name))
                self.known = {known: stamp for known, stamp in self.known.items() if not known.startswith(f"{name}/")}

    def _is_same(self, name: str, size: int) -> bool:
        path = self.folder / name
        return path.exists() and _stamp(path) == self.known.get(name) and path.stat().st_size == size

    def _changed(self) -> list[str]:
        """Files to push; those last that say that the others are complete."""
        found = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        new = []
        for name in found:
            with contextlib.suppress(FileNotFoundError):
                if not self._is_left(name) and self.known.get(name) != _stamp(self.folder / name):
                    new.append(name)
        return sorted(new, key=lambda name: (name.endswith("run.json"), name.endswith("/finished"), name))

    def _is_left(self, name: str) -> bool:
        mine = f"/{name}"
        return name.endswith(".partial") or f"/{RAYS}/" in mine or bool(self.without and self.without in mine)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def answering(place: str, setting: str = "--storage") -> Iterator[None]:
    """Whatever goes wrong with a storage in a ``with`` block is a :class:`mammoray.errors.StorageError`."""
    try:
        yield
    except MammorayError:
        raise
    except OSError as error:
        remedy = f"Check {setting}, and the credentials in the environment; then the same command goes on from there."
        raise StorageError(storage.shown(place), "storage that answers", storage.reason(error), remedy) from None


@contextlib.contextmanager
def mirrored(folder: Path, copy: str | None, marker: str = "run.json", without: str = "") -> Iterator[Mirror]:
    """Keep a folder and its copy the same for the time of a ``with`` block.

    Parameters
    ----------
    marker : str
        The file that says that the folder is a run's.
    without : str
        As of :class:`Mirror`.

    Raises
    ------
    RunFolderError
        The folder here holds another run, or files of something else, which the copy would be mixed with.
    StorageError
        The storage does not answer at the beginning, or not at the end.
    """
    own = Mirror(folder, copy, without)
    if copy is None:
        yield own
        return
    _require_same(folder, copy, marker)
    own.fetch()
    done = threading.Event()

    def work() -> None:
        while not done.wait(_EVERY):
            with contextlib.suppress(MammorayError, OSError):  # It is tried again, and told of at the end.
                own.push()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield own
    finally:
        done.set()
        thread.join()
        own.push()


def _require_same(folder: Path, copy: str, marker: str) -> None:
    remedy = "Choose another --outdir or --storage, or empty the folder."
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).exists():
        raise RunFolderError(str(folder), "an empty folder, or that of the copy", "other files", remedy)
    there = storage.join(copy, marker)
    with answering(copy):
        if marker in _MARKERS and (folder / marker).exists() and storage.is_file(there, "--storage"):
            here, other = (_identity(place, remedy) for place in (str(folder / marker), there))
            if here != other:
                found = f"{here}, beside {other} in {storage.shown(copy)}"
                raise RunFolderError(str(folder), "the run of the copy", found, remedy)


def _identity(marker: str, remedy: str) -> str:
    try:
        return str(json.loads(storage.read(marker))["identity"])
    except (ValueError, KeyError, TypeError) as error:
        found = f"a damaged file ({type(error).__name__})"
        raise RunFolderError(storage.shown(marker), "the marker of a run", found, remedy) from error
