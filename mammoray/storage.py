"""Files by path or URI: on this machine's disks, or on storage that pyarrow reaches (s3://, gs://, abfs://, hdfs://).

Credentials are those of the environment (such as AWS_ACCESS_KEY_ID), or the machine's role; a URI may carry other
options of pyarrow's file systems in its query (``?region=eu-west-1&endpoint_override=...``), which stays at its end.

pyarrow is imported where a URI asks for it: the children that decode files of a disk stay light and have one thread.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from mammoray.errors import StorageError

if TYPE_CHECKING:
    from pyarrow import fs

Links = Literal["inside", "follow"]
Place = str | Path
"""A path, or a URI as text."""
_CHUNK = 8 << 20  # Bytes.
_FETCHERS = 4  # Threads of a process that fetch announced files; each waits most of its time.
_fetching: dict[str, Future[bytes]] = {}
# Between tries of a request pass 50 ms, 100 ms, 200 ms and so on: 51 s in all. Bounded, and without the budget for all
# requests of a process that the AWS SDK's "standard" way has, which many readers use up in the first seconds.
_ATTEMPTS = 11
# What an S3 says, or a gateway before it, when the fault is not with the request.
_REFUSALS = "NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|HTTP status 5"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something below a root: its path from there with forward slashes, and what it is.

    Attributes
    ----------
    path : str
    size : int
        Bytes.
    mtime_ns : int
        Time of the last change, in nanoseconds of the epoch.
    kind : {"file", "empty folder", "link out"}
        A link out leads to something outside the root, and is not followed.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    kind: Literal["file", "empty folder", "link out"] = "file"


def is_uri(path: str) -> bool:
    """Whether it names its storage, as ``s3://bucket/prefix`` does."""
    return "://" in path


def absolute(path: Place) -> str:
    """The same place for a process with another working folder.

    Examples
    --------
    >>> absolute("s3://bucket/set/?region=eu-west-1"), absolute("/data/set/")
    ('s3://bucket/set?region=eu-west-1', '/data/set')
    """
    if isinstance(path, str) and is_uri(path):
        return re.sub(r"^([^?]*[^/:?])/+(?=\?|$)", r"\1", path)
    return str(Path(path).absolute())


def join(folder: str, name: str) -> str:
    """Path or URI of ``name``, a plain name or path, below a folder.

    Examples
    --------
    >>> join("/data", "1/2.dcm"), join("s3://bucket/set?region=eu-west-1", "1/breast #2.dcm")
    ('/data/1/2.dcm', 's3://bucket/set/1/breast%20%232.dcm?region=eu-west-1')
    """
    if not is_uri(folder):
        return f"{folder.rstrip('/')}/{name}"
    path, mark, query = folder.partition("?")
    return f"{path.rstrip('/')}/{quote(name)}{mark}{query}"


def split(path: str) -> tuple[str, str]:
    """Folder and name of a path or URI, which :func:`join` joins again."""
    place, mark, query = path.partition("?") if is_uri(path) else (path, "", "")
    folder, _, name = place.rpartition("/")
    return f"{folder}{mark}{query}", unquote(name) if is_uri(path) else name


def shown(path: str) -> str:
    """How a path or URI is printed: without its user part and its query, where people put secrets.

    Examples
    --------
    >>> shown("s3://key:secret@bucket/prefix?endpoint_override=localhost"), shown("/data/cache")
    ('s3://bucket/prefix', '/data/cache')
    """
    return re.sub(r"(?<=://)[^/?]*@", "", path.partition("?")[0]) if is_uri(path) else path


def filesystem(folder: str, setting: str = "--dicom-root") -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it; an S3 that does not answer is asked again for 51 seconds.

    Parameters
    ----------
    folder : str
        Path or URI.
    setting : str
        The flag that it comes from, for the error.

    Raises
    ------
    StorageError
        For a URI that pyarrow cannot read.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import fs  # noqa: PLC0415

    if not is_uri(folder):
        return fs.LocalFileSystem(use_mmap=True), str(Path(folder).absolute())
    root, below = _bucket(folder)
    try:
        system, path = _opened(root)
    except (pa.ArrowException, ValueError, OSError) as error:
        expected = "a folder, or a URI of a storage that pyarrow reaches (s3://, gs://, abfs://, hdfs://, file://)"
        raise StorageError(shown(folder), expected, reason(error), f"Correct {setting}.") from None
    return system, f"{path}/{below}" if below else path


