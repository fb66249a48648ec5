"""Collapse: each sign alone, what is no sign, epochs in a row, and the cause that a history tells of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score

from mammoray.collapse import Collapse, cause, judge, signs
from mammoray.config import Config
from mammoray.recipe import CollapseConfig, LossConfig, OptimConfig, SampleConfig

NAMES = ("A", "B", "C", "D")
# No threshold that anything could break.
LENIENT = {
    "collapse_share": 1.0, "collapse_classes": 0, "collapse_accuracy": -1.0, "collapse_kappa": -1.0, "collapse_f1": -1.0
}  # fmt: skip
SOUND = np.array([[7, 3, 0, 0], [3, 30, 7, 0], [0, 8, 28, 4], [0, 0, 3, 7]])
ALL_B = np.array([[0, 10, 0, 0], [0, 40, 0, 0], [0, 40, 0, 0], [0, 10, 0, 0]])


def lenient(**given: float) -> CollapseConfig:
    return CollapseConfig(**{**LENIENT, **given})  # type: ignore[arg-type]


# Signs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_signs_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 3 + seed % 2, 50), rng.integers(0, 4, 50)
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (truth, predicted), 1)
    found = signs(counts, NAMES, CollapseConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of a class that is predicted and not there.
        expected = balanced_accuracy_score(truth, predicted, adjusted=True)
    assert found["adjusted_balanced_accuracy"] == pytest.approx(expected)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"))
    assert [found["f1"][name] for name in NAMES] == pytest.approx(f1_score(truth, predicted, average=None))
    assert found["predicted_classes"] == len(set(predicted.tolist()))
    assert found["top_share"] == np.bincount(predicted).max() / 50
    assert found["top_class"] == NAMES[np.bincount(predicted).argmax()]


def test_a_sound_network_shows_no_sign_and_a_collapsed_one_all() -> None:
    assert signs(SOUND, NAMES, CollapseConfig())["reasons"] == []
    assert signs(ALL_B, NAMES, CollapseConfig())["reasons"] == [
        "100 % of the images are called B (limit 95 %)",
        "only 1 of 4 classes predicted (at least 2)",
        "balanced accuracy, adjusted for chance, is 0.00 (limit 0.00)",
        "kappa is 0.00 (limit 0.00)",
        "F1 of every class but B is 0.00 or less",
    ]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"collapse_share": 0.39}, "41 % of the images are called B (limit 39 %)"),
        ({"collapse_classes": 5}, None),
        ({"collapse_accuracy": 0.7}, "balanced accuracy, adjusted for chance, is 0.62 (limit 0.70)"),
        ({"collapse_kappa": 0.9}, "kappa is 0.79 (limit 0.90)"),
        ({"collapse_f1": 0.73}, "F1 of every class but B is 0.73 or less"),
        ({"collapse_f1": 0.99}, "F1 of every class is 0.99 or less"),
    ],
)
def test_each_threshold_is_judged_alone(setting: dict[str, float], reason: str | None) -> None:
    assert signs(SOUND, NAMES, lenient(**setting))["reasons"] == ([reason] if reason else [])


def test_predicting_fewer_classes_than_wanted_is_a_sign_only_where_the_labels_have_more() -> None:
    three = SOUND.copy()
    three[:, 2] += three[:, 3]
    three[:, 3] = 0
    wanted = lenient(collapse_classes=4)
    assert signs(three, NAMES, wanted)["reasons"] == ["only 3 of 4 classes predicted (at least 4)"]
    three[3] = 0
    assert signs(three, NAMES, wanted)["reasons"] == []


def test_classes_without_an_image_are_no_sign() -> None:
    two = np.zeros((4, 4), int)
    two[1:3, 1:3] = [[9, 1], [2, 8]]
    assert signs(two, NAMES, CollapseConfig())["reasons"] == []


@pytest.mark.parametrize("counts", [np.zeros((4, 4)), np.diag([0, 30, 0, 0]), ALL_B * [[0], [1], [0], [0]]])
def test_with_fewer_than_two_classes_in_the_labels_nothing_can_be_said(counts: Any) -> None:
    found = signs(counts, NAMES, CollapseConfig())
    assert found["reasons"] == [] and found["adjusted_balanced_accuracy"] is None


def test_a_class_that_most_images_have_may_be_predicted_as_often() -> None:
    perfect, timid = np.array([[98, 0], [0, 2]]), np.array([[98, 0], [1, 1]])
    names = ("negative", "cancer")
    assert signs(perfect, names, CollapseConfig())["reasons"] == []
    assert signs(timid, names, CollapseConfig())["reasons"] == ["99 % of the images are called negative (limit 95 %)"]


# Epochs ----------------------------------------------------------------------------------------------------------


def test_nothing_is_judged_before_its_epoch() -> None:
    early = judge([], ALL_B, NAMES, 2, CollapseConfig(collapse_after=3, collapse_stop=1))
    assert early == Collapse(
        collapsed=False, reasons=[], run_length=0, stop=False, signs=signs(ALL_B, NAMES, CollapseConfig())
    )
    assert judge([], ALL_B, NAMES, 3, CollapseConfig(collapse_after=3)).collapsed


@pytest.mark.parametrize(
    ("before", "length"), [([], 1), ([1, 1], 3), ([1, 0, 1], 2), ([0, 0], 1), ([1, 1, 0], 1), ([None, 1], 2)]
)
def test_collapsed_epochs_are_counted_in_a_row(before: list[int | None], length: int) -> None:
    history: list[dict[str, Any]] = [
        {"epoch": i, **({} if bad is None else {"collapse": ["a sign"] * bad})} for i, bad in enumerate(before)
    ]
    config = CollapseConfig(collapse_after=0, collapse_stop=3)
    found = judge(history, ALL_B, NAMES, len(before), config)
    assert found.run_length == length and found.stop is (length >= 3)
    # Not the order of the records counts, nor whether this epoch's own stands there already.
    own = [{"epoch": len(before), "collapse": found.reasons}, *reversed(history)]
    assert judge(own, ALL_B, NAMES, len(before), config) == found
    assert judge(history, SOUND, NAMES, len(before), config).run_length == 0


def test_without_a_limit_it_never_stops() -> None:
    history = [{"epoch": i, "collapse": ["a sign"]} for i in range(50)]
    found = judge(history, ALL_B, NAMES, 50, CollapseConfig())
    assert found.run_length == 51 and not found.stop


# Causes ----------------------------------------------------------------------------------------------------------

FALLING, RISING, FLAT = [1.3, 0.9, 0.5], [1.3, 1.4, 1.9], [1.31, 1.3, 1.3]
COUNTS = [100, 400, 380, 60]


def told(
    train: list[float],
    predicted: str = "B",
    val: list[float] | None = None,
    lr: float = 3e-4,
    counts: list[int] = COUNTS,
    **sections: Any,
) -> str:
    val = val or [1.4] * len(train)
    history: list[dict[str, Any]] = [{"epoch": 0, "train_loss": None, "val_loss": 1.4, "lr": 0.0}]
    history += [
        {"epoch": i, "train_loss": t, "val_loss": v, "lr": lr}
        for i, (t, v) in enumerate(zip(train, val, strict=True), start=1)
    ]
    return cause(history, predicted, counts, Config(**sections))


BALANCED, WEIGHTED = SampleConfig(sampler="balanced"), LossConfig(class_weights="sqrt")
BOTH = LossConfig(class_weights="sqrt", double_correction=True)


def test_a_loss_that_does_not_fall_is_a_learning_rate_too_high() -> None:
    for said in (told(RISING), told(FLAT, sample=BALANCED), told([1.3, float("nan")])):
        assert "learning rate is too high" in said and "--lr" in said and "--warmup-epochs" in said


def test_the_commonest_class_without_correction_is_imbalance() -> None:
    for losses in (FLAT, FALLING):
        assert told(losses).startswith("B is the commonest class") and "--sampler balanced" in told(losses)
    for correction in ({"sample": BALANCED}, {"loss": WEIGHTED}):
        assert "commonest" not in told(FALLING, **correction)
    assert "commonest" not in told(FALLING, predicted="A")
    assert "commonest" not in told(FALLING, counts=[100, 110, 0, 100])


def test_training_that_falls_while_validation_collapses_is_overfitting_or_batch_norm() -> None:
    for said in (told(FALLING, val=[1.3, 1.6, 2.4]), told(FALLING, sample=BALANCED), told(FALLING, predicted="A")):
        assert "overfitting, or batch norm" in said and "--freeze-norm" in said


def test_a_loss_that_barely_moves_is_a_frozen_backbone_or_a_low_learning_rate() -> None:
    assert "--freeze-epochs" in told(FLAT, optim=OptimConfig(freeze_epochs=3))
    assert "--freeze-epochs" not in told(FLAT, optim=OptimConfig(freeze_epochs=2))
    assert "at a learning rate of 1e-06. Raise --lr" in told(FLAT, lr=1e-6)
    assert "at a learning rate of 5e-05. Raise --lr" in told(FLAT, lr=5e-5, optim=OptimConfig(optimizer="sgd"))
    assert "Raise --lr" not in told(FLAT, lr=5e-5)


def test_a_rare_class_with_both_corrections_is_a_double_correction() -> None:
    said = told(FALLING, predicted="A", sample=BALANCED, loss=BOTH)
    assert said.startswith("A is not the commonest class") and "corrected twice" in said
    assert "corrected twice" not in told(FALLING, predicted="B", sample=BALANCED, loss=BOTH)


def test_what_fits_nothing_is_said_to_fit_nothing() -> None:
    for losses in ([1.3, 1.22], [1.3]):
        assert told(losses, predicted="A").startswith("No single cause stands out")
