import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mammoray import evaluate, predict, train
from mammoray import model as models
from mammoray.config import Config, Scale
from mammoray.errors import ClusterError, ConfigError, TrainError
from mammoray.plain import replace
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, FinishedRun, Prepared

METRICS = ("loss", "kappa", "accuracy", "balanced_accuracy", "f1", "auc")


def fit(prepared: Prepared, outdir: Path, config: Config = SMALL, workers: int = 1) -> train.Fitted:
    said: list[str] = []
    return train.fit(prepared.rows, prepared.digest, config, Scale(num_workers=workers), outdir, said.append)


def single_process(prepared: Prepared, fold: str, net: models.DensityNet, config: Config) -> dict[str, float | None]:
    """The metrics of one plain loop over the rows of a fold: no Ray Train, no shards, no gathering."""
    import torch

    from mammoray import cache

    rows = prepared.rows[prepared.rows["fold"] == fold]
    images = cache.load_pixels(rows["shard"].tolist(), rows["position"].to_numpy(), config.decode)
    with torch.no_grad():
        logits = net.eval()(models.to_unit(torch.from_numpy(images)).unsqueeze(1)).numpy()
    return evaluate.metrics(rows["target"].to_numpy(), evaluate.softmax(logits))


class TestWorkerCounts:
    """The same training with 1, 2 and 3 workers."""

    @pytest.fixture(scope="class")
    @classmethod
    def fits(cls, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[int, train.Fitted]:
        rows = prepared.rows
        # A validation fold that neither 2 nor 3 workers can divide.
        val = rows.index[rows["fold"] == "val"]
        surplus = next(n for n in range(6) if (len(val) - n) % 2 and (len(val) - n) % 3)
        odd = Prepared(rows=rows.drop(val[:surplus]), digest=prepared.digest, cache=prepared.cache)
        cls.data = odd
        return {n: fit(odd, tmp_path_factory.mktemp(f"workers-{n}"), workers=n) for n in (1, 2, 3)}

    data: Prepared

    def test_metrics_equal_those_of_a_single_process_over_the_same_rows(self, fits: dict[int, train.Fitted]) -> None:
        n = int((self.data.rows["fold"] == "val").sum())
        assert n % 2
        assert n % 3
        untrained = single_process(self.data, "val", models.build(SMALL.model, "density", SMALL.seed), SMALL)
        for fitted in fits.values():
            trained = single_process(self.data, "val", models.load_model(fitted.last)[0], SMALL)
            for epoch, expected in ((0, untrained), (SMALL.train.epochs, trained)):
                got = {name: fitted.history[epoch][f"val_{name}"] for name in METRICS}
                assert got == pytest.approx(expected, rel=1e-5)

    def test_the_loss_curve_does_not_depend_on_the_number_of_workers(self, fits: dict[int, train.Fitted]) -> None:
        curves = {n: [r["train_loss"] for r in fitted.history[1:]] for n, fitted in fits.items()}
        assert curves[2] == pytest.approx(curves[1], rel=1e-4)
        assert curves[3] == pytest.approx(curves[1], rel=1e-4)

    def test_weights_do_not_depend_on_the_number_of_workers(self, fits: dict[int, train.Fitted]) -> None:
        one, three = (models.load_weights(fits[n].last) for n in (1, 3))
        for name, tensor in one.items():
            assert np.allclose(tensor.numpy(), three[name].numpy(), atol=2e-3), name

    def test_prediction_agrees_with_validation(self, fits: dict[int, train.Fitted]) -> None:
        rows = self.data.rows[self.data.rows["fold"] == "val"].reset_index(drop=True)
        p = predict.predict(rows, fits[2].last)
        assert evaluate.metrics(rows["target"].to_numpy(), p)["loss"] == pytest.approx(
            fits[2].history[-1]["val_loss"], rel=1e-4
        )

    def test_a_finished_training_is_not_done_again(self, fits: dict[int, train.Fitted]) -> None:
        outdir = fits[1].last.parent.parent
        before = (outdir / "history.jsonl").stat().st_mtime_ns
        again = fit(self.data, outdir)
        assert again.history == fits[1].history
        assert (outdir / "history.jsonl").stat().st_mtime_ns == before

    def test_a_checkpoint_knows_what_it_is(self, fits: dict[int, train.Fitted]) -> None:
        card = models.load_card(fits[2].last)
        assert card.split_digest == self.data.digest
        assert card.decode == SMALL.decode
        assert card.model.arch == SMALL.model.arch
        assert card.epoch == SMALL.train.epochs


def test_a_kill_after_the_last_epoch_loses_nothing(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.train

    def killed(self: object, path: object) -> None:
        raise KeyboardInterrupt

    config = replace(SMALL, train=replace(SMALL.train, epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(ray.train.Checkpoint, "to_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(prepared, tmp_path, config)
    before = train.read_history(tmp_path)
    # The checkpoint is written before history.jsonl, and a kill can come between the two.
    train.write_history(tmp_path, before[:-1])
    fitted = fit(prepared, tmp_path, config)
    assert fitted.history == train.read_history(tmp_path) == before
    assert models.load_card(fitted.best).epoch == models.load_card(fitted.last).epoch == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best", "last"]


def test_a_history_without_its_checkpoint_is_an_error_and_not_a_new_start(prepared: Prepared, tmp_path: Path) -> None:
    train.write_history(tmp_path, [{"epoch": 0}])
    with pytest.raises(TrainError, match="a checkpoint of the epochs"):
        fit(prepared, tmp_path, replace(SMALL, train=replace(SMALL.train, max_failures=0)))


def test_batch_norm_statistics_are_those_of_the_checkpoint_on_every_worker(prepared: Prepared, tmp_path: Path) -> None:
    config = replace(SMALL, model=replace(SMALL.model, arch="test_resnet"), train=replace(SMALL.train, epochs=1))
    fitted = fit(prepared, tmp_path, config, workers=2)
    expected = single_process(prepared, "val", models.load_model(fitted.last)[0], config)
    assert fitted.history[-1]["val_loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_lower(prepared: Prepared, tmp_path: Path) -> None:
    settings = replace(SMALL.train, lr=1e30, warmup_epochs=0.0, clip_grad=0.0, max_failures=0, epochs=1)
    with pytest.raises(TrainError, match=r"finite loss.*--lr"):
        fit(prepared, tmp_path, replace(SMALL, train=settings))


@pytest.mark.usefixtures("ray_session")
class TestPlan:
    def test_a_cluster_that_is_too_small_is_an_error_and_not_a_hang(self) -> None:
        with pytest.raises(ClusterError, match=r"4 CPUs.*--num-workers"):
            train.plan(Scale(num_workers=2, cpus_per_worker=2.0))
        with pytest.raises(ClusterError, match="GPUs"):
            train.plan(Scale(num_workers=1, gpu="yes"))

    def test_workers_leave_a_cpu_to_read_with(self) -> None:
        for workers in (1, 2, 3, 8):
            scaling = train.plan(Scale(num_workers=workers))
            assert scaling.resources_per_worker["CPU"] * workers <= 3.0


def test_a_batch_that_the_workers_cannot_share_is_an_error(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--batch-size"):
        fit(prepared, tmp_path, workers=5)


def test_the_best_epoch_is_the_first_of_the_highest_and_never_the_untrained_one() -> None:
    history = [{"epoch": e, "val_kappa": k, "val_loss": 1.0 - e} for e, k in enumerate([0.9, None, 0.3, 0.5, 0.5])]
    assert train.best_epoch(history, "kappa") == 3
    assert train.best_epoch(history, "loss") == 4
    assert train.best_epoch([{"epoch": e, "val_auc": None} for e in range(3)], "auc") == 1


# Real kills


class Killed:
    """The command line of a run, killed somewhere, must come to what it would have come to."""

    def __init__(self, data: SynthSummary, cache: Path, folder: Path) -> None:
        self.outdir = folder / "run"
        settings = {
            "--csv": data.csv, "--dicom-root": data.root, "--outdir": self.outdir, "--cache": cache,
            "--arch": SMALL.model.arch, "--dropout": 0.1, "--height": 96, "--width": 80, "--batch-size": 12,
            "--epochs": 4, "--lr": 1e-3, "--num-workers": 2, "--bootstrap": 0, "--examples": 0,
        }  # fmt: skip
        flags = [str(part) for pair in settings.items() for part in pair]
        self.command = [sys.executable, "-m", "mammoray.cli", "train", "--no-pretrained", *flags]

    def start(self) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        return subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def wait_for_epoch(self, process: subprocess.Popen[str], epoch: int) -> None:
        deadline = time.monotonic() + 240
        while len(train.read_history(self.outdir)) <= epoch:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.05)

    def finish(self, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        assert (self.outdir / "report.html").exists()
        return train.read_history(self.outdir)


def curve(history: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["epoch"], r["train_loss"], r["val_loss"], r["val_kappa"], r["lr"]) for r in history]


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    session = psutil.Process(process.pid).children(recursive=True)
    return [p for p in session if p.is_running() and any("RayTrainWorker" in word for word in p.cmdline())]


@pytest.fixture(scope="module")
def undisturbed(rsna: SynthSummary, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    cache = tmp_path_factory.mktemp("kill-cache")
    run = Killed(rsna, cache, tmp_path_factory.mktemp("undisturbed"))
    history = run.finish(run.start())
    assert [r["epoch"] for r in history] == [0, 1, 2, 3, 4]
    return cache, curve(history)


def test_a_killed_worker_resumes_to_the_curve_it_would_have_had(
    rsna: SynthSummary, undisturbed: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    cache, expected = undisturbed
    run = Killed(rsna, cache, tmp_path)
    process = run.start()
    run.wait_for_epoch(process, 2)
    victims = train_workers(process)
    assert len(victims) == 2
    victims[1].send_signal(signal.SIGKILL)
    assert curve(run.finish(process)) == expected


def test_a_killed_driver_resumes_to_the_curve_it_would_have_had(
    rsna: SynthSummary, undisturbed: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    cache, expected = undisturbed
    run = Killed(rsna, cache, tmp_path)
    process = run.start()
    run.wait_for_epoch(process, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = len(train.read_history(run.outdir))
    assert 2 <= before < 5
    assert curve(run.finish(run.start())) == expected


def test_what_was_predicted_is_what_the_best_checkpoint_predicts(finished_run: FinishedRun) -> None:
    import pandas as pd

    outdir = finished_run.source.outdir
    rows = pd.read_parquet(outdir / "predictions.parquet")
    labels = rows["label"].map({name: k for k, name in enumerate("ABCD")}).to_numpy()
    val = (rows["fold"] == "val").to_numpy()
    p = rows[[f"p_{name}" for name in "ABCD"]].to_numpy()
    history = train.read_history(outdir)
    best = history[train.best_epoch(history, "kappa")]
    assert evaluate.metrics(labels[val], p[val])["kappa"] == pytest.approx(best["val_kappa"], rel=1e-4)
