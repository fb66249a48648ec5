import numpy as np
import pytest

from mammoray import cache
from mammoray.batches import Shard, stream
from tests.conftest import SMALL, Prepared

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_stream_keeps_the_order_asked_for(prepared: Prepared) -> None:
    order = np.random.default_rng(0).integers(0, len(prepared.rows), 700)
    got = list(stream(prepared.rows, order, SMALL.decode).iter_batches(batch_size=50, batch_format="numpy"))
    assert np.array_equal(np.concatenate([b["row"] for b in got]), order)
    row = prepared.rows.iloc[order[123]]
    expected = cache.load_pixels([row["shard"]], np.array([row["position"]]), SMALL.decode)[0]
    assert np.array_equal(np.concatenate([b["image"] for b in got])[123], expected)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shards_deal_the_same_global_batches_to_any_number_of_workers(prepared: Prepared, workers: int) -> None:
    order = np.random.default_rng(1).permutation(48).astype(np.int64)
    shards = [Shard(table=prepared.rows, rank=rank, workers=workers) for rank in range(workers)]
    dealt = [[b["row"] for b in s.training_batches(order, 12, SMALL.decode)] for s in shards]
    assert [np.concatenate(step).tolist() for step in zip(*dealt, strict=True)] == order.reshape(4, 12).tolist()


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_evaluation_shards_hold_every_row_once_in_each_repeat(prepared: Prepared, workers: int) -> None:
    table = prepared.rows.head(37)
    repeats: list[list[int]] = [[], []]
    for rank in range(workers):
        shard = Shard(table=table, rank=rank, workers=workers)
        for seen, batches in zip(repeats, shard.evaluation_batches(2, 8, SMALL.decode), strict=True):
            seen += [int(row) for batch in batches for row in batch["row"]]
    assert [sorted(seen) for seen in repeats] == [list(range(37))] * 2
