import numpy as np
import pandas as pd
import pytest

from mammoray import baselines
from mammoray.errors import SplitError
from mammoray.recipe import EvaluateConfig

NAMES = ("A", "B", "C", "D")
QUICK = EvaluateConfig(bootstrap=20)


def draw(patients: int = 40, fold: str | None = None, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Labelled rows of two images a patient, and features on very different scales, two of which tell the class."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), 2)
    target = owner % 4
    features = rng.normal(0, 1, (len(owner), 5))
    features[:, 0] += target
    features[:, 1] -= target
    rows = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(len(owner))],
            "patient_id": owner.astype(str),
            "laterality": "L",
            "view": "CC",
            "label": np.array(NAMES)[target],
            "target": target,
            "fold": fold or np.array(["train", "train", "val", "test"])[owner // 4 % 4],
        }
    )
    return rows, (features * [1, 1, 1e4, 1e-4, 1]).astype(np.float32)


def uniform(rows: pd.DataFrame) -> np.ndarray:
    return np.full((len(rows), 4), 0.25)


def test_classifiers_find_what_the_features_tell_whatever_their_scales() -> None:
    rows, x = draw(120)
    found = baselines.judge(rows, x, uniform(rows), NAMES, QUICK, 0)
    assert set(found) == {"network", "logistic regression", "nearest neighbours"}
    assert found["logistic regression"]["folds"]["test"]["patient"]["kappa"]["value"] > 0.6
    assert found["nearest neighbours"]["folds"]["test"]["patient"]["kappa"]["value"] > 0.3
    assert found["network"]["folds"]["test"]["patient"]["accuracy"]["value"] == 0.25


def test_only_training_rows_are_learned_from() -> None:
    rows, x = draw()
    training = (rows["fold"] == "train").to_numpy()
    test = (rows["fold"] == "test").to_numpy()
    y = rows["target"].to_numpy()
    for model in baselines.models(int(training.sum())).values():
        alone = baselines.fit_predict(model, x[training], y[training], x[test][:1], 4)
        among = baselines.fit_predict(model, x[training], y[training], np.vstack([x[test][:1], 1e6 + x]), 4)
        assert np.array_equal(alone[0], among[0]), "the scale of others does not count"
    changed = x.copy()
    changed[~training & ~test] = 1e6
    same = [baselines.judge(rows, features, uniform(rows), NAMES, QUICK, 0) for features in (x, changed)]
    assert same[0] == same[1], "validation rows neither teach nor judge"


def test_only_patients_that_the_network_has_not_seen_judge() -> None:
    rows, x = draw()
    rows.loc[rows["fold"] == "test", "fold"] = ["new"] * 8 + ["test"] * int((rows["fold"] == "test").sum() - 8)
    fold, words = baselines.folds(rows, "density", 0)
    assert fold.equals(rows["fold"]) and "trained by" in words
    assert set(baselines.judge(rows, x, uniform(rows), NAMES, QUICK, 0)["network"]["folds"]) == {"test", "new"}


def test_new_patients_are_split_by_the_rule_of_all_splits_and_never_divided() -> None:
    rows, _ = draw(fold="new")
    fold, words = baselines.folds(rows, "density", 3)
    assert set(fold) == {"train", "val", "test"} and "seed 3" in words
    assert (fold.groupby(rows["patient_id"]).nunique() == 1).all()
    mixed = rows.assign(fold=["val"] * 16 + ["new"] * (len(rows) - 16))
    fold, _ = baselines.folds(mixed, "density", 3)
    assert fold[:16].isna().all(), "what chose the network's epoch neither teaches nor judges"


def test_classes_that_no_training_row_has_get_no_probability() -> None:
    rows, x = draw()
    some = (rows["target"] < 2).to_numpy()
    for model in baselines.models(int(some.sum())).values():
        p = baselines.fit_predict(model, x[some], rows["target"].to_numpy()[some], x, 4)
        assert np.allclose(p.sum(axis=1), 1) and (p[:, 2:] == 0).all()


def test_too_few_patients_or_classes_are_an_error() -> None:
    rows, x = draw(8, fold="new")
    with pytest.raises(SplitError):
        baselines.folds(rows, "density", 0)
    with pytest.raises(SplitError, match="only those of folds train and val"):
        baselines.folds(rows.assign(fold="train"), "density", 0)
    rows, x = draw()
    with pytest.raises(SplitError, match="two classes"):
        baselines.judge(rows.assign(target=1), x, uniform(rows), NAMES, QUICK, 0)


def test_more_neighbours_than_rows_are_not_asked_for() -> None:
    _, x = draw()
    model = baselines.models(3)["nearest neighbours"]
    assert baselines.fit_predict(model, x[[0, 2, 4]], np.array([0, 1, 2]), x, 4).shape == (len(x), 4)
