import json
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

from mammoray import checkpoint, controller, evaluate, model, predict, records, train
from mammoray.config import Config
from mammoray.errors import CheckpointError, ClusterError, ConfigError, TrainError
from mammoray.plain import replace
from mammoray.recipe import AugmentConfig, CollapseConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, FinishedRun, Prepared

GOLDEN = Path(__file__).parent / "golden" / "loss_curve.json"
METRICS = ("loss", "kappa", "accuracy", "balanced_accuracy", "f1", "auc")


def fit(
    prepared: Prepared, outdir: Path, config: Config = SMALL, workers: int = 1, start: str | None = None
) -> train.Fitted:
    outdir.mkdir(exist_ok=True)
    scale = Scale(num_workers=workers)
    return train.fit(prepared.rows, prepared.digest, config, scale, outdir, lambda line: None, start=start)


def single_process(prepared: Prepared, fold: str, net: model.DensityNet, config: Config) -> dict[str, float | None]:
    """The metrics of one plain loop over the rows of a fold: no Ray Train, no shards, no gathering."""
    import torch

    from mammoray import cache

    rows = prepared.rows[prepared.rows["fold"] == fold]
    images = cache.load_pixels(rows["shard"].tolist(), rows["position"].to_numpy(), config.decode)
    with torch.no_grad():
        log = net.eval().log_probabilities(model.to_unit(torch.from_numpy(images)).unsqueeze(1)).numpy()
    return evaluate.metrics(rows["target"].to_numpy(), evaluate.softmax(log))


