import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammoray import catalog, ingest
from mammoray.config import DecodeConfig, IngestConfig, replace
from mammoray.decode import decode
from mammoray.errors import IngestError
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, Prepared

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def copy(irma: SynthSummary, tmp_path: Path) -> Path:
    return Path(shutil.copytree(irma.csv.parent, tmp_path / "copy"))


def prepare(folder: Path, cache: Path, **settings: object) -> ingest.Decoded:
    data = catalog.build(folder / "classificacao.csv", folder)
    return ingest.prepare(data.rows, data.root, cache, SMALL.decode, replace(SMALL.ingest, **settings))


def pixels_of(decoded: ingest.Decoded) -> dict[str, bytes]:
    images = ingest.load_pixels(decoded.rows["shard"].tolist(), decoded.rows["position"].to_numpy(), SMALL.decode)
    return dict(zip(decoded.rows["image_id"], (image.tobytes() for image in images), strict=True))


def test_the_cache_gives_what_decode_gives(prepared: Prepared, rsna: SynthSummary) -> None:
    some = prepared.rows.iloc[::7]
    images = ingest.load_pixels(some["shard"].tolist(), some["position"].to_numpy(), SMALL.decode)
    for image, path in zip(images, some["path"], strict=True):
        assert np.array_equal(image, decode(rsna.root / path, SMALL.decode).pixels)


def test_sixteen_bits_come_back_as_they_went_in(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    config = replace(SMALL.decode, depth=16)
    rows = data.rows.head(3)
    decoded = ingest.prepare(rows, data.root, tmp_path / "cache", config, SMALL.ingest)
    images = ingest.load_pixels(decoded.rows["shard"].tolist(), decoded.rows["position"].to_numpy(), config)
    assert images.dtype == np.uint16
    assert all(
        np.array_equal(image, decode(data.root / p, config).pixels)
        for image, p in zip(images, decoded.rows["path"], strict=True)
    )


def test_a_second_run_decodes_nothing_and_new_or_changed_files_only_themselves(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = prepare(copy, cache)
    assert first.new == len(first.rows)
    second = prepare(copy, cache)
    assert second.new == 0
    assert pixels_of(second) == pixels_of(first)
    changed, other = (copy / "archive" / path for path in first.rows["path"].iloc[[0, 9]])
    changed.write_bytes(other.read_bytes())
    third = prepare(copy, cache)
    assert third.new == 1
    assert pixels_of(third)[first.rows["image_id"][0]] == pixels_of(first)[first.rows["image_id"][9]]


def test_other_settings_have_a_cache_of_their_own(tmp_path: Path) -> None:
    assert ingest.cache_folder(tmp_path, DecodeConfig()) != ingest.cache_folder(tmp_path, DecodeConfig(height=256))


def test_an_undecodable_file_is_listed_with_its_reason_and_the_others_go_on(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    broken = data.rows["path"][4]
    (data.root / broken).write_bytes((data.root / broken).read_bytes()[:3000])
    decoded = prepare(copy, tmp_path / "cache")
    assert list(decoded.failures["path"]) == [broken]
    assert len(decoded.rows) == len(data.rows) - 1
    assert broken not in set(decoded.rows["path"])
    ingest.check_enough(decoded, IngestConfig(min_decoded=0.95))
    with pytest.raises(IngestError, match=rf"100%.*1 failed.*{broken}"):
        ingest.check_enough(decoded, IngestConfig(min_decoded=1.0))
    assert prepare(copy, tmp_path / "cache").new == 0, "a broken file is not tried again until it changes"


def test_a_file_that_vanishes_is_listed_but_tried_again(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    gone = data.root / data.rows["path"][2]
    content = gone.read_bytes()
    gone.unlink()
    decoded = ingest.prepare(data.rows, data.root, tmp_path / "cache", SMALL.decode, SMALL.ingest)
    assert list(decoded.failures["found"]) == ["FileNotFoundError"]
    gone.write_bytes(content)
    again = ingest.prepare(data.rows, data.root, tmp_path / "cache", SMALL.decode, SMALL.ingest)
    assert again.new == 1
    assert len(again.failures) == 0


def test_a_killed_run_leaves_no_half_shard_and_a_damaged_one_is_named(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare(copy, cache)
    folder = ingest.cache_folder(cache, SMALL.decode)
    (folder / "dead.partial").write_bytes(b"half a shard")
    assert prepare(copy, cache).new == 0
    shard = sorted(folder.glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(IngestError, match=f"{shard.name}.*Delete"):
        prepare(copy, cache)


def test_a_cache_that_cannot_be_written_is_an_error(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IngestError, match="--cache"):
        prepare(copy, tmp_path / "file" / "cache")


def test_progress_counts_up_to_all_files(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    seen: list[ingest.Progress] = []
    ingest.prepare(data.rows, data.root, tmp_path / "cache", SMALL.decode, SMALL.ingest, seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == len(data.rows)
    assert "images/s" in str(seen[0])


def test_a_stream_keeps_the_order_asked_for(prepared: Prepared) -> None:
    order = np.random.default_rng(0).integers(0, len(prepared.rows), 700)
    got = list(ingest.stream(prepared.rows, order, SMALL.decode).iter_batches(batch_size=50, batch_format="numpy"))
    assert np.array_equal(np.concatenate([b["row"] for b in got]), order)
    row = prepared.rows.iloc[order[123]]
    expected = ingest.load_pixels([row["shard"]], np.array([row["position"]]), SMALL.decode)[0]
    assert np.array_equal(np.concatenate([b["image"] for b in got])[123], expected)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shards_deal_the_same_global_batches_to_any_number_of_workers(prepared: Prepared, workers: int) -> None:
    order = np.random.default_rng(1).permutation(48).astype(np.int64)
    shards = [ingest.Shard(table=prepared.rows, rank=rank, workers=workers) for rank in range(workers)]
    dealt = [[b["row"] for b in s.training_batches(order, 12, SMALL.decode)] for s in shards]
    assert [np.concatenate(step).tolist() for step in zip(*dealt, strict=True)] == order.reshape(4, 12).tolist()


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_evaluation_shards_hold_every_row_once_in_each_repeat(prepared: Prepared, workers: int) -> None:
    table = prepared.rows.head(37)
    repeats: list[list[int]] = [[], []]
    for rank in range(workers):
        shard = ingest.Shard(table=table, rank=rank, workers=workers)
        for seen, batches in zip(repeats, shard.evaluation_batches(2, 8, SMALL.decode), strict=True):
            seen += [int(row) for batch in batches for row in batch["row"]]
    assert [sorted(seen) for seen in repeats] == [list(range(37))] * 2


def test_file_keys_depend_on_path_size_and_time() -> None:
    rows = pd.DataFrame({"path": ["a", "a", "a", "b"], "size": [1, 2, 1, 1], "mtime_ns": [5, 5, 6, 5]})
    keys = [*ingest.file_keys(rows, Path("/one")), *ingest.file_keys(rows, Path("/two"))]
    assert len(set(keys)) == 8
