import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mammoray import cache, catalog, ingest
from mammoray.config import IngestConfig
from mammoray.decode import decode
from mammoray.errors import IngestError
from mammoray.plain import replace
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, Prepared
from tests.sandbox_jobs import plant

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def copy(irma: SynthSummary, tmp_path: Path) -> Path:
    return Path(shutil.copytree(irma.table.parent, tmp_path / "copy"))


def prepare(folder: Path, store: Path, function: str = ingest.DECODE, **settings: object) -> ingest.Decoded:
    data = catalog.build(folder / "classificacao.csv", folder)
    config = replace(SMALL.ingest, **settings)
    return ingest.prepare(data.rows, data.root, str(store), SMALL.decode, config, function=function)


def pixels_of(decoded: ingest.Decoded) -> dict[str, bytes]:
    images = cache.load_pixels(decoded.rows["shard"].tolist(), decoded.rows["position"].to_numpy(), SMALL.decode)
    return dict(zip(decoded.rows["image_id"], (image.tobytes() for image in images), strict=True))


def test_the_cache_gives_what_decode_gives(prepared: Prepared, rsna: SynthSummary) -> None:
    some = prepared.rows.iloc[::7]
    images = cache.load_pixels(some["shard"].tolist(), some["position"].to_numpy(), SMALL.decode)
    for image, path in zip(images, some["path"], strict=True):
        assert np.array_equal(image, decode(rsna.root / path, SMALL.decode).pixels)