class TestWorkerCounts:
    """The same training with 1, 2 and 3 workers, the last of which have unequal parts of a batch."""

    CONFIG = replace(SMALL, sample=replace(SMALL.sample, batch_size=14))

    @pytest.fixture(scope="class")
    @classmethod
    def fits(cls, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[int, train.Fitted]:
        rows = prepared.rows
        # A validation fold that neither 2 nor 3 workers can divide.
        val = rows.index[rows["fold"] == "val"]
        surplus = next(n for n in range(6) if (len(val) - n) % 2 and (len(val) - n) % 3)
        odd = Prepared(rows=rows.drop(val[:surplus]), digest=prepared.digest, cache=prepared.cache)
        cls.data = odd
        return {n: fit(odd, tmp_path_factory.mktemp(f"workers-{n}"), cls.CONFIG, n) for n in (1, 2, 3)}

    data: Prepared

    def test_metrics_equal_those_of_a_single_process_over_the_same_rows(self, fits: dict[int, train.Fitted]) -> None:
        n = int((self.data.rows["fold"] == "val").sum())
        assert n % 2
        assert n % 3
        untrained = single_process(
            self.data, "val", model.build(SMALL.model, "cross_entropy", "density", SMALL.seed), SMALL
        )
        for fitted in fits.values():
            trained = single_process(self.data, "val", checkpoint.load_model(fitted.last)[0], SMALL)
            for epoch, expected in ((0, untrained), (SMALL.train.epochs, trained)):
                got = {name: fitted.history[epoch][f"val_{name}"] for name in METRICS}
                assert got == pytest.approx(expected, rel=1e-5)

    def test_the_loss_curve_does_not_depend_on_the_number_of_workers(self, fits: dict[int, train.Fitted]) -> None:
        curves = {n: [r["train_loss"] for r in fitted.history[1:]] for n, fitted in fits.items()}
        assert curves[2] == pytest.approx(curves[1], rel=1e-4)
        assert curves[3] == pytest.approx(curves[1], rel=1e-4)

    def test_weights_do_not_depend_on_the_number_of_workers(self, fits: dict[int, train.Fitted]) -> None:
        one, three = (checkpoint.read_tensors(fits[n].last) for n in (1, 3))
        for name, tensor in one.items():
            assert np.allclose(tensor.numpy(), three[name].numpy(), atol=2e-3), name

    def test_prediction_agrees_with_validation(self, fits: dict[int, train.Fitted]) -> None:
        rows = self.data.rows[self.data.rows["fold"] == "val"].reset_index(drop=True)
        p = predict.predict(rows, fits[2].last, SMALL.decode)
        assert evaluate.metrics(rows["target"].to_numpy(), p)["loss"] == pytest.approx(
            fits[2].history[-1]["val_loss"], rel=1e-4
        )

    def test_a_finished_training_is_not_done_again(self, fits: dict[int, train.Fitted]) -> None:
        outdir = fits[1].last.parent.parent
        before = (outdir / "history.jsonl").stat().st_mtime_ns
        again = fit(self.data, outdir, self.CONFIG)
        assert again.history == fits[1].history
        assert (outdir / "history.jsonl").stat().st_mtime_ns == before

    def test_the_loss_curve_is_the_one_that_was_written_down(self, fits: dict[int, train.Fitted]) -> None:
        """A change of this file says that trainings come out otherwise than before; say so in the changelog.

        Other processors round otherwise, hence the tolerance. MAMMORAY_WRITE_GOLDEN=1 writes it anew.
        """
        if os.environ.get("MAMMORAY_WRITE_GOLDEN"):
            columns = {k: [r[k] for r in fits[1].history] for k in ("train_loss", "val_loss")}
            GOLDEN.write_text(json.dumps(columns, indent=2) + "\n")
        golden = json.loads(GOLDEN.read_text())
        assert [r["train_loss"] for r in fits[1].history[1:]] == pytest.approx(golden["train_loss"][1:], rel=2e-3)
        assert [r["val_loss"] for r in fits[1].history] == pytest.approx(golden["val_loss"], rel=2e-3)

    def test_one_seed_gives_one_curve_to_the_last_bit(self, fits: dict[int, train.Fitted], tmp_path: Path) -> None:
        assert curve(fit(self.data, tmp_path, self.CONFIG, 2).history) == curve(fits[2].history)

    def test_images_of_other_decode_settings_are_refused(self, fits: dict[int, train.Fitted]) -> None:
        other = replace(SMALL.decode, window="none", height=112)
        with pytest.raises(CheckpointError, match=r"decode.height 112.*decode.window none.*Use the settings"):
            predict.predict(self.data.rows, fits[1].best, other)

    def test_a_checkpoint_knows_what_it_is(self, fits: dict[int, train.Fitted]) -> None:
        card = checkpoint.read_card(fits[2].last)
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
    before = controller.read_history(tmp_path)
    # The checkpoint is written before history.jsonl, and a kill can come between the two.
    controller.write_history(tmp_path, before[:-1])
    fitted = fit(prepared, tmp_path, config)
    assert fitted.history == controller.read_history(tmp_path) == before
    assert checkpoint.read_card(fitted.best).epoch == checkpoint.read_card(fitted.last).epoch == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best", "finished", "last"]


def test_a_history_without_its_checkpoint_is_an_error_and_not_a_new_start(prepared: Prepared, tmp_path: Path) -> None:
    controller.write_history(tmp_path, [{"epoch": 0, "stopped": None}])
    with pytest.raises(TrainError, match="a checkpoint of the epochs"):
        fit(prepared, tmp_path, replace(SMALL, train=replace(SMALL.train, max_failures=0)))


def test_batch_norm_statistics_are_those_of_the_checkpoint_on_every_worker(prepared: Prepared, tmp_path: Path) -> None:
    config = replace(SMALL, model=replace(SMALL.model, arch="test_resnet"), train=replace(SMALL.train, epochs=1))
    fitted = fit(prepared, tmp_path, config, workers=2)
    expected = single_process(prepared, "val", checkpoint.load_model(fitted.last)[0], config)
    assert fitted.history[-1]["val_loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_at_once_with_the_images_and_what_to_lower(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = replace(SMALL, optim=OptimConfig(lr=1e30, warmup_epochs=0.0, clip_grad=0.0))
    with pytest.raises(TrainError, match=r"finite loss.*images of a batch of 12: .*--lr") as caught:
        fit(prepared, tmp_path, config, workers=2)
    named = caught.value.found.split(": ")[1].removesuffix(", ...").split(", ")
    assert set(named) <= set(prepared.rows.loc[prepared.rows["fold"] == "train", "image_id"])
    assert caught.value.where.startswith("epoch 1, step ")


COLLAPSING = replace(
    SMALL,
    # Nothing but the biases of the head can learn, and they learn what is frequent.
    optim=OptimConfig(lr=1e-9, head_lr=1e-9, warmup_epochs=0.0),
    train=TrainConfig(epochs=9),
    collapse=CollapseConfig(collapse_after=1, collapse_stop=2, collapse_share=0.2),
)


def test_a_collapse_is_caught_told_recorded_and_stops_the_run(prepared: Prepared, tmp_path: Path) -> None:
    said: list[str] = []
    only_b = prepared.rows.assign(target=prepared.rows["target"].where(prepared.rows["fold"] == "val", 1))
    config = replace(COLLAPSING, optim=OptimConfig(lr=3e-3, warmup_epochs=0.0))
    fitted = train.fit(only_b, prepared.digest, config, Scale(), tmp_path, said.append)
    assert [r["epoch"] for r in fitted.history] == [0, 1, 2]
    last = fitted.history[-1]
    assert last["val_top_share"] == 1.0
    assert last["val_predicted_classes"] == 1
    assert last["val_adjusted_balanced_accuracy"] == pytest.approx(0.0)
    assert any("100 % of the images are called B" in reason for reason in last["collapse"])
    assert "collapse" in last["stopped"]
    assert any(line.startswith("WARNING epoch 2/9: the network has collapsed") for line in said)
    assert fitted.best.is_dir()
    assert train.fit(only_b, prepared.digest, config, Scale(), tmp_path, said.append).history == fitted.history


def test_the_best_epochs_are_kept_and_patience_ends_the_run(prepared: Prepared, tmp_path: Path) -> None:
    settings = TrainConfig(epochs=30, keep=2, patience=1, min_delta=0.3, monitor="loss", trackers=())
    fitted = fit(prepared, tmp_path, replace(SMALL, train=settings))
    assert len(fitted.history) < 31
    assert "--patience" in fitted.history[-1]["stopped"]
    ranked = sorted(fitted.history[1:], key=lambda r: r["val_loss"])
    folders = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()}
    assert folders == {"best", "last", f"epoch-{ranked[1]['epoch']:03d}"}
    assert checkpoint.read_card(fitted.best).epoch == ranked[0]["epoch"]
    assert not (tmp_path / "tensorboard").exists()


def test_a_frozen_backbone_stays_and_then_learns_with_its_norms_and_on_all_workers(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = replace(
        SMALL,
        model=ModelConfig(arch="test_resnet", pretrained=False, auxiliary=("view",)),
        loss=LossConfig(loss="coral"),
        optim=OptimConfig(lr=1e-2, warmup_epochs=0.0, freeze_epochs=1),
        train=TrainConfig(epochs=2, keep=2),
    )
    fitted = fit(prepared, tmp_path, config, workers=2)
    start = model.build(config.model, "coral", "density", config.seed).state_dict()
    folders = [p for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()]
    kept = {checkpoint.read_card(p).epoch: checkpoint.read_tensors(p) for p in folders}
    moved = {
        epoch: {name for name, tensor in tensors.items() if not np.array_equal(tensor.numpy(), start[name].numpy())}
        for epoch, tensors in kept.items()
    }
    heads = {"backbone.fc.weight", "backbone.fc.bias", "thresholds", "auxiliary.view.weight", "auxiliary.view.bias"}
    assert moved[1] == heads
    assert {"backbone.conv1.0.weight", "backbone.bn1.running_mean"} <= moved[2]
    assert 0 <= fitted.history[-1]["val_view_accuracy"] <= 1


@pytest.mark.usefixtures("ray_session")
class TestCheck:
    @pytest.mark.parametrize(
        ("config", "workers", "named"),
        [
            (SMALL, 13, "--num-workers 13"),
            (replace(SMALL, optim=OptimConfig(accumulate=7)), 2, "--accumulate 7"),
            (replace(SMALL, sample=replace(SMALL.sample, batch_size=13), augment=AugmentConfig(mixup=0.1)), 1, "even"),
            (replace(SMALL, speed=replace(SMALL.speed, sync_batchnorm=True)), 1, "--sync-batchnorm"),
        ],
    )
    def test_what_cannot_work_is_said_before_anything_is_started(
        self, config: Config, workers: int, named: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=named):
            train.check(config, Scale(num_workers=workers), tmp_path)


@pytest.mark.usefixtures("ray_session")
class TestPlan:
    def test_a_cluster_that_is_too_small_is_an_error_and_not_a_hang(self) -> None:
        with pytest.raises(ClusterError, match=r"4 CPUs.*--num-workers"):
            train.plan(Scale(num_workers=2, cpus_per_worker=2.5))
        with pytest.raises(ClusterError, match="GPUs"):
            train.plan(Scale(num_workers=1, gpu="yes"))

    def test_gpus_that_are_too_few_for_a_worker_leave_it_on_the_cpu_or_are_an_error(self) -> None:
        assert train.plan(Scale(gpus_per_worker=0.5)).resources_per_worker == {"CPU": 1.0}
        with pytest.raises(ClusterError, match=r"0.5 GPU of one node for each of 1 workers.*0 GPUs"):
            train.plan(Scale(gpus_per_worker=0.5, gpu="yes"))

    def test_more_workers_than_cpus_share_them(self) -> None:
        shares = {n: train.plan(Scale(num_workers=n)).resources_per_worker["CPU"] for n in (1, 3, 8)}
        assert shares == {1: 1.0, 3: 1.0, 8: 0.5}


# Real kills


class Killed:
    """The command line of a run, killed somewhere, must come to what it would have come to."""

    def __init__(self, data: SynthSummary, cache: Path, folder: Path) -> None:
        self.outdir = folder / "run"
        settings = {
            "--csv": data.csv, "--dicom-root": data.root, "--outdir": self.outdir, "--cache": cache,
            "--arch": SMALL.model.arch, "--height": 96, "--width": 80, "--batch-size": 12, "--epochs": 4,
            "--num-workers": 2, "--bootstrap": 0, "--examples": 0, "--lr": 3e-3, "--trackers": "tensorboard",
            # Everything with a state of its own, or a random one.
            "--dropout": 0.1, "--drop-path": 0.1, "--mixup": 0.2, "--noise": 0.02, "--sampler": "sqrt", "--ema": 0.9,
            "--schedule": "plateau", "--plateau-patience": 1, "--warmup-epochs": 0.5, "--patience": 9, "--keep": 2,
            "--accumulate": 2, "--freeze-epochs": 1,
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
        while len(controller.read_history(self.outdir)) <= epoch:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.05)

    def finish(self, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        assert (self.outdir / "report.html").exists()
        return controller.read_history(self.outdir)


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


@pytest.mark.cluster
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


@pytest.mark.cluster
def test_a_killed_driver_resumes_to_the_curve_it_would_have_had(
    rsna: SynthSummary, undisturbed: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    cache, expected = undisturbed
    run = Killed(rsna, cache, tmp_path)
    process = run.start()
    run.wait_for_epoch(process, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = len(controller.read_history(run.outdir))
    assert 2 <= before < 5
    assert curve(run.finish(run.start())) == expected


def test_what_was_predicted_is_what_the_best_checkpoint_predicts(finished_run: FinishedRun) -> None:
    import pandas as pd

    outdir = finished_run.source.outdir
    rows = pd.read_parquet(outdir / "predictions.parquet")
    labels = rows["label"].map({name: k for k, name in enumerate("ABCD")}).to_numpy()
    val = (rows["fold"] == "val").to_numpy()
    p = rows[[f"p_{name}" for name in "ABCD"]].to_numpy()
    history = controller.read_history(outdir)
    best = history[records.best_epoch(history, TrainConfig())]
    assert evaluate.metrics(labels[val], p[val])["kappa"] == pytest.approx(best["val_kappa"], rel=1e-4)


def test_a_training_that_goes_on_from_another_with_changed_settings_equals_one_whose_settings_change(
    prepared: Prepared, tmp_path: Path
) -> None:
    changed = (
        "2: optim.lr = 0.003",
        "2: optim.weight_decay = 0.2",
        "2: augment.rotation = 40.0",
        "2: sample.alpha = 0.3",
    )
    base = replace(SMALL, sample=replace(SMALL.sample, sampler="balanced"))
    begin = replace(base, train=replace(base.train, stop_epoch=1, trackers=()))
    first = fit(prepared, tmp_path / "first", begin)
    whole, same = (replace(base, train=replace(base.train, changes=own, trackers=())) for own in (changed, ()))
    second = fit(prepared, tmp_path / "second", whole, start=str(first.last))
    straight, unchanged = fit(prepared, tmp_path / "straight", whole), fit(prepared, tmp_path / "unchanged", same)
    curves = [[(r["train_loss"], r["val_loss"], r["lr"]) for r in one.history] for one in (second, straight, unchanged)]
    assert curves[0] == curves[1]
    assert curves[2][:2] == curves[0][:2] and curves[2][2] != curves[0][2]
    assert curves[0][2][2] == pytest.approx(3 * curves[2][2][2])
