"""A run's folder and its copy on shared storage: on a real S3 server, through kills and changes of machine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from mammoray import controller, mirror, storage, train
from mammoray.config import Config
from mammoray.errors import RunFolderError, StorageError
from mammoray.mirror import Mirror, mirrored
from mammoray.plain import replace, to_toml
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, Prepared
from tests.proxy import Door

ROOT = Path(__file__).parents[1]


def names(place: str) -> set[str]:
    return {entry.path for entry in storage.walk(place)} if storage.is_folder(place) else set()


class TestMirror:
    def test_what_one_machine_pushes_another_fetches(self, shared: str, tmp_path: Path) -> None:
        one, two = Mirror(tmp_path / "one", shared), Mirror(tmp_path / "two", shared)
        (one.folder / "a").mkdir(parents=True)
        (one.folder / "a" / "x").write_text("1")
        (one.folder / "y").write_text("2")
        one.push()
        two.fetch()
        assert (two.folder / "a" / "x").read_text() == "1"
        (two.folder / "y").write_text("changed")
        two.push()
        one.fetch()
        assert (one.folder / "y").read_text() == "changed"

    def test_only_what_has_changed_travels(self, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = Mirror(tmp_path / "one", shared)
        own.folder.mkdir()
        for name in ("x", "y", "run.json", "half.partial"):
            (own.folder / name).write_text(name)
        sent: list[str] = []
        upload = storage.upload

        def note(file: Path, path: str) -> None:
            sent.append(file.name)
            upload(file, path)

        monkeypatch.setattr(storage, "upload", note)
        own.push()
        assert sent == ["x", "y", "run.json"], "the marker comes last"
        (own.folder / "y").write_text("more")
        own.push()
        own.fetch()
        assert sent[3:] == ["y"]

    def test_rays_own_checkpoints_do_not_travel(self, shared: str, tmp_path: Path) -> None:
        for folder in (mirror.RAYS, f"trials/0000/{mirror.RAYS}"):
            (tmp_path / "one" / folder).mkdir(parents=True)
            (tmp_path / "one" / folder / "weights").touch()
        Mirror(tmp_path / "one", shared).push()
        assert names(shared) == set()

    def test_a_folder_is_removed_on_both_sides(self, shared: str, tmp_path: Path) -> None:
        own = Mirror(tmp_path / "one", shared)
        (own.folder / "a").mkdir(parents=True)
        (own.folder / "a" / "x").touch()
        (own.folder / "ab").touch()
        own.push()
        own.remove("a")
        assert not (own.folder / "a").exists()
        assert names(shared) == {"ab"}
        (own.folder / "a").mkdir()
        (own.folder / "a" / "x").touch()
        own.push()
        assert names(shared) == {"a/x", "ab"}

    def test_files_of_something_else_are_not_mixed_with_a_copy(self, shared: str, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").touch()
        with pytest.raises(RunFolderError, match="other files"), mirrored(tmp_path / "run", shared):
            pass
        assert names(shared) == set()

    def test_another_run_of_the_same_name_is_refused_and_neither_side_changes(
        self, shared: str, tmp_path: Path
    ) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "run.json").write_text(json.dumps({"identity": name, "finished": True}))
            (tmp_path / name / f"{name}.txt").touch()
        Mirror(tmp_path / "one", shared).push()
        with pytest.raises(RunFolderError, match="two, beside one"), mirrored(tmp_path / "two", shared):
            pass
        assert names(shared) == {"run.json", "one.txt"}
        assert names(str(tmp_path / "two")) == {"run.json", "two.txt"}

    def test_a_damaged_marker_is_an_error_that_names_it(self, shared: str, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "run.json").write_text(json.dumps({"identity": "one"}))
        Mirror(tmp_path / "one", shared).push()
        (tmp_path / "one" / "run.json").write_text("{")
        with pytest.raises(RunFolderError, match=r"run\.json.*damaged"), mirrored(tmp_path / "one", shared):
            pass

    def test_a_fetch_that_breaks_leaves_a_folder_that_the_next_one_completes(
        self, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "one" / "checkpoints").mkdir(parents=True)
        for name in ("checkpoints/weights", "history.jsonl"):
            (tmp_path / "one" / name).write_text(name)
        (tmp_path / "one" / "run.json").write_text(json.dumps({"identity": "one"}))
        Mirror(tmp_path / "one", shared).push()
        download, calls = storage.download, list[str]()

        def once(path: str, file: Path) -> None:
            calls.append(path)
            if len(calls) > 1:
                raise OSError("NETWORK_CONNECTION")
            download(path, file)

        with monkeypatch.context() as patch, pytest.raises(StorageError):
            patch.setattr(storage, "download", once)
            with mirrored(tmp_path / "two", shared):
                pass
        with mirrored(tmp_path / "two", shared):
            assert names(str(tmp_path / "two")) == names(str(tmp_path / "one"))

    def test_what_says_that_the_rest_is_complete_comes_last(
        self, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[str] = []
        monkeypatch.setattr(storage, "upload", lambda file, path: sent.append(file.name))
        for name in ("checkpoints/finished", "checkpoints/last/model", "history.jsonl", "run.json"):
            (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "one" / name).touch()
        Mirror(tmp_path / "one", shared).push()
        assert sent == ["model", "history.jsonl", "finished", "run.json"]

    def test_what_a_search_leaves_with_its_trials_does_not_travel(self, shared: str, tmp_path: Path) -> None:
        for name in ("trials/0000/checkpoints/last/model", "trials/0000/history.jsonl"):
            (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "one" / name).touch()
        Mirror(tmp_path / "one", shared).push()
        Mirror(tmp_path / "two", shared, "/checkpoints/").fetch()
        assert names(str(tmp_path / "two")) == {"trials/0000/history.jsonl"}

    def test_the_copy_is_brought_up_to_date_while_the_work_goes_on_and_after_an_error(
        self, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mirror, "_EVERY", 0.05)
        with pytest.raises(ZeroDivisionError), mirrored(tmp_path / "run", shared):
            (tmp_path / "run").mkdir(exist_ok=True)
            (tmp_path / "run" / "x").touch()
            end = time.monotonic() + 10
            while not names(shared):
                assert time.monotonic() < end
                time.sleep(0.05)
            (tmp_path / "run" / "y").touch()
            _ = 1 / 0
        assert names(shared) == {"x", "y"}


def test_without_storage_nothing_happens(tmp_path: Path) -> None:
    with mirrored(tmp_path / "run", mirror.place(tmp_path / "run", None)) as own:
        own.push()
        own.fetch()
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_is_not_there_is_said_before_anything_is_done(s3: str, tmp_path: Path) -> None:
    gone = s3.replace("bucket/some/prefix", "none/x")
    with pytest.raises(StorageError, match=r"--storage, and the credentials") as caught, mirrored(tmp_path, gone):
        (tmp_path / "x").touch()
    assert "sesame" not in str(caught.value)


# Whole runs -----------------------------------------------------------------------------------------------------------


def start(environment: dict[str, str], *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mammoray.cli", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def kill_when(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """As a machine dies: the driver and all that it began."""
    last = time.monotonic() + 200
    while not ready():
        assert time.monotonic() < last and process.poll() is None
        time.sleep(0.05)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGKILL)
    process.wait()


def settings(folder: Path, config: Config) -> Path:
    file = folder / "settings.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    return file


@pytest.mark.cluster
def test_a_run_whose_machine_is_lost_goes_on_from_the_storage_on_another_one(
    prepared: Prepared, rsna: SynthSummary, s3: str, tmp_path: Path, own_ray: dict[str, str]
) -> None:
    config = replace(SMALL, train=replace(SMALL.train, epochs=5), ingest=replace(SMALL.ingest, cache=None))
    shared = storage.join(s3, tmp_path.name)
    common = ["--csv", rsna.csv, "--dicom-root", rsna.root, "--config", settings(tmp_path, config), "--storage", shared]
    lost, other, third = (tmp_path / name / "run" for name in ("lost", "other", "third"))
    first = start(own_ray, "train", *common, "--outdir", lost)
    copy = storage.join(shared, "run")
    kill_when(lambda: len(controller.read_history(lost)) > 2, first)
    shutil.rmtree(lost)
    said = end(start(own_ray, "train", *common, "--outdir", other))
    began = next(line for line in said.splitlines() if "workers, from epoch" in line)
    assert "from epoch 0" not in began and "from epoch 1," not in began, said
    assert "0 new" in said, "the images are on the storage too"
    rows = prepared.rows.sort_values("image_id", ignore_index=True)
    whole = train.fit(rows, prepared.digest, config, Scale(), tmp_path / "whole", lambda line: None)
    curve = [r["val_loss"] for r in controller.read_history(other)]
    assert curve == pytest.approx([r["val_loss"] for r in whole.history], rel=1e-5)
    assert {"run.json", "metrics.json", "report.html", "checkpoints/best/model.safetensors"} <= names(copy)
    assert not any(name.startswith(mirror.RAYS) for name in names(copy)), "what nobody needs any more is gone"
    assert not list(tmp_path.glob("*/mammoray-cache")), "no cache on the machine itself"
    assert "nothing is done again" in end(start(own_ray, "train", *common, "--outdir", third))
    assert (third / "report.html").read_bytes() == (other / "report.html").read_bytes()


@pytest.mark.cluster
@pytest.mark.long
def test_a_storage_that_refuses_for_half_a_minute_costs_a_training_nothing_and_one_that_stays_away_ends_it_resumably(
    prepared: Prepared, rsna: SynthSummary, s3: str, tmp_path: Path, own_ray: dict[str, str]
) -> None:
    once = replace(SMALL.train, epochs=12, trackers=(), max_failures=0)
    config = replace(SMALL, train=once, ingest=replace(SMALL.ingest, cache=None))
    port = re.search(r"127\.0\.0\.1:(\d+)", s3)
    assert port
    door = Door(int(port[1]))
    shared = storage.join(s3, tmp_path.name).replace(port[0], f"127.0.0.1:{door.port}")
    words = ["train", "--csv", rsna.csv, "--dicom-root", rsna.root, "--config", settings(tmp_path, config)]
    words += ["--storage", shared, "--outdir", tmp_path / "run"]

    def shut_after(records: int) -> int:
        """Shut the door when the run has so many; returns how many it has by then."""
        last = time.monotonic() + 200
        while (found := len(controller.read_history(tmp_path / "run"))) < records:
            assert time.monotonic() < last and process.poll() is None
            time.sleep(0.05)
        door.turn("shut")
        return found

    process = start(own_ray, *words)
    kept = shut_after(2)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2, said
    assert re.search(r"^error: s3://bucket/.*storage that answers.*the same command.*goes on", said, re.M), said
    door.turn("open")
    process = start(own_ray, *words)
    shut_after(kept + 2)
    door.refused = 0
    threading.Timer(15, door.turn, ["busy"]).start()
    threading.Timer(30, door.turn, ["open"]).start()
    said = end(process)
    assert door.refused > 0
    assert said.count("workers, from epoch") == 1 and "from epoch 0" not in said, said
    rows = prepared.rows.sort_values("image_id", ignore_index=True)
    whole = train.fit(rows, prepared.digest, config, Scale(), tmp_path / "whole", lambda line: None)
    curve = [r["val_loss"] for r in controller.read_history(tmp_path / "run")]
    assert curve == pytest.approx([r["val_loss"] for r in whole.history], rel=1e-5)
    door.close()


@pytest.mark.cluster
@pytest.mark.long
def test_a_search_whose_machine_is_lost_goes_on_from_the_storage_on_another_one(
    prepared: Prepared, rsna: SynthSummary, s3: str, tmp_path: Path, own_ray: dict[str, str]
) -> None:
    own = replace(SMALL.ingest, cache=None)
    config = replace(SMALL, train=replace(SMALL.train, epochs=3, trackers=()), ingest=own)
    space = tmp_path / "space.toml"
    space.write_text("[optim]\nlr = {low = 1e-4, high = 1e-2, log = true}\n", encoding="utf-8")
    shared = storage.join(s3, tmp_path.name)
    common = ["--csv", rsna.csv, "--dicom-root", rsna.root, "--config", settings(tmp_path, config), "--storage", shared]
    common += ["--space", space, "--num-trials", "3", "--trials-at-once", "1", "--scheduler", "none", "--retrain-best"]
    lost, other = tmp_path / "lost" / "search", tmp_path / "other" / "search"
    copy = storage.join(shared, "search")
    process = start(own_ray, "tune", *common, "--outdir", lost)
    kill_when(lambda: "trials/0001/history.jsonl" in names(copy), process)
    shutil.rmtree(lost)
    said = end(start(own_ray, "tune", *common, "--outdir", other))
    assert "going on with trial 1" in said
    assert "trial 0:" not in said, "what was finished is not repeated"
    table = pd.read_parquet(other / "trials.parquet")
    assert (table["state"] == "complete").all()
    assert [len(controller.read_history(other / folder)) for folder in table["folder"]] == [4, 4, 4]
    assert {"study.html", "best.toml", "best/metrics.json", "trials/0002/checkpoints/best/model.safetensors"} <= names(
        copy
    )