def test_sixteen_bits_come_back_as_they_went_in(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    config = replace(SMALL.decode, depth=16)
    rows = data.rows.head(3)
    decoded = ingest.prepare(rows, data.root, str(tmp_path / "cache"), config, SMALL.ingest)
    images = cache.load_pixels(decoded.rows["shard"].tolist(), decoded.rows["position"].to_numpy(), config)
    assert images.dtype == np.uint16
    assert all(
        np.array_equal(image, decode(Path(data.root, p), config).pixels)
        for image, p in zip(images, decoded.rows["path"], strict=True)
    )


def test_a_second_run_decodes_nothing_and_new_or_changed_files_only_themselves(copy: Path, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    first = prepare(copy, store)
    assert first.new == len(first.rows)
    second = prepare(copy, store)
    assert second.new == 0
    assert pixels_of(second) == pixels_of(first)
    changed, other = (copy / "archive" / path for path in first.rows["path"].iloc[[0, 9]])
    changed.write_bytes(other.read_bytes())
    third = prepare(copy, store)
    assert third.new == 1
    assert pixels_of(third)[first.rows["image_id"][0]] == pixels_of(first)[first.rows["image_id"][9]]


def test_an_undecodable_file_is_listed_with_its_reason_and_the_others_go_on(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    broken = data.rows["path"][4]
    Path(data.root, broken).write_bytes(Path(data.root, broken).read_bytes()[:3000])
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
    gone = Path(data.root) / data.rows["path"][2]
    content = gone.read_bytes()
    gone.unlink()
    decoded = ingest.prepare(data.rows, data.root, str(tmp_path / "cache"), SMALL.decode, SMALL.ingest)
    assert list(decoded.failures["found"]) == ["FileNotFoundError"]
    gone.write_bytes(content)
    again = ingest.prepare(data.rows, data.root, str(tmp_path / "cache"), SMALL.decode, SMALL.ingest)
    assert again.new == 1
    assert len(again.failures) == 0


def test_a_cache_that_cannot_be_written_is_an_error(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IngestError, match="--cache"):
        prepare(copy, tmp_path / "file" / "cache")


def test_progress_counts_up_to_all_files(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    seen: list[ingest.Progress] = []
    ingest.prepare(data.rows, data.root, str(tmp_path / "cache"), SMALL.decode, SMALL.ingest, seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == len(data.rows)
    assert "images/s" in str(seen[0])


ACCIDENTS = "tests.sandbox_jobs:decode_with_accidents"


def some_path(folder: Path, row: int) -> str:
    path: str = catalog.build(folder / "classificacao.csv", folder).rows["path"].iloc[row]
    return path


def test_a_file_that_crashes_or_hangs_the_decoder_costs_itself_and_not_the_run(copy: Path, tmp_path: Path) -> None:
    crash, hang = some_path(copy, 3), some_path(copy, 7)
    plant(copy, {crash: "segfault", hang: "sleep"})
    decoded = prepare(copy, tmp_path / "cache", ACCIDENTS, limit_seconds=4.0)
    table = decoded.failures.set_index("path")
    assert table["exception"].to_dict() == {crash: "SIGSEGV", hang: "time limit"}
    assert len(decoded.rows) == decoded.new - 2
    again = prepare(copy, tmp_path / "cache", ACCIDENTS, limit_seconds=4.0)
    assert again.new == 1, "what crashed the decoder is remembered; what ran out of time may do better"
    assert sorted(again.failures["path"]) == sorted([crash, hang])


def test_a_worker_that_dies_is_replaced_and_no_file_is_lost_or_doubled(copy: Path, tmp_path: Path) -> None:
    plant(copy, {some_path(copy, 5): "kill the worker"})
    decoded = prepare(copy, tmp_path / "cache", ACCIDENTS)
    assert (len(decoded.rows), len(decoded.failures)) == (decoded.new, 0)
    assert decoded.rows["image_id"].is_unique
    assert pixels_of(decoded) == pixels_of(prepare(copy, tmp_path / "other"))


def test_a_decoder_that_cannot_start_ends_the_run_and_lists_no_file(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"mammoray.nothing.*ModuleNotFoundError"):
        prepare(copy, tmp_path / "cache", "mammoray.nothing:decode")


def test_a_cache_that_turns_unwritable_ends_the_run_and_says_so(copy: Path, tmp_path: Path) -> None:
    plant(copy, {some_path(copy, 0): "remove the cache"})
    with pytest.raises(IngestError, match="a cache that can be written"):
        prepare(copy, tmp_path / "cache", ACCIDENTS)


def test_ten_new_files_cost_ten_decodes(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    first = ingest.prepare(data.rows.iloc[10:], data.root, str(tmp_path / "cache"), SMALL.decode, SMALL.ingest)
    second = ingest.prepare(data.rows, data.root, str(tmp_path / "cache"), SMALL.decode, SMALL.ingest)
    assert (first.new, second.new) == (len(data.rows) - 10, 10)
    assert pixels_of(second).items() >= pixels_of(first).items()


@pytest.mark.cluster
def test_a_killed_run_goes_on_where_it_stood(copy: Path, tmp_path: Path) -> None:
    data = catalog.build(copy / "classificacao.csv", copy)
    plant(copy, {some_path(copy, -1): "sleep"})
    program = (
        "import pathlib, ray, tests.test_ingest as t\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        f"folder, store = pathlib.Path({str(copy)!r}), pathlib.Path({str(tmp_path / 'cache')!r})\n"
        "t.prepare(folder, store, t.ACCIDENTS, shard_images=4)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    folder = Path(cache.cache_folder(str(tmp_path / "cache"), SMALL.decode))
    shards = -(-len(data.rows) // 4)
    deadline = time.monotonic() + 90
    while len(list(folder.glob("*.arrow"))) < shards - 1:  # All but the one that hangs.
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    shutil.rmtree(copy / "accidents")
    resumed = prepare(copy, tmp_path / "cache", ACCIDENTS)
    assert resumed.new <= 4
    assert (len(resumed.rows), len(resumed.failures)) == (len(data.rows), 0)


def test_two_runs_at_once_on_one_cache_do_not_harm_each_other(copy: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: prepare(copy, tmp_path / "cache"), range(2))
    assert pixels_of(first) == pixels_of(second) == pixels_of(prepare(copy, tmp_path / "cache"))
    assert prepare(copy, tmp_path / "cache").new == 0
