"""A cluster whose nodes share no folder, only a bucket of a real S3 server, comes to what one machine comes to."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from mammoray import controller, evaluate, predict, storage, train
from mammoray.plain import replace, to_toml
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, Prepared
from tests.ray_nodes import OWN_MOUNTS, RayNodes

pytestmark = [pytest.mark.cluster, pytest.mark.long]
CONFIG = replace(SMALL, train=replace(SMALL.train, epochs=2, trackers=()), ingest=replace(SMALL.ingest, cache=None))
PROBABILITIES = [f"p_{name}" for name in "ABCD"]
HIDE = 'mount -t tmpfs tmpfs "$1" || exit 1; shift; exec "$@"'


@dataclass(frozen=True)
class Apart:
    """A cluster of three nodes of one CPU, and a folder that is another one on each."""

    cluster: RayNodes
    folder: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.cluster.run("-m", "mammoray.cli", *map(str, words))


@pytest.fixture(scope="module")
def apart(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("apart")
    cluster = RayNodes(Path("/tmp") / f"mammoray-{os.getpid()}-apart")
    try:
        for _ in range(2):
            cluster.add([*OWN_MOUNTS, "sh", "-c", HIDE, "sh", str(folder)], {})
        yield Apart(cluster, folder)
    finally:
        cluster.close()


def words(rsna: SynthSummary, folder: Path) -> list[object]:
    file = folder / "settings.toml"
    file.write_text(to_toml(CONFIG), encoding="utf-8")
    return ["--csv", rsna.csv, "--dicom-root", rsna.root, "--config", file]


@pytest.fixture(scope="module")
def trained(apart: Apart, rsna: SynthSummary, s3: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The storage and the folder of a training by three workers."""
    folder = tmp_path_factory.mktemp("trained")
    shared, outdir = storage.join(s3, folder.name), apart.folder / "run"
    done = apart.run("train", *words(rsna, folder), "--storage", shared, "--outdir", outdir, "--num-workers", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 workers, from epoch 0" in done.stdout
    return shared, outdir


def test_a_path_that_one_node_does_not_see_is_an_error_at_once(
    apart: Apart, rsna: SynthSummary, tmp_path: Path
) -> None:
    done = apart.run("train", *words(rsna, tmp_path), "--outdir", apart.folder / "plain", "--num-workers", 2)
    assert done.returncode == 2
    assert "on node" in done.stderr and "--storage s3://bucket/prefix" in done.stderr, done.stderr
    assert "decode:" not in done.stdout


def test_three_workers_train_and_all_nodes_decode_and_predict(
    trained: tuple[str, Path], prepared: Prepared, tmp_path: Path
) -> None:
    outdir = trained[1]
    rows = prepared.rows.sort_values("image_id", ignore_index=True)
    alone = train.fit(rows, prepared.digest, CONFIG, Scale(), tmp_path / "alone", lambda line: None)
    curve = [(r["val_loss"], r["val_kappa"]) for r in controller.read_history(outdir)]
    assert curve == [pytest.approx((r["val_loss"], r["val_kappa"]), rel=1e-4) for r in alone.history]
    assert json.loads((outdir / "run.json").read_text())["split_digest"] == prepared.digest
    judged = rows[rows["fold"] != "train"].reset_index(drop=True)
    own = predict.table(judged, predict.predict(judged, alone.best, CONFIG.decode), CONFIG.class_names)
    table = pd.read_parquet(outdir / "predictions.parquet").set_index("image_id").loc[judged["image_id"]]
    assert table[PROBABILITIES].to_numpy() == pytest.approx(own[PROBABILITIES].to_numpy(), abs=1e-4)
    metrics = json.loads((outdir / "metrics.json").read_text())["folds"]
    expected = evaluate.judge(own, CONFIG.class_names, CONFIG.evaluate, CONFIG.seed)["folds"]
    for fold in ("val", "test"):
        for level in ("image", "patient"):
            for name in evaluate.NAMES:
                found, of_one = (of[fold][level][name] for of in (metrics, expected))
                assert found["value"] == pytest.approx(of_one["value"], abs=2e-3), (fold, level, name)


def test_a_network_on_the_bucket_is_applied_on_all_nodes_and_the_results_go_there_too(
    apart: Apart, trained: tuple[str, Path], rsna: SynthSummary
) -> None:
    shared, outdir = trained
    common = ["--checkpoint", storage.join(shared, "run"), "--csv", rsna.csv, "--dicom-root", rsna.root]
    for verb, seen in (("predict", "leave_out"), ("evaluate", "allow"), ("embed", "allow")):
        done = apart.run(verb, *common, "--outdir", apart.folder / verb, "--storage", shared, "--seen", seen)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"copy: s3://bucket/some/prefix/{storage.split(shared)[1]}/{verb}" in done.stdout
    own = pd.read_parquet(outdir / "predictions.parquet").query("fold == 'test'").set_index("image_id")
    for verb in ("predict", "evaluate"):
        there = storage.read(storage.join(shared, f"{verb}/predictions.parquet"))
        found = pd.read_parquet(io.BytesIO(there)).set_index("image_id")
        assert found.loc[own.index, PROBABILITIES].to_numpy() == pytest.approx(own[PROBABILITIES], abs=1e-5)
    assert storage.is_file(storage.join(shared, "embed/baselines.json"))
    assert not [path for path in apart.folder.rglob("*") if path.name == "mammoray-cache"], "the cache is there too"


def test_a_search_runs_its_trials_on_all(apart: Apart, rsna: SynthSummary, s3: str, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[optim]\nlr = [1e-3, 3e-3]\n", encoding="utf-8")
    shared, outdir = storage.join(s3, tmp_path.name), apart.folder / "search"
    flags: list[object] = ["--storage", shared, "--outdir", outdir, "--space", space]
    flags += ["--num-trials", 4, "--trials-at-once", 2, "--scheduler", "none", "--search", "random"]
    done = apart.run("tune", *words(rsna, tmp_path), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_parquet(outdir / "trials.parquet")
    assert (table["state"] == "complete").all(), done.stdout
    for _, same in table.groupby("optim.lr"):
        assert same["score"].tolist() == pytest.approx([same["score"].iloc[0]] * len(same), abs=1e-3)
    assert [len(controller.read_history(outdir / folder)) for folder in table["folder"]] == [3] * 4
