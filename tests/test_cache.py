import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pytest

from mammoray import cache, storage
from mammoray.config import DecodeConfig
from mammoray.errors import IngestError, StorageError

CONFIG = DecodeConfig(height=40, width=32)


def record(number: int, config: DecodeConfig = CONFIG) -> dict[str, Any]:
    dtype = np.dtype("u1" if config.depth == 8 else "<u2")
    pixels = np.random.default_rng(number).integers(0, 2**config.depth, (config.height, config.width), dtype=dtype)
    return {
        "key": f"key{number}",
        "pixels": pixels.tobytes(),
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "geometry": "{}",
        "seconds": 0.5,
    }


def failure(number: int) -> dict[str, Any]:
    return {"key": f"key{number}", "error": json.dumps(["a", "b", "c", "d", "DecodeError"])}


def image(folder: str, row: dict[str, Any], config: DecodeConfig = CONFIG) -> bytes:
    shard = cache.shard_paths(folder, pd.Series([row["shard"]]))[0]
    content: bytes = cache.load_pixels([shard], np.array([row["position"]]), config)[0].tobytes()
    return content


@pytest.fixture(params=["path", "file", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new folder on each kind of storage."""
    store = {"path": str(tmp_path), "file": f"file://{tmp_path}"}.get(request.param) or request.getfixturevalue("s3")
    made = storage.join(cache.cache_folder(store, CONFIG), tmp_path.name)
    cache.make_folder(made)
    return made


def test_images_come_back_from_every_storage_as_they_went_in(folder: str) -> None:
    records = [record(i) for i in range(5)]
    written = cache.write_shard(folder, [*records[:3], failure(9)])
    cache.write_shard(folder, records[3:])
    index = cache.read_index(folder).to_pandas().set_index("key")
    assert sorted(index.index) == [*(f"key{i}" for i in range(5)), "key9"]
    assert written.equals(cache.read_index(folder).filter(pa.compute.is_in(pa.array(index["shard"]), written["shard"])))
    assert index.loc["key9", "error"] is not None
    for one in records:
        assert image(folder, index.loc[one["key"]]) == one["pixels"]
    order = [3, 0, 4, 0, 2]
    rows = index.loc[[f"key{i}" for i in order]]
    shards = cache.shard_paths(folder, rows["shard"]).tolist()
    batch = cache.load_pixels(shards, rows["position"].to_numpy(), CONFIG)
    assert [one.tobytes() for one in batch] == [records[i]["pixels"] for i in order]


def test_sixteen_bits_are_as_wide_as_they_say(tmp_path: Path) -> None:
    config = DecodeConfig(height=40, width=32, depth=16)
    one = record(1, config)
    row = cache.write_shard(str(tmp_path), [one]).to_pylist()[0]
    assert image(str(tmp_path), row, config) == one["pixels"]


def test_the_written_index_says_what_the_shards_say(folder: str) -> None:
    written = [cache.write_shard(folder, [record(i)]) for i in range(3)]
    cache.write_index(folder, pa.concat_tables(written[:2]))
    first = cache.read_index(folder)
    assert sorted(first["key"].to_pylist()) == ["key0", "key1", "key2"], "one is behind, and read from its shard"
    assert cache.read_index(folder).equals(first)


def test_a_shard_that_is_gone_or_another_is_not_taken_from_the_written_index(tmp_path: Path) -> None:
    folder = str(tmp_path)
    names = [cache.write_shard(folder, [record(i)])["shard"][0].as_py() for i in range(2)]
    assert len(cache.read_index(folder)) == 2
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes((tmp_path / names[1]).read_bytes()[:100])
    with pytest.raises(IngestError, match=f"{names[1]}.*delete it"):
        cache.read_index(folder)
    (tmp_path / names[1]).unlink()
    assert len(cache.read_index(folder)) == 0


@pytest.mark.parametrize("content", [b"", b"garbage", b"ARROW1\0\0"])
def test_a_damaged_written_index_is_made_again(tmp_path: Path, content: bytes) -> None:
    cache.write_shard(str(tmp_path), [record(0)])
    (tmp_path / "index").write_bytes(content)
    assert cache.read_index(str(tmp_path))["key"].to_pylist() == ["key0"]
    assert (tmp_path / "index").read_bytes() != content


def test_of_two_rows_for_one_file_the_first_shard_by_name_counts(tmp_path: Path) -> None:
    names = sorted(cache.write_shard(str(tmp_path), [record(0), record(i)])["shard"][0].as_py() for i in (1, 2, 3))
    table = cache.read_index(str(tmp_path))
    assert table["key"].to_pylist().count("key0") == 1
    assert table.filter(pa.compute.equal(table["key"], "key0"))["shard"].to_pylist() == names[:1]


def test_nothing_of_an_unfinished_shard_is_seen_or_left(tmp_path: Path) -> None:
    def half() -> Iterator[dict[str, Any]]:
        yield record(0)
        assert len(cache.read_index(str(tmp_path))) == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write_shard(str(tmp_path), half())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "dead.arrow.partial").write_bytes(b"half a shard")
    assert len(cache.read_index(str(tmp_path))) == 0


def test_a_shard_without_rows_is_not_kept(tmp_path: Path) -> None:
    assert len(cache.write_shard(str(tmp_path), [])) == 0
    assert list(tmp_path.iterdir()) == []


def test_many_writers_and_a_reader_at_once_agree(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def write(start: int) -> None:
        for i in range(start, start + 10):
            cache.write_shard(folder, [record(i)])
            cache.write_index(folder, cache.read_index(folder))

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 5, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache.read_index(folder)["key"].to_pylist()) == sorted(f"key{i}" for i in range(20))


def test_file_keys_depend_on_path_size_and_time() -> None:
    rows = pd.DataFrame({"path": ["a", "a", "a", "b"], "size": [1, 2, 1, 1], "mtime_ns": [5, 5, 6, 5]})
    keys = [*cache.file_keys(rows, "/one"), *cache.file_keys(rows, "/two")]
    assert len(set(keys)) == 8


def test_other_settings_have_a_folder_of_their_own_below_the_path_of_a_uri() -> None:
    one, other = (cache.cache_folder("s3://b/p/?scheme=http", config) for config in (CONFIG, DecodeConfig()))
    assert one != other
    assert one.startswith("s3://b/p/")
    assert one.endswith("?scheme=http")
    assert "//" not in one.removeprefix("s3://")


def test_an_index_of_the_whole_rsna_set_is_read_without_its_shards(tmp_path: Path) -> None:
    folder = str(tmp_path)
    shards = pa.concat_tables([cache.write_shard(folder, [{**record(i), "geometry": "g" * 150}]) for i in range(855)])
    rows = 64 * len(shards)
    keys = pa.array([f"{i:032x}" for i in range(rows)])
    cache.write_index(folder, pa.concat_tables([shards] * 64).set_column(0, "key", keys))
    for shard in tmp_path.glob("*.arrow"):  # Of the same size, but no Arrow: to open one would be an error.
        shard.write_bytes(bytes(shard.stat().st_size))
    assert len(cache.read_index(str(tmp_path))) == rows


def test_what_killed_runs_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    cache.write_shard(str(tmp_path), [record(1)])
    old, young = tmp_path / "a.arrow.partial", tmp_path / "b.arrow.partial"
    for file in (old, young):
        file.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert len(cache.read_index(str(tmp_path))) == 1
    assert young.exists() and not old.exists()


@pytest.mark.parametrize(
    "uri", ["nothing://x/y", "s3://bucket/x?colour=red", "s3://me:sesame@bucket/x?scheme=ftp&colour=sesame"]
)
def test_a_uri_that_means_nothing_is_an_error_that_tells_no_secret(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        cache.make_folder(uri)
    assert "--cache" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "sesame" not in repr(pickle.loads(pickle.dumps(caught.value)))


def test_a_bucket_that_is_not_there_is_an_error_that_names_it_and_no_key(s3: str) -> None:
    with pytest.raises(IngestError, match=r"s3://none/x") as caught:
        cache.make_folder(s3.replace("bucket/some/prefix", "none/x"))
    assert "sesame" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_folder_that_cannot_be_made_or_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IngestError, match="--cache"):
        cache.make_folder(str(tmp_path / "file" / "cache"))
    with pytest.raises(IngestError, match="can be written"):
        cache.write_shard(str(tmp_path / "none"), [record(0)])


def test_pixels_of_a_lost_shard_are_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"lost.arrow.*FileNotFoundError"):
        cache.load_pixels([f"{tmp_path}{os.sep}lost.arrow"], np.array([0]), CONFIG)


@pytest.mark.parametrize("pixels", [None, b"", bytes(40 * 32 - 1), bytes(40 * 32 + 1)])
def test_an_image_of_another_size_than_the_settings_say_is_an_error(tmp_path: Path, pixels: bytes | None) -> None:
    row = cache.write_shard(str(tmp_path), [{**record(0), "pixels": pixels}]).to_pylist()[0]
    with pytest.raises(IngestError, match=r"\.arrow.*delete it"):
        image(str(tmp_path), row)


def test_a_damaged_shard_gives_images_or_an_error_and_never_ends_the_process(tmp_path: Path) -> None:
    names = cache.write_shard(str(tmp_path), [record(i) for i in range(4)])["shard"]
    whole, rng = (tmp_path / names[0].as_py()).read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(600):
        damaged = np.frombuffer(whole, np.uint8).copy()
        # Most of it in the metadata at both ends, where a reader could be led astray.
        span = len(whole) if number % 3 == 0 else 1500
        damaged[rng.integers(-span // 2, span // 2, rng.integers(1, 8))] ^= np.uint8(1 << rng.integers(8))
        path = tmp_path / f"{number}.arrow"
        path.write_bytes(damaged.tobytes())
        try:
            assert cache.load_pixels([str(path)] * 4, np.arange(4), CONFIG).shape == (4, 40, 32)
            cache._read_texts(str(tmp_path), path.name, len(whole)).to_pylist()
        except IngestError:
            refused += 1
        path.unlink()
    assert refused > 200
