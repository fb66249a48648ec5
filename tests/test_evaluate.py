import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from mammoray import evaluate
from mammoray.errors import ConfigError
from mammoray.recipe import EvaluateConfig


def draw(seed: int, n: int, classes: int, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    p = rng.random((n, classes)) + 0.6 * np.eye(classes)[labels]
    return labels, np.round(p / p.sum(axis=1, keepdims=True), digits)


@given(st.integers(0, 999), st.integers(8, 60), st.sampled_from([2, 4]))
def test_metrics_equal_those_of_scikit_learn(seed: int, n: int, classes: int) -> None:
    labels, p = draw(seed, n, classes)
    if len(set(labels)) < classes:
        return
    predicted = p.argmax(axis=1)
    got = evaluate.metrics(labels, p)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert got["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert got["f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    columns = [1] if classes == 2 else range(classes)
    assert got["auc"] == pytest.approx(np.mean([sk.roc_auc_score(labels == k, p[:, k]) for k in columns]))


@given(st.integers(0, 999))
def test_a_weight_of_two_is_a_row_twice(seed: int) -> None:
    labels, p = draw(seed, 40, 4)
    weights = np.random.default_rng(seed).integers(0, 4, 40).astype(float)
    repeated = np.repeat(np.arange(40), weights.astype(int))
    weighted, plain = (
        evaluate.auc(labels, p, weights[None]),
        evaluate.auc(labels[repeated], p[repeated], np.ones((1, len(repeated)))),
    )
    assert weighted == pytest.approx(plain, nan_ok=True)


def test_what_is_undefined_is_none() -> None:
    labels = np.zeros(5, dtype=np.int64)
    p = np.tile([0.9, 0.1], (5, 1))
    got = evaluate.metrics(labels, p)
    assert got["accuracy"] == 1.0
    assert got["kappa"] is None
    assert got["auc"] is None


def test_patients_are_the_mean_of_their_images() -> None:
    p = np.array([[0.8, 0.2], [0.2, 0.8], [0.4, 0.6]])
    names, labels, means = evaluate.group_level(pd.Series(["b", "a", "b"]), np.array([0, 1, 1]), p)
    assert list(names) == ["a", "b"]
    assert list(labels) == [1, 1], "a tie goes to the denser class"
    assert means == pytest.approx(np.array([[0.2, 0.8], [0.6, 0.4]]))


def test_intervals_resample_patients_and_not_images() -> None:
    labels, p = draw(1, 50, 4, digits=3)
    one_each = evaluate.summarise(pd.Series(range(50)), labels, p, tuple("ABCD"), 300, 0)
    ten_each = evaluate.summarise(
        pd.Series(np.tile(range(50), 10)), np.tile(labels, 10), np.tile(p, (10, 1)), tuple("ABCD"), 300, 0
    )
    assert ten_each["n"] == 500
    for name in evaluate.NAMES:
        assert ten_each[name] == pytest.approx(one_each[name]), "copies of images add no certainty"


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        labels = rng.integers(0, 2, 120)
        right = rng.random(120) < 0.8
        p = np.eye(2)[np.where(right, labels, 1 - labels)]
        interval = evaluate.summarise(pd.Series(range(120)), labels, p, ("AB", "CD"), 300, trial)["accuracy"]
        covered += interval["low"] <= 0.8 <= interval["high"]
    assert 87 <= covered <= 100


def test_judge_keeps_folds_apart() -> None:
    labels, p = draw(2, 40, 2)
    rows = pd.DataFrame({"patient_id": np.arange(40).astype(str), "fold": ["val", "test"] * 20})
    rows["label"] = np.array(["AB", "CD"])[labels]
    rows[["p_AB", "p_CD"]] = p
    judged = evaluate.judge(rows, ("AB", "CD"), EvaluateConfig(bootstrap=10), 0)
    assert set(judged["folds"]) == {"val", "test"}
    assert np.array(judged["folds"]["test"]["image"]["confusion"]).sum() == 20
    assert judged["folds"]["val"]["image"]["accuracy"]["value"] == pytest.approx((p.argmax(1) == labels)[::2].mean())


def test_a_patient_has_the_density_of_most_images_and_cancer_where_one_has_it() -> None:
    patients, labels = pd.Series(list("aaab")), np.array([0, 0, 1, 0])
    p = np.full((4, 2), 0.5)
    assert evaluate.group_level(patients, labels, p)[1].tolist() == [0, 0]
    assert evaluate.group_level(patients, labels, p, any_counts=True)[1].tolist() == [1, 0]
    rows = pd.DataFrame({"patient_id": patients, "fold": "test", "p_negative": 0.5, "p_cancer": 0.5})
    rows["label"] = np.array(["negative", "cancer"])[labels]
    judged = evaluate.judge(rows, ("negative", "cancer"), EvaluateConfig(bootstrap=0), 0)
    assert judged["folds"]["test"]["patient"]["confusion"] == [[1, 0], [1, 0]]


def views_of_one_patient() -> pd.DataFrame:
    """Three MLO of the left breast that say AB, one CC that says CD; one image of the right."""
    return pd.DataFrame(
        {
            "patient_id": "p", "fold": "test", "label": "CD", "laterality": ["L", "L", "l", "L", "R"],
            "view": ["MLO", "MLO", "MLO", "CC", "CC"],
            "p_AB": [0.9, 0.9, 0.9, 0.0, 0.5], "p_CD": [0.1, 0.1, 0.1, 1.0, 0.5],
        }
    )  # fmt: skip


def test_averaged_by_views_a_view_counts_once_however_often_it_was_taken() -> None:
    rows = views_of_one_patient()
    p = rows[["p_AB", "p_CD"]].to_numpy()
    labels = np.ones(5, dtype=np.int64)
    by_images = evaluate.group_level(rows["patient_id"], labels, p)[2]
    by_views = evaluate.group_level(rows["patient_id"], labels, p, evaluate.side_and_view(rows))[2]
    assert by_images[0, 0] == pytest.approx((3 * 0.9 + 0.0 + 0.5) / 5)
    assert by_views[0, 0] == pytest.approx((0.9 + 0.0 + 0.5) / 3)


def test_breasts_are_judged_where_they_are_asked_for() -> None:
    rows = views_of_one_patient()
    plain = evaluate.judge(rows, ("AB", "CD"), EvaluateConfig(bootstrap=0), 0)["folds"]["test"]
    assert set(plain) == {"image", "patient"}
    by_breast = EvaluateConfig(bootstrap=5, breasts=True)
    judged = evaluate.judge(rows, ("AB", "CD"), by_breast, 0)["folds"]["test"]
    assert judged["breast"]["n"] == 2
    assert judged["breast"]["confusion"] == [[0, 0], [2, 0]]
    by_views = EvaluateConfig(bootstrap=0, breasts=True, average="views")
    right = evaluate.judge(rows, ("AB", "CD"), by_views, 0)["folds"]["test"]
    assert right["breast"]["confusion"] == [[0, 0], [1, 1]]


def test_breasts_without_a_side_are_an_error_that_counts_them() -> None:
    rows = views_of_one_patient().assign(laterality=["L", "", "R", None, "L"])
    with pytest.raises(ConfigError, match=r"--breasts.*3 of 5"):
        evaluate.judge(rows, ("AB", "CD"), EvaluateConfig(bootstrap=0, breasts=True), 0)
