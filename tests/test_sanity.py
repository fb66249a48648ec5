from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mammoray import catalog, cli, learner, pipeline, sample, sanity, split
from mammoray.config import Config
from mammoray.labels import class_index
from mammoray.model import DENSITY
from mammoray.plain import replace, to_toml
from mammoray.recipe import AugmentConfig, LossConfig, ModelConfig, OptimConfig, SampleConfig
from mammoray.sanity import Verdict
from mammoray.synth import SynthSummary
from tests.conftest import SMALL

QUICK = replace(
    SMALL,
    decode=replace(SMALL.decode, height=64, width=48),
    sample=SampleConfig(batch_size=6),
    model=replace(SMALL.model, dropout=0.5),
    augment=AugmentConfig(rotation=90.0, cutout=0.9),
    loss=LossConfig(label_smoothing=0.5),
    optim=OptimConfig(lr=2e-3),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more, kernels as small as these wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def overfit(data: SynthSummary, folder: Path, config: Config, *flags: str) -> int:
    file = folder / "config.toml"
    file.write_text(to_toml(config))
    needed = ["--csv", str(data.csv), "--dicom-root", str(data.root), "--outdir", str(folder / "run")]
    return cli.main(["train", *needed, "--config", str(file), "--overfit-batch", *flags])


@pytest.mark.usefixtures("ray_session")
def test_the_exit_status_says_whether_the_first_batch_was_learnt_and_only_the_cache_is_written(
    rsna: SynthSummary, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert overfit(rsna, tmp_path, QUICK) == 0
    good = capsys.readouterr().out
    assert "LEARNED after" in good and "accuracy 1.000" in good
    monkeypatch.setattr(sanity, "STEPS", 20)
    assert overfit(rsna, tmp_path, QUICK, "--lr", "1e-12") == 1
    bad = capsys.readouterr().out
    assert "decode: 0 new, 6 from the cache" in bad, "the same batch"
    assert "NOT LEARNED after 20 steps" in bad
    for cause in ("--lr 1e-12", "frozen", "labels that do not fit", "preprocessing"):
        assert cause in bad
    assert {path.name for path in tmp_path.iterdir()} == {"config.toml", "mammoray-cache"}


def test_the_batch_is_the_first_of_the_training(rsna: SynthSummary) -> None:
    data = catalog.build(rsna.csv, rsna.root)
    parts = split.make(data.rows, SMALL.split, "density", 0)
    rows = pipeline.in_folds(data.rows, parts, SMALL)
    training = rows[rows["fold"] == "train"].reset_index(drop=True)
    order = sanity.first_batch(training, SMALL)
    labels = class_index(training["label"], "density")
    whole = sample.epoch_order(labels, np.full(len(labels), 1 / len(labels)), 12, 0, 1)
    assert order.tolist() == whole[:12].tolist()


def made(config: Config, images: int = 6) -> tuple[learner.Learner, dict[str, np.ndarray]]:
    """A learner, and pictures whose brightness is their class."""
    config = sanity.by_heart(config)
    labels = np.arange(images) % 4
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 40, (images, config.decode.height, config.decode.width))
    pixels = (60 * labels[:, None, None] + noise).astype(np.uint8)
    torch.manual_seed(0)
    own = learner.make(config, learner.blank(config), {DENSITY: labels}, torch.device("cpu"))
    return own, {"image": pixels, "row": np.arange(images)}


@pytest.mark.parametrize("loss", ["focal", "corn", "coral"])
def test_every_loss_has_a_bound_that_a_network_which_knows_nothing_misses_and_learning_reaches(loss: str) -> None:
    net, optim = ModelConfig(arch="test_resnet", pretrained=False), OptimConfig(lr=1e-2)
    config = replace(QUICK, loss=LossConfig(loss=loss), model=net, optim=optim)  # type: ignore[arg-type]
    own, batch = made(config)
    verdict = sanity.learn(own, batch, lambda line: None)
    assert verdict.learned, verdict
    assert verdict.last < verdict.bound < verdict.first


def test_the_learner_starts_at_the_loss_of_ignorance() -> None:
    own, batch = made(QUICK)
    verdict = sanity.learn(own, batch, lambda line: None, steps=1)
    assert verdict.bound == pytest.approx(0.1 * np.log(4))
    assert verdict.first == pytest.approx(np.log(4), rel=0.3)
    assert not verdict.learned


def test_a_loss_that_is_not_finite_ends_it_at_once() -> None:
    own, batch = made(replace(QUICK, optim=OptimConfig(lr=1e30, warmup_epochs=0.0, clip_grad=0.0)))
    verdict = sanity.learn(own, batch, lambda line: None)
    assert not verdict.learned
    assert verdict.steps < 10
    assert "not finite" in "".join(sanity.lines(verdict, np.arange(4), QUICK))


def test_the_verdict_warns_of_one_class_of_lagging_norms_and_of_a_frozen_backbone() -> None:
    good = Verdict(learned=True, steps=9, accuracy=1, judged_accuracy=0.5, first=1.4, last=0.1, bound=0.139)
    text = "\n".join(sanity.lines(good, np.zeros(6, dtype=np.int64), SMALL))
    assert "one class only" in text and "0.500" in text
    bad = Verdict(learned=False, steps=9, accuracy=0.5, judged_accuracy=0.5, first=1.4, last=0.6, bound=0.139)
    frozen = replace(SMALL, optim=OptimConfig(freeze_epochs=2))
    assert "--freeze-epochs 2" in "\n".join(sanity.lines(bad, np.arange(4), frozen))
