import time
from pathlib import Path

import numpy as np
import pytest

from mammoray import batches, cache, sample
from mammoray.batches import Shard, block_ends, stream
from mammoray.config import DecodeConfig
from tests.conftest import SMALL, Prepared

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_stream_keeps_the_order_asked_for(prepared: Prepared) -> None:
    order = np.random.default_rng(0).integers(0, len(prepared.rows), 700)
    got = list(stream(prepared.rows, order, SMALL.decode).iter_batches(batch_size=50, batch_format="numpy"))
    assert np.array_equal(np.concatenate([b["row"] for b in got]), order)
    row = prepared.rows.iloc[order[123]]
    expected = cache.load_pixels([row["shard"]], np.array([row["position"]]), SMALL.decode)[0]
    assert np.array_equal(np.concatenate([b["image"] for b in got])[123], expected)


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
def test_evaluation_shards_hold_every_row_once_in_each_repeat(prepared: Prepared, workers: int) -> None:
    table = prepared.rows.head(37)
    repeats: list[list[int]] = [[], []]
    for rank in range(workers):
        shard = Shard(table=table, rank=rank, workers=workers)
        for seen, parts in zip(repeats, shard.evaluation_batches(2, 8, SMALL.decode), strict=True):
            seen += [int(row) for batch in parts for row in batch["row"]]
    assert [sorted(seen) for seen in repeats] == [list(range(37))] * 2


def test_an_order_over_several_streams_stays_one_order(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(batches, "_STREAM_BLOCKS", 2)
    order = np.random.default_rng(2).integers(0, len(prepared.rows), 60)
    shard = Shard(table=prepared.rows, rank=0, workers=1)
    got = list(shard.training_batches(order, 12, (0, 12), SMALL.decode))
    assert [batch["row"].tolist() for batch in got] == order.reshape(5, 12).tolist()
    assert all(batch["image"].shape == (12, 96, 80) for batch in got)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 1000])
def test_blocks_hold_whole_batches_and_begin_with_one(rows: int, batch_size: int) -> None:
    ends = block_ends(rows, batch_size, 4 * batch_size)
    sizes = np.diff([0, *ends])
    assert ends[-1] == rows
    assert max(sizes) <= 4 * batch_size
    assert (sizes[:-1] > 0).all() and not (sizes[:-1] % batch_size).any()
    assert sizes[0] == min(rows, batch_size)


def test_sixteen_bits_travel_as_they_are(tmp_path: Path) -> None:
    config = DecodeConfig(height=40, width=32, depth=16)
    images = np.random.default_rng(0).integers(0, 2**16, (5, 40, 32), dtype=np.uint16)
    written = cache.write_shard(str(tmp_path), ({"key": str(i), "pixels": x.tobytes()} for i, x in enumerate(images)))
    table = written.to_pandas().assign(shard=lambda rows: cache.shard_paths(str(tmp_path), rows["shard"]))
    (batch,) = Shard(table=table, rank=0, workers=1).training_batches(np.array([4, 2, 2, 0]), 4, (0, 4), config)
    assert np.array_equal(batch["image"], images[[4, 2, 2, 0]])


def test_a_stream_that_waits_for_its_reader_leaves_the_processor_to_it(prepared: Prepared) -> None:
    order = np.resize(np.arange(len(prepared.rows)), 12 * 60)
    dataset = stream(prepared.rows, order, SMALL.decode, 12, ahead_bytes=2**20)
    unread = iter(dataset.iter_batches(batch_size=12, batch_format="numpy"))
    next(unread)
    time.sleep(1)
    began, cpu = time.monotonic(), time.process_time()
    time.sleep(2)
    assert time.process_time() - cpu < 0.15 * (time.monotonic() - began)
    assert sum(1 for _ in unread) == 59
