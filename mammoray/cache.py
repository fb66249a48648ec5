"""The decoded cache: Arrow shards in a folder, on this machine's disks or on any storage that pyarrow reaches.

It is addressed by what its content follows from: a folder per digest of (decode settings, decoder version), and in it a
row per file under the digest of the file's path, size and modification time, as make and rsync judge. A shard is
written under another name and moved into place, so that a reader never sees half of one: one rule for disks, where the
move is a rename, and for object stores, where it is a copy. Two runs at once at worst decode a file twice; the first
shard by name counts.

``index`` in the folder says again what stands in the shards beside the pixels, because to open a thousand shards takes
seconds, and minutes over a network. It follows from the shards and may be missing, behind or deleted.

Shapes: ``B`` batch, ``H, W`` image.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import feather, fs, ipc

from mammoray import storage
from mammoray.config import DecodeConfig
from mammoray.errors import IngestError
from mammoray.plain import digest

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("pixels", pa.binary()),  # (H, W) row-major, little endian; null where decoding failed
        ("transfer_syntax", pa.string()),
        ("geometry", pa.string()),  # JSON of decode.Geometry
        ("seconds", pa.float32()),  # processor time of the decoding
        ("error", pa.string()),  # JSON list of where, expected, found, remedy, exception
    ]
)
_TEXTS = [name for name in _SCHEMA.names if name != "pixels"]
_PIXELS = _SCHEMA.get_field_index("pixels")
_LAYOUT = "Arrow IPC, a batch an image"  # Part of the folder's address: other layouts stand elsewhere.
INDEX_SCHEMA = pa.schema(
    [
        *(_SCHEMA.field(name) for name in _TEXTS),
        ("shard", pa.string()),
        ("position", pa.int64()),
        ("bytes", pa.int64()),  # of the shard, by which the index knows one that was changed or lost
    ]
)
"""What is known of a cached file without its pixels; ``shard`` is the shard's name in its folder."""
_STALE_NS = 24 * 3600 * 10**9
_READERS = 16  # Requests at once to storage that answers slowly.
_OPEN_SHARDS = 1024  # A footer of 64 images takes some kilobytes.


def cache_folder(cache: str, config: DecodeConfig) -> str:
    """Path or URI of the shards made with these settings by this version of the decoder, in this form."""
    from mammoray.decode import DECODER_VERSION  # noqa: PLC0415 - readers of the cache do without codecs.

    return storage.join(cache, digest(config, DECODER_VERSION, _SCHEMA.names, _LAYOUT))


def _storage(folder: str) -> tuple[fs.FileSystem, str]:
    return storage.filesystem(folder, "--cache")


def make_folder(folder: str) -> None:
    """Make the folder, with those above it.

    Raises
    ------
    IngestError
        It cannot be made.
    """
    filesystem, path = _storage(folder)
    try:
        filesystem.create_dir(path, recursive=True)
    except (pa.ArrowException, OSError) as error:
        remedy = "Choose another --cache, or set the credentials of this storage in the environment."
        raise IngestError(
            storage.shown(folder), "a folder that can be written (--cache)", storage.reason(error), remedy
        ) from None


def file_keys(rows: pd.DataFrame, root: str) -> pd.Series:
    """Cache key of each row's file, from its whole path or URI, its size in bytes and its modification time."""
    # A Path for each of 50,000 rows would take a second.
    base = storage.shown(root) if storage.is_uri(root) else str(Path(root).resolve())
    triples = zip(rows["path"], rows["size"], rows["mtime_ns"], strict=True)
    keys = [
        hashlib.sha256(f"{base}/{path}\n{size}\n{mtime}".encode()).hexdigest()[:32] for path, size, mtime in triples
    ]
    return pd.Series(keys, index=rows.index, dtype="string")