def _bucket(uri: str) -> tuple[str, str]:
    """A URI's bucket with the options, by which connections are kept, and the path in it; others stay whole.

    Examples
    --------
    >>> _bucket("s3://bucket/set/a%20b/1.dcm?region=eu-west-1"), _bucket("file:///data/set")
    (('s3://bucket?region=eu-west-1', 'set/a b/1.dcm'), ('file:///data/set', ''))
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "gs", "gcs"):
        return uri, ""
    path, mark, query = rest.partition("?")
    bucket, _, below = path.partition("/")
    return f"{scheme}://{bucket}{mark}{query}", unquote(below.rstrip("/"))


@functools.lru_cache(maxsize=16)
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, one a process, so that its connections are used again and its region is asked once."""
    from pyarrow import fs  # noqa: PLC0415

    system, path = fs.FileSystem.from_uri(uri)
    if system.type_name == "local":
        system = fs.LocalFileSystem(use_mmap=True)
    elif system.type_name == "s3":
        # A URI has no option for it, and pyarrow's own way gives up after 6 s. What pickles is all other options.
        _, (options,) = system.__reduce__()
        copyreg.pickle(fs.S3FileSystem, _pickled)
        system = _patient(options)
    return system, path


def _patient(options: dict[str, Any]) -> fs.S3FileSystem:
    """An S3 that is asked again."""
    from pyarrow import fs  # noqa: PLC0415

    return fs.S3FileSystem(**options, retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_ATTEMPTS))


def _pickled(system: fs.S3FileSystem) -> tuple[Any, ...]:
    # Ray sends file systems to its workers; what pyarrow pickles of one has no retry strategy.
    return _patient, system.__reduce__()[1]


def reason(error: Exception) -> str:
    """What went wrong, without the text of the error, which may quote the whole URI."""
    if isinstance(error, StorageError):
        return error.found
    if isinstance(error, OSError) and error.errno:
        return f"{type(error).__name__}: {os.strerror(error.errno)}"
    code = re.search(r"AWS Error (\w+)", str(error))
    return f"{type(error).__name__}: {code[1]}" if code else type(error).__name__


def is_silent(error: Exception) -> bool:
    """Whether a storage refuses or does not answer, whatever is asked of it."""
    return isinstance(error, StorageError) or bool(re.search(_REFUSALS, str(error)))


def is_folder(path: str, setting: str = "--dicom-root") -> bool:
    """Whether there is a folder; on an object store, whether any object lies below."""
    return _file_type(path, setting) == "Directory" if is_uri(path) else Path(path).is_dir()


def is_file(path: str, setting: str = "--csv") -> bool:
    """Whether there is a file."""
    return _file_type(path, setting) == "File" if is_uri(path) else Path(path).is_file()


def _file_type(path: str, setting: str) -> str:
    """File, Directory or NotFound."""
    import pyarrow as pa  # noqa: PLC0415

    system, inside = filesystem(path, setting)
    try:
        return str(system.get_file_info(inside).type.name)
    except (pa.ArrowException, OSError) as error:
        remedy = f"Check {setting}, and the credentials of this storage in the environment."
        raise StorageError(shown(path), "storage that answers", reason(error), remedy) from None


def local_path(path: str) -> str | None:
    """The path on this machine's disks, also of a ``file://`` URI; None for what lies elsewhere."""
    if not is_uri(path):
        return str(Path(path).absolute())
    return filesystem(path)[1] if path.startswith("file:") else None


def read(path: str, size: int | None = None) -> bytes:
    """The first ``size`` bytes of a file, or all.

    Raises
    ------
    OSError
        It cannot be read.
    StorageError
        The storage that it lies on answers nothing at all.
    """
    if not is_uri(path):
        with Path(path).open("rb") as file:
            return file.read(-1 if size is None else size)
    system, inside = filesystem(path)
    try:
        with system.open_input_file(inside) as source:
            content: bytes = source.read(size)
            return content
    except OSError as error:
        if not is_silent(error):
            raise
        remedy = "Run again when it does: what is done stays done."
        raise StorageError(shown(path), "a storage that answers", reason(error), remedy) from None


