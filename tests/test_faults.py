"""Faults, each done for real: processes and nodes that die, nodes taken back, disks and memory that are too small."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch

from mammoray import controller, learner, shortage, train
from mammoray.config import Config
from mammoray.errors import IngestError, TrainError
from mammoray.plain import load_toml, replace, to_toml
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, Prepared
from tests.ray_nodes import end_all, environment

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[1]
# Steps that do not add to small differences, and a rate that does not know how many epochs there will be.
LONG = replace(
    SMALL,
    sample=replace(SMALL.sample, batch_size=2),
    optim=replace(SMALL.optim, optimizer="sgd", schedule="constant", warmup_epochs=0.0),
    train=replace(SMALL.train, epochs=16, checkpoint_minutes=0.02, trackers=()),
)


def many(prepared: Prepared, times: int) -> pd.DataFrame:
    """The rows, those of training repeated under other names."""
    learned = prepared.rows["fold"] == "train"
    train_rows = prepared.rows[learned]
    more = [train_rows.assign(image_id=train_rows["image_id"] + f"-{n}") for n in range(1, times)]
    return pd.concat([prepared.rows, *more]).sort_values("image_id", ignore_index=True)


def curve(history: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(record["train_loss"] or 0.0, record["val_loss"]) for record in history]


def play(scene: str, rows: pd.DataFrame, config: Config, folder: Path) -> list[str]:
    """What a scene of ``fault_jobs`` says, in processes of its own."""
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / "rows.parquet")
    (folder / "settings.toml").write_text(to_toml(config), encoding="utf-8")
    # Near the root: paths of Unix sockets have a limit of 107 characters.
    ray_folder = Path("/tmp") / f"mammoray-{os.getpid()}-{scene}"
    ray_folder.mkdir()
    quick = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    words = [sys.executable, "-m", "tests.fault_jobs", scene, str(folder)]
    log = folder / "log"
    try:
        with log.open("w") as file:
            done = subprocess.run(
                words,
                cwd=ROOT,
                env=environment(ray_folder, **quick),
                stdout=file,
                stderr=file,
                timeout=400,
                check=False,
            )
    finally:
        end_all(ray_folder)
    assert done.returncode == 0, log.read_text()
    return log.read_text().splitlines()


def places(said: list[str]) -> list[tuple[int, int, int]]:
    """Workers, epoch and step that the worker group began with, each time."""
    found = [re.match(r"(\d+) workers, from epoch (\d+), step (\d+)", line) for line in said]
    return [(int(m[1]), int(m[2]), int(m[3])) for m in found if m]


@pytest.mark.cluster
@pytest.mark.long
class TestNodes:
    """Clusters of several nodes, and what they lose and gain."""

    @pytest.fixture(scope="class")
    @classmethod
    def jobs(cls, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
        """What was said. One after the other: four nodes take some gigabytes."""
        cls.folder = tmp_path_factory.mktemp("jobs")
        # An epoch of several seconds: a worker tells its step every two.
        return {scene: play(scene, many(prepared, 12), LONG, cls.folder / scene) for scene in ("storm", "tide")}

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(
        cls, jobs: dict[str, list[str]], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
    ) -> list[tuple[float, float]]:
        """The curve of one worker that nothing happens to, as long as that of either job."""
        longest = max(len(controller.read_history(cls.folder / scene / "run")) for scene in jobs)
        config = replace(LONG, train=replace(LONG.train, epochs=longest - 1))
        outdir = tmp_path_factory.mktemp("undisturbed")
        return curve(train.fit(many(prepared, 12), "digest", config, Scale(), outdir, lambda line: None).history)

    folder: Path

    def check(self, scene: str, undisturbed: list[tuple[float, float]]) -> None:
        reached = curve(controller.read_history(self.folder / scene / "run"))
        assert len(reached) >= 2
        for got, expected in zip(reached, undisturbed, strict=False):
            assert got == pytest.approx(expected, rel=1e-4)

    def test_a_killed_worker_a_preempted_node_and_a_lost_node_do_not_change_the_curve(
        self, jobs: dict[str, list[str]], undisturbed: list[tuple[float, float]]
    ) -> None:
        said = jobs["storm"]
        self.check("storm", undisturbed)
        groups = places(said)
        assert [workers for workers, _, _ in groups] == [2, 2, 2, 2]
        assert groups[1][1:] > (1, 0), "from a checkpoint, and not from the beginning"
        warned = next(line for line in said if "about to be taken away" in line)
        found = re.search(r"epoch (\d+), step (\d+)", warned)
        assert found
        assert groups[2][1:] >= (int(found[1]), int(found[2])), "from the checkpoint that the warning led to"

    def test_an_elastic_group_grows_with_the_cluster_and_shrinks_with_it_on_the_same_curve(
        self, jobs: dict[str, list[str]], undisturbed: list[tuple[float, float]]
    ) -> None:
        self.check("tide", undisturbed)
        assert [workers for workers, _, _ in places(jobs["tide"])] == [1, 2, 1]


@pytest.mark.cluster
@pytest.mark.long
def test_a_search_goes_over_all_nodes_and_a_lost_one_costs_only_the_epochs_since_the_last_checkpoint(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    folder = tmp_path / "hunt"
    folder.mkdir()
    (folder / "set").symlink_to(rsna.root)
    (folder / "table.csv").symlink_to(rsna.table)
    (folder / "space.toml").write_text("[optim]\nlr = {low = 1e-4, high = 1e-2, log = true}\n", encoding="utf-8")
    config = replace(
        SMALL, train=replace(SMALL.train, epochs=12, trackers=()), ingest=replace(SMALL.ingest, cache=prepared.cache)
    )
    said = play("hunt", prepared.rows, config, folder)
    assert "BUSY 2" in said, "each trial had a node"
    assert any("its process or its node was lost; it goes on" in line for line in said), said
    outdir = folder / "run"
    table = pd.read_parquet(outdir / "trials.parquet")
    assert (table["state"] == "complete").all()
    rows = pd.read_parquet(next(outdir.glob("rows-*.parquet")))
    for row in table.itertuples():
        history, kept = controller.read_history(outdir / row.folder), folder / f"{row.number:04d}.jsonl"
        before = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
        assert history[: len(before)] == before, "by their clocks as well: no epoch was trained again"
        own = load_toml(outdir / row.folder / "config.toml")
        whole = train.fit(rows, "d", own, Scale(cpus_per_worker=1.5), tmp_path / str(row.number), lambda line: None)
        for got, expected in zip(curve(history), curve(whole.history), strict=True):
            assert got == pytest.approx(expected, rel=1e-4)


def test_memory_that_is_short_is_told_as_such_and_a_step_without_it_is_not_tried_again(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = replace(
        LONG, sample=replace(LONG.sample, batch_size=1000), train=replace(LONG.train, epochs=1, max_failures=1)
    )
    said = play("scarce", many(prepared, 20), config, tmp_path / "scarce")
    asked = next(line for line in said if line.startswith("asked:"))
    assert shortage.is_memory(RuntimeError(asked)), "a node that kills its processes cannot say what it sees"
    errors = [line for line in said if line.startswith("TrainError")]
    assert len(errors) == 2, said
    assert "running low on memory" in errors[0]
    assert "can't allocate memory" in errors[1]
    for line in errors:
        assert "--accumulate" in line
    assert len(places(said)) == 1, "the step was not tried again"


@dataclass(frozen=True)
class Command:
    """The command line of a run, with two workers."""

    words: list[str]
    outdir: Path
    environment: dict[str, str]

    def start(self, *before: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, *self.words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def command(prepared: Prepared, rsna: SynthSummary, tmp_path: Path) -> Iterator[Command]:
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(LONG), encoding="utf-8")
    outdir, ray_folder = tmp_path / "disk" / "run", Path("/tmp") / f"mammoray-{os.getpid()}-run"
    outdir.parent.mkdir()
    paths = {"--config": settings, "--csv": rsna.csv, "--dicom-root": rsna.root, "--outdir": outdir}
    flags = [str(part) for pair in paths.items() for part in pair]
    words = [sys.executable, "-m", "mammoray.cli", "train", *flags, "--cache", prepared.cache, "--num-workers", "2"]
    yield Command(words, outdir, environment(ray_folder))
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """The curve of an undisturbed run of the command."""
    rows = prepared.rows.sort_values("image_id", ignore_index=True)
    outdir = tmp_path_factory.mktemp("expected")
    return curve(train.fit(rows, prepared.digest, LONG, Scale(num_workers=2), outdir, lambda line: None).history)


def read_until(process: subprocess.Popen[str], pattern: str) -> None:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if re.search(pattern, line):
            return
    pytest.fail(f"{pattern} was never said: {''.join(said)}")


def test_a_killed_worker_and_a_sigterm_within_epochs_lead_to_the_very_curve_of_an_undisturbed_run(
    command: Command, expected: list[tuple[float, float]]
) -> None:
    process = command.start()
    read_until(process, r"step \d+/")
    children = psutil.Process(process.pid).children(recursive=True)
    next(p for p in children if "RayTrainWorker" in " ".join(p.cmdline())).send_signal(signal.SIGKILL)
    read_until(process, "2 workers, from epoch")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 143, output
    stopped = re.search(r"stopped: .* a checkpoint was made at epoch (\d+), step (\d+) of", output)
    assert stopped, output
    assert "Traceback" not in output
    again = command.start()
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 0, output
    assert places(output.splitlines()) == [(2, int(stopped[1]), int(stopped[2]))]
    assert curve(controller.read_history(command.outdir)) == expected


def test_a_full_disk_ends_the_run_with_one_line_and_with_more_room_it_goes_on(
    command: Command, expected: list[tuple[float, float]], tmp_path: Path
) -> None:
    # A disk of its own, for these processes only: room for two checkpoints, and not for the third.
    script = """
        disk=$1 kept=$2; shift 2
        mount -t tmpfs -o size=4m tmpfs "$disk" || exit 1
        "$@"; echo "status $?"
        mount -o remount,size=100m "$disk"
        "$@"; echo "status $?"
        cp "$disk/run/history.jsonl" "$kept"
    """
    names = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    process = command.start("unshare", *names, "sh", "-c", script, "sh", str(command.outdir.parent), str(tmp_path))
    output = process.communicate(timeout=400)[0]
    first = output.split("status ")[0]
    assert re.findall(r"status (\d+)", output) == ["2", "0"], output
    assert len(re.findall("^error: a checkpoint in .* found a full disk. Make room", first, re.MULTILINE)) == 1, output
    assert len(places(first.splitlines())) == 1, "it was not tried again"
    assert "Traceback" not in first
    assert curve(controller.read_history(tmp_path)) == expected


def test_a_loss_that_is_not_finite_on_one_worker_stops_both_at_once_with_the_image(
    prepared: Prepared, tmp_path: Path
) -> None:
    """One image of class D, whose probability is so small that its loss, weighted, is beyond float32."""
    rows = prepared.rows
    odd = rows.index[(rows["fold"] == "train") & (rows["target"] == 3)][0]
    rows = rows[(rows["target"] != 3) | (rows.index == odd)].sort_values("image_id", ignore_index=True)
    tensors = learner.blank(SMALL).state_dict()
    bias = next(name for name in tensors if tensors[name].shape == (4,))
    tensors[bias] = torch.tensor([0.0, 0.0, 0.0, -3e38])
    safetensors.torch.save_file(tensors, tmp_path / "weights.safetensors")
    config = replace(
        SMALL,
        model=replace(SMALL.model, weights=tmp_path / "weights.safetensors"),
        loss=replace(SMALL.loss, class_weights="balanced"),
    )
    said: list[str] = []
    with pytest.raises(TrainError, match="finite loss") as caught:
        train.fit(rows, "digest", config, Scale(num_workers=2), tmp_path / "run", said.append)
    assert f"for 1 images of a batch of 12: {prepared.rows['image_id'][odd]}" in caught.value.found
    assert len(places(said)) == 1, "it was not tried again"


def test_a_damaged_shard_ends_the_run_at_once_with_its_name(prepared: Prepared, tmp_path: Path) -> None:
    rows = prepared.rows.sort_values("image_id", ignore_index=True)
    victim = rows.loc[rows["fold"] == "train", "shard"].iloc[0]
    damaged = tmp_path / Path(victim).name
    content = Path(victim).read_bytes()
    damaged.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    rows["shard"] = rows["shard"].replace(victim, str(damaged))
    said: list[str] = []
    with pytest.raises(IngestError, match=damaged.name):
        train.fit(rows, "digest", SMALL, Scale(), tmp_path / "run", said.append)
    assert len(places(said)) == 1, "it was not tried again"