def write_shard(folder: str, records: Iterable[dict[str, Any]]) -> pa.Table:
    """Write a shard; returns its rows of the index.

    Parameters
    ----------
    folder : str
        Of :func:`cache_folder`.
    records : iterable of dict
        Columns of the shard. Taken one by one: memory holds one image, whatever their number.

    Raises
    ------
    IngestError
        The storage does not take it.
    """
    filesystem, path = _storage(folder)
    name = f"{uuid.uuid4().hex}.arrow"
    target, partial = f"{path}/{name}", f"{path}/{name}.partial"
    texts: list[dict[str, Any]] = []
    with _write_errors(folder):
        sink = filesystem.open_output_stream(partial)
    try:
        with _write_errors(folder), sink, _writer(sink) as writer:
            for record in records:
                writer.write_batch(_batch([{"pixels": record.get("pixels")}]))
                texts.append({column: record.get(column) for column in _TEXTS})
            writer.write_batch(_batch(texts))
        with _write_errors(folder):
            size = filesystem.get_file_info(partial).size
            (filesystem.move(partial, target) if texts else filesystem.delete_file(partial))
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(partial)
        raise
    return _index_rows(_batch(texts), name, size)


def _batch(records: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(records, schema=_SCHEMA)


def _writer(sink: Any, compression: str | None = "lz4") -> ipc.RecordBatchFileWriter:
    # lz4: benchmarks/ingest.py has what others cost.
    return ipc.new_file(sink, _SCHEMA, options=ipc.IpcWriteOptions(compression=compression))


@contextlib.contextmanager
def _write_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise IngestError(
            storage.shown(folder),
            "a cache that can be written",
            storage.reason(error),
            "Check the storage and run again.",
        ) from None


def read_index(folder: str, tidy: bool = True) -> pa.Table:
    """Everything but the pixels of every cached file, as :data:`INDEX_SCHEMA`; the first shard by name counts.

    Parameters
    ----------
    folder : str
        Of :func:`cache_folder`; there may be none.
    tidy : bool
        Whether to bring the folder's written index up to date where it is behind, and to clear away what killed runs
        left.

    Raises
    ------
    IngestError
        The folder or a shard cannot be read.
    """
    filesystem, path = _storage(folder)
    try:
        entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except (pa.ArrowException, OSError) as error:
        raise IngestError(
            storage.shown(folder), "a folder that can be read", storage.reason(error), "Check --cache."
        ) from None
    if tidy:
        _clear_away(filesystem, entries)
    sizes = {entry.base_name: entry.size for entry in entries if entry.base_name.endswith(".arrow")}
    known = _read_known(filesystem, path, sizes)
    others = sorted(set(sizes) - set(known["shard"].unique().to_pylist()))
    with ThreadPoolExecutor(_READERS) as pool:
        tables = pool.map(lambda name: _read_texts(folder, name, sizes[name]), others)
        index = first_of_each(pa.concat_tables([known, *tables]))
    if others and tidy:
        write_index(folder, index)
    return index


def _clear_away(filesystem: fs.FileSystem, entries: list[fs.FileInfo]) -> None:
    """Delete what killed runs left half written; what is younger than a day may be another run's work."""
    for entry in entries:
        if entry.base_name.endswith(".partial") and entry.mtime_ns and time.time_ns() - entry.mtime_ns > _STALE_NS:
            with contextlib.suppress(pa.ArrowException, OSError):
                filesystem.delete_file(entry.path)


def first_of_each(index: pa.Table) -> pa.Table:
    """The rows of an index without those whose key stands in a shard with a smaller name."""
    index = index.sort_by([("shard", "ascending"), ("position", "ascending")])
    again = index["key"].to_pandas().duplicated().to_numpy()
    return index.filter(pa.array(~again)) if again.any() else index


def _read_known(filesystem: fs.FileSystem, path: str, sizes: dict[str, int]) -> pa.Table:
    """Rows of the written index whose shards are there as it knows them."""
    try:
        with filesystem.open_input_file(f"{path}/index") as source:
            index = feather.read_table(source, memory_map=False).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return INDEX_SCHEMA.empty_table()
    now = index["shard"].to_pandas().map(sizes).to_numpy()
    return index.filter(pa.array(now == index["bytes"].to_numpy()))


def _read_texts(folder: str, name: str, size: int) -> pa.Table:
    shard = storage.join(folder, name)
    with _shard_errors(shard):
        reader = _reader(shard)
        texts = reader.get_batch(reader.num_record_batches - 1)
        texts.validate(full=True)  # Offsets in a damaged file may lead anywhere.
        return _index_rows(texts, name, size)


def _index_rows(texts: pa.RecordBatch, name: str, size: int) -> pa.Table:
    rows = len(texts)
    own = [pa.array([name] * rows, pa.string()), pa.array(range(rows), pa.int64()), pa.array([size] * rows, pa.int64())]
    return pa.table([*(texts.column(column) for column in _TEXTS), *own], schema=INDEX_SCHEMA)


@contextlib.contextmanager
def _shard_errors(shard: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:  # Damaged metadata leads to any of them.
        raise IngestError(
            storage.shown(shard), "a shard of the decoded cache", storage.reason(error),
            "If it is damaged, delete it: its images are decoded again. Else run again.",
        ) from None  # fmt: skip


def write_index(folder: str, index: pa.Table) -> None:
    """Keep an index for the next :func:`read_index`; where that fails, the next one reads the shards."""
    filesystem, path = _storage(folder)
    partial = f"{path}/{uuid.uuid4().hex}.partial"
    with contextlib.suppress(pa.ArrowException, OSError):
        with filesystem.open_output_stream(partial) as sink:
            feather.write_feather(index.combine_chunks(), sink, compression="zstd")
        filesystem.move(partial, f"{path}/index")


def shard_paths(folder: str, names: pd.Series) -> pd.Series:
    """Path or URI of each shard, by which :func:`load_pixels` finds it."""
    return names.map({name: storage.join(folder, name) for name in names.dropna().unique()})


def _reader(shard: str) -> ipc.RecordBatchFileReader:
    folder, name = storage.split(shard)
    filesystem, path = _storage(folder)
    # One thread: who reads has threads or tasks of his own.
    options = ipc.IpcReadOptions(use_threads=False)
    reader = ipc.open_file(filesystem.open_input_file(f"{path}/{name}"), options=options)
    if not reader.schema.equals(_SCHEMA):
        raise pa.ArrowInvalid("other columns than those of a shard")
    return reader


_open_shard = functools.lru_cache(maxsize=_OPEN_SHARDS)(_reader)


def load_pixels(shards: list[str], positions: npt.NDArray[np.int64], config: DecodeConfig) -> npt.NDArray[Any]:
    """Cached images, (B, H, W) uint8 or uint16, of the given shards and positions in them.

    Raises
    ------
    IngestError
        A shard cannot be read.
    """
    dtype = np.dtype("u1" if config.depth == 8 else "<u2")
    images = np.empty((len(shards), config.height, config.width), dtype=dtype)
    rows_of: dict[str, list[int]] = {}
    for row, shard in enumerate(shards):
        rows_of.setdefault(shard, []).append(row)

    def load(shard: str) -> None:
        with _shard_errors(shard):
            reader = _open_shard(shard)
            for row in rows_of[shard]:
                content = _pixels(reader.get_batch(int(positions[row])), images[row].nbytes)
                images[row] = np.frombuffer(content, dtype=dtype).reshape(images.shape[1:])

    if shards and isinstance(_storage(storage.split(shards[0])[0])[0], fs.LocalFileSystem):
        for shard in rows_of:  # A mapped file has nothing to wait for.
            load(shard)
    else:
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(load, rows_of))
    return images


def _pixels(batch: pa.RecordBatch, size: int) -> pa.Buffer:
    # By the buffer itself: its length is known, where offsets in a damaged file may lead anywhere.
    content = batch.column(_PIXELS).buffers()[2]
    if content is None or content.size != size:
        raise pa.ArrowInvalid(f"{content.size if content else 0} bytes of pixels instead of {size}")
    return content