def announce(path: str) -> None:
    """Begin to fetch a file of which :func:`content` is going to be asked for; one on a disk is left alone."""
    if path not in _fetching and local_path(path) is None:
        _fetching[path] = _fetchers().submit(read, path)


@functools.cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_FETCHERS, "fetch")


def content(path: str) -> bytes | memoryview:
    """A whole file: mapped from a disk, so that only what is looked at is read, or fetched from a storage.

    Raises
    ------
    OSError, StorageError
        As of :func:`read`.
    """
    if (begun := _fetching.pop(path, None)) is not None:
        return begun.result()
    local = local_path(path)
    if local is None:
        return read(path)
    with Path(local).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def upload(file: Path, path: str) -> None:
    """Copy a file of this machine to a path or URI; whoever reads there finds all of it, or what was there before.

    Raises
    ------
    OSError
    """
    local = local_path(path)
    if local is None:
        system, inside = filesystem(path)
        with file.open("rb") as source, system.open_output_stream(inside) as target:
            shutil.copyfileobj(source, target, _CHUNK)
        return
    _copy(file, Path(local))


def download(path: str, file: Path) -> None:
    """Copy a file at a path or URI to this machine, in one step as :func:`upload` does, and with its errors."""
    local = local_path(path)
    if local is not None:
        _copy(Path(local), file)
        return
    system, inside = filesystem(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    with system.open_input_stream(inside) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
    partial.replace(file)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def remove(path: str) -> None:
    """Remove a file, or a folder and all below, where there is one.

    Raises
    ------
    OSError, StorageError
    """
    system, inside = filesystem(path, "--storage")
    if is_folder(path, "--storage"):
        system.delete_dir(inside)
    elif is_file(path, "--storage"):
        system.delete_file(inside)


def remove_quietly(path: str) -> None:
    """Remove what nobody needs any more; where the storage refuses, it stays."""
    with contextlib.suppress(OSError, StorageError):
        remove(path)


def walk(root: str, links: Links = "inside") -> Iterator[Entry]:
    """All files below a root, and its empty folders, in the order of their paths.

    Links to folders are not followed: they can lead round in circles. Links to files are, unless they lead out of the
    root.

    Raises
    ------
    StorageError
        The root cannot be listed.
    """
    base = local_path(root)
    if base is None:
        yield from _walk_storage(root)
        return
    try:
        yield from _walk_disk(base, "", None if links == "follow" else str(Path(base).resolve()))
    except OSError as error:
        remedy = "Check --dicom-root and its permissions."
        raise StorageError(shown(root), "a folder that can be listed", reason(error), remedy) from None


def _walk_disk(base: str, below: str, inside: str | None) -> Iterator[Entry]:
    # scandir gives name and kind of an entry in one system call; on network storage that is most of the time.
    with os.scandir(f"{base}/{below}") as found:
        entries = sorted(found, key=lambda entry: entry.name)
    if not entries and below:
        yield Entry(below, kind="empty folder")
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if inside is not None and entry.is_symlink() and _leads_out(entry.path, inside):
            yield Entry(path, kind="link out")
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk_disk(base, path, inside)
        elif entry.is_file():
            status = entry.stat()
            yield Entry(path, status.st_size, status.st_mtime_ns)


def _leads_out(link: str, inside: str) -> bool:
    target = os.path.realpath(link)
    return target != inside and not target.startswith(f"{inside}/")


def _walk_storage(root: str) -> Iterator[Entry]:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import fs  # noqa: PLC0415

    system, base = filesystem(root)
    try:
        infos = system.get_file_info(fs.FileSelector(base, recursive=True))
    except (pa.ArrowException, OSError) as error:
        remedy = "Check --dicom-root, and the credentials of this storage in the environment."
        raise StorageError(shown(root), "a folder that can be listed", reason(error), remedy) from None
    prefix = len(base.rstrip("/")) + 1
    for info in sorted(infos, key=lambda info: str(info.path)):
        if info.type == fs.FileType.File:
            yield Entry(info.path[prefix:], int(info.size), int(info.mtime_ns or 0))
