import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammoray import cache, sample
from mammoray.batches import Shard, read
from mammoray.config import DecodeConfig
from mammoray.errors import IngestError
from tests.conftest import SMALL, Prepared


def cached(folder: Path, images: np.ndarray) -> pd.DataFrame:
    """Rows of a new cache of these images, three in a shard."""
    records = [{"key": str(i), "pixels": image.tobytes()} for i, image in enumerate(images)]
    parts = [cache.write_shard(str(folder), records[start : start + 3]) for start in range(0, len(records), 3)]
    table = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
    return table.assign(shard=cache.shard_paths(str(folder), table["shard"]))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mammoray-read")]


def test_batches_hold_the_images_of_the_order_asked_for(prepared: Prepared) -> None:
    order = np.random.default_rng(0).integers(0, len(prepared.rows), 700)
    got = list(read(prepared.rows, order, 50, SMALL.decode))
    assert [len(b["row"]) for b in got] == [50] * 14
    assert np.array_equal(np.concatenate([b["row"] for b in got]), order)
    rows = prepared.rows.iloc[order]
    expected = cache.load_pixels(rows["shard"].tolist(), rows["position"].to_numpy(), SMALL.decode)
    assert np.array_equal(np.concatenate([b["image"] for b in got]), expected)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_shards_deal_the_same_global_batches_to_any_number_of_workers(prepared: Prepared, workers: int) -> None:
    order = np.random.default_rng(1).permutation(48).astype(np.int64)
    shards = [Shard(table=prepared.rows, rank=rank, workers=workers) for rank in range(workers)]
    parts = [sample.part(12, workers, rank) for rank in range(workers)]
    dealt = [
        [b["row"] for b in shard.training_batches(order, 12, part, SMALL.decode)]
        for shard, part in zip(shards, parts, strict=True)
    ]
    assert [np.concatenate(step).tolist() for step in zip(*dealt, strict=True)] == order.reshape(4, 12).tolist()


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_evaluation_shards_hold_every_row_once(prepared: Prepared, workers: int) -> None:
    table = prepared.rows.head(37)
    shards = [Shard(table=table, rank=rank, workers=workers) for rank in range(workers)]
    seen = [row for shard in shards for batch in shard.evaluation_batches(8, SMALL.decode) for row in batch["row"]]
    assert sorted(seen) == list(range(37))


def test_sixteen_bits_travel_as_they_are(tmp_path: Path) -> None:
    config = DecodeConfig(height=40, width=32, depth=16)
    images = np.random.default_rng(0).integers(0, 2**16, (5, 40, 32), dtype=np.uint16)
    (batch,) = read(cached(tmp_path, images), np.array([4, 2, 2, 0]), 4, config)
    assert np.array_equal(batch["image"], images[[4, 2, 2, 0]])


def test_little_is_read_before_it_is_wanted_and_nothing_after_the_reader_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 32), dtype=np.uint8)
    loaded: list[int] = []

    def load(shards: list[str], positions: np.ndarray, config: DecodeConfig) -> np.ndarray:
        loaded.append(len(shards))
        return cache.load_pixels(shards, positions, config)

    monkeypatch.setattr("mammoray.batches.load_pixels", load)
    batches = read(cached(tmp_path, images), np.arange(400) % 6, 2, DecodeConfig(height=40, width=32))
    next(batches)
    deadline = time.monotonic() + 10
    while len(loaded) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(loaded) == 9
    del batches
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not readers()
    assert len(loaded) == 9


def test_threads_that_read_one_shard_at_once_read_what_stands_in_it(tmp_path: Path) -> None:
    config = DecodeConfig(height=40, width=32)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32), dtype=np.uint8)
    rows = cached(tmp_path, images)
    order = np.random.default_rng(1).integers(0, 3, 3000)
    for batch in read(rows, order, 8, config):
        assert np.array_equal(batch["image"], images[batch["row"]])


def test_a_shard_that_cannot_be_read_is_an_error_at_its_batch(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 32), dtype=np.uint8)
    rows = cached(tmp_path, images)
    Path(rows["shard"][5]).write_bytes(b"")
    batches = read(rows, np.arange(6), 3, DecodeConfig(height=40, width=32))
    assert np.array_equal(next(batches)["image"], images[:3])
    with pytest.raises(IngestError, match=Path(rows["shard"][5]).name):
        next(batches)
