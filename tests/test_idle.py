"""Each rule is held against a training in miniature, in which everything that a setting can change is looked at.

Shapes: ``N`` rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from mammoray import idle, learner, model, optim, records, sample
from mammoray.config import Config, DecodeConfig
from mammoray.errors import ConfigError
from mammoray.model import DENSITY
from mammoray.plain import from_dict, replace, to_dict
from mammoray.recipe import ModelConfig, OptimConfig, SampleConfig, TrainConfig

BASE = Config(
    decode=DecodeConfig(height=32, width=32),
    sample=SampleConfig(batch_size=8),
    model=ModelConfig(arch="test_convnext", pretrained=False),
    optim=OptimConfig(lr=1e-2),
    train=TrainConfig(epochs=4),
)
LABELS = np.repeat([0, 1, 1, 1, 2, 2, 2, 3], 2)
CLOCK = {"seconds": 1.0, "data_seconds": 0.0, "val_seconds": 1.0}
ROWS = pd.DataFrame(
    {
        "target": LABELS,
        "patient_id": [f"p{i // 2}" for i in range(len(LABELS))],
        "laterality": "L",
        "view": ["CC", "MLO"] * 8,
        "age": "50",
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower with several, and very slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_changes(config: Config, changes: dict[str, Any]) -> Config:
    """The config with these values, by dotted key, checked once."""
    values = to_dict(config)
    for key, value in changes.items():
        section, name = key.split(".")
        values[section][name] = value
    return from_dict(Config, values)


@functools.cache
def trained(config: Config) -> tuple[Any, ...]:
    """Everything that a training of some steps leaves behind: weights, losses, learning rates, verdicts."""
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), 32, 32), dtype=np.uint8)
    net = model.build(config.model, config.loss.loss, config.classes, config.seed)
    own = learner.make(config, net, learner.targets_of(ROWS, config), torch.device("cpu"))
    weights = sample.row_weights(LABELS, ROWS["patient_id"].to_numpy(dtype=object), config.sample)
    size, seen = config.sample.batch_size, []
    history: records.History = []
    for epoch in range(1, config.train.last_epoch + 1):
        learner.begin_epoch(own, epoch)
        order = sample.epoch_order(LABELS, weights, size, config.seed, epoch).reshape(-1, size)
        for step, rows in enumerate(order):
            number, drops = (epoch - 1) * own.steps + step, records.drops(history, config)
            rate = optim.rate(config.optim, number, own.steps, config.train.epochs, drops)
            loss = learner.step(own, {"row": rows, "image": images[rows]}, epoch, step, rate)
            seen.append((tuple(rows.tolist()), rate, tuple(loss.tolist())))
        history.append(verdict(config, epoch, history))
        if history[-1]["stopped"]:
            break
    state = {name: value.numpy().tobytes() for name, value in own.judged.state_dict().items()}
    return tuple(seen), str(history), records.best_epoch(history, config.train), tuple(state.items())


def verdict(config: Config, epoch: int, history: records.History) -> records.Record:
    """The record of an epoch on outputs that are good, then a little better, and then the same for all images."""
    outputs = {DENSITY: np.eye(4)[LABELS]} | {task: np.zeros((len(LABELS), 3)) for task in config.model.auxiliary}
    if epoch == 1:
        outputs[DENSITY][:3] = np.eye(4)[1]
    if epoch > 2:
        outputs[DENSITY] = np.eye(4)[np.ones(len(LABELS), dtype=np.int64)]
    counts = np.bincount(LABELS, minlength=4)
    return records.record(config, epoch, 1.0, outputs, ROWS, counts, history, CLOCK)


SGD = {"optim.optimizer": "sgd"}
BALANCED = {"sample.sampler": "balanced"}
PLATEAU = {"optim.schedule": "plateau", "optim.plateau_patience": 1}
FROZEN = {"optim.freeze_epochs": 4}
LATE = {"collapse.collapse_after": 5}
FINAL = {"train.train_on": "train_and_val"}
STOPPED = {"train.stop_epoch": 3}
EARLY = {"collapse.collapse_after": 1}

# A setting, a value beside its default; what makes it idle, and what does not.
CASES: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("sample.alpha", 0.5, {}, BALANCED),
    ("sample.alpha", 0.5, {"sample.sampler": "sqrt"}, BALANCED),
    ("sample.alpha", 0.5, {"loss.class_weights": "balanced"}, BALANCED),
    ("sample.beta", 0.5, BALANCED, {"sample.sampler": "effective"}),
    ("sample.beta", 0.5, {"loss.class_weights": "sqrt"}, {"loss.class_weights": "effective"}),
    *(
        (f"augment.{name}", 0.5, {"augment.augment": False}, {})
        for name in ("flip_horizontal", "zoom", "shift", "contrast", "brightness", "gamma", "noise", "cutout", "mixup")
    ),
    ("augment.flip_vertical", 0.9, {"augment.augment": False}, {}),
    ("augment.rotation", 90.0, {"augment.augment": False}, {}),
    (
        "augment.augment",
        False,
        {f"augment.{name}": 0.0 for name in ("flip_vertical", "rotation", "zoom", "shift", "contrast", "brightness")},
        {"augment.rotation": 5.0},
    ),
    ("loss.focal_gamma", 1.0, {}, {"loss.loss": "focal"}),
    ("loss.focal_gamma", 1.0, {"loss.loss": "corn"}, {"loss.loss": "focal"}),
    ("loss.auxiliary_weight", 1.0, {}, {"model.auxiliary": ["view"]}),
    *(("optim.momentum", 0.5, {"optim.optimizer": name}, SGD) for name in ("adamw", "nadamw", "lamb", "lion")),
    ("optim.min_lr", 0.9, {"optim.schedule": "constant"}, {}),
    ("optim.min_lr", 0.9, {"optim.warmup_epochs": 4.0}, {"optim.warmup_epochs": 3.0}),
    ("optim.min_lr", 0.9, {"optim.schedule": "constant"}, PLATEAU),
    ("optim.min_lr", 0.9, {"optim.schedule": "constant"}, {**PLATEAU, "optim.warmup_epochs": 4.0}),
    ("optim.plateau_factor", 0.5, {}, PLATEAU),
    ("optim.plateau_patience", 1, {"optim.schedule": "constant"}, {"optim.schedule": "plateau"}),
    ("optim.stage_epochs", 1, FROZEN, {"optim.freeze_epochs": 3}),
    ("optim.stage_epochs", 1, FROZEN, {}),
    ("optim.layer_decay", 0.5, FROZEN, {"optim.freeze_epochs": 3}),
    ("model.drop_path", 0.5, FROZEN, {"optim.freeze_epochs": 3}),
    ("collapse.collapse_share", 1.0, LATE, EARLY),
    ("collapse.collapse_classes", 1, LATE, EARLY),
    ("collapse.collapse_accuracy", -0.5, LATE, EARLY),
    ("collapse.collapse_kappa", -0.5, LATE, EARLY),
    ("collapse.collapse_f1", 1.0, LATE, EARLY),
    ("collapse.collapse_stop", 1, LATE, EARLY),
    ("train.min_delta", 0.9, {}, {"train.patience": 2}),
    ("train.min_delta", 0.9, {}, PLATEAU),
    ("train.monitor", "loss", FINAL, {"train.patience": 2}),
    ("train.monitor", "balanced_accuracy", FINAL, {"train.patience": 2}),
    ("optim.min_lr", 0.9, {**STOPPED, "optim.warmup_epochs": 3.0}, STOPPED),
    ("optim.stage_epochs", 1, {**STOPPED, "optim.freeze_epochs": 3}, {"optim.freeze_epochs": 3}),
    ("collapse.collapse_share", 1.0, {**STOPPED, "collapse.collapse_after": 4}, {"collapse.collapse_after": 4}),
]


@pytest.mark.parametrize(("key", "value", "off", "on"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)])
def test_an_idle_setting_changes_nothing_and_one_that_is_not_does(
    key: str, value: Any, off: dict[str, Any], on: dict[str, Any]
) -> None:
    for others, wanted in ((off, True), (on, False)):
        before, after = with_changes(BASE, others), with_changes(BASE, {**others, key: value})
        assert attrgetter(key)(before) != attrgetter(key)(after)
        assert (key in idle.idle(before), key in idle.idle(after)) == (wanted, wanted)
        assert (trained(before) == trained(after)) is wanted


def test_the_hub_does_not_matter_where_the_weights_come_from_a_file(tmp_path: Path) -> None:
    net = model.build(BASE.model, "cross_entropy", "density", 5)
    save_file(net.backbone.state_dict(), tmp_path / "weights.safetensors")
    given = replace(BASE, model=replace(BASE.model, weights=tmp_path / "weights.safetensors"))
    hub = replace(given, model=replace(given.model, pretrained=True))
    assert "model.pretrained" in idle.idle(given)
    assert "model.pretrained" not in idle.idle(BASE)
    assert trained(given) == trained(hub) != trained(BASE)


def test_a_permission_to_correct_twice_counts_only_where_two_corrections_are() -> None:
    both = {**BALANCED, "loss.class_weights": "sqrt", "loss.double_correction": True}
    assert "loss.double_correction" not in idle.idle(with_changes(BASE, both))
    with pytest.raises(ConfigError):
        with_changes(BASE, {**both, "loss.double_correction": False})
    for one in (BALANCED, {"loss.class_weights": "sqrt"}):
        for value in (False, True):
            assert "loss.double_correction" in idle.idle(with_changes(BASE, {**one, "loss.double_correction": value}))


def test_the_monitor_counts_beside_the_validation_images_only_for_a_plateau() -> None:
    plateau = with_changes(BASE, {**FINAL, **PLATEAU})
    for key in ("train.monitor", "train.monitor_level"):
        assert (key in idle.idle(with_changes(BASE, FINAL)), key in idle.idle(plateau)) == (True, False)
    history = [{"epoch": e, "val_kappa": k, "val_patient_kappa": -k} for e, k in enumerate((0.0, 0.9, 0.5))]
    by_patient = replace(plateau, train=replace(plateau.train, monitor_level="patient"))
    assert records.drops(history, plateau) != records.drops(history, by_patient)


def test_frozen_batch_norms_have_nothing_to_synchronise() -> None:
    assert "speed.sync_batchnorm" in idle.idle(with_changes(BASE, {"optim.freeze_norm": True}))
    assert "speed.sync_batchnorm" not in idle.idle(BASE)


def test_every_rule_is_about_a_setting_that_there_is() -> None:
    for key in {key for rule in idle._RULES for key in rule.keys}:
        attrgetter(key)(BASE)


def test_a_note_is_said_of_what_was_changed_and_is_idle_and_of_nothing_else() -> None:
    assert idle.notes(Config()) == []
    changed = {"sample.alpha": 0.5, "optim.lr": 1e-3, "augment.augment": False, "augment.noise": 0.1}
    assert idle.notes(with_changes(BASE, changed)) == [
        "note: --alpha has no effect: --sampler is natural",
        "note: --noise has no effect: --no-augment",
    ]
    nothing = {f"augment.{name}": 0.0 for name in idle._AMOUNTS} | {"augment.augment": False}
    assert "note: --no-augment has no effect: no amount of it is above 0" in idle.notes(with_changes(BASE, nothing))
