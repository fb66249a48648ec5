"""Probabilities and labels to metrics, per image and per patient, with intervals that resample patients.

Everything but the AUC follows from a confusion matrix, so that a thousand resamples are one matrix product: a resample
is a weight per row, and images of one patient always share it.

Shapes: ``N`` rows, ``K`` classes, ``R`` resamples (the first of them being the data as they are).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.special

from mammoray.config import CLASS_NAMES
from mammoray.errors import ConfigError
from mammoray.recipe import EvaluateConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NAMES = ("accuracy", "balanced_accuracy", "kappa", "f1", "auc")
LEVEL = 0.95


def softmax(logits_NK: npt.NDArray[Any]) -> Floats:
    """Probabilities, (N, K) float64, of logits."""
    p_NK: Floats = scipy.special.softmax(logits_NK.astype(np.float64), axis=1)
    return p_NK


def confusion(labels_N: Ints, predicted_N: Ints, weights_RN: Floats, classes: int) -> Floats:
    """Weighted confusion matrices, (R, K, K): rows are the truth, columns the prediction."""
    cells_N = labels_N * classes + predicted_N
    one_hot = np.zeros((len(cells_N), classes * classes))
    one_hot[np.arange(len(cells_N)), cells_N] = 1.0
    return (weights_RN @ one_hot).reshape(-1, classes, classes)


def _divide(a: Floats, b: Floats) -> Floats:
    quotient: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
    return quotient


def _nanmean(values: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # A resample without any defined class is undefined: NaN.
        return np.asarray(np.nanmean(values, axis=1), dtype=np.float64)


def from_confusion(c_RKK: Floats) -> dict[str, Floats]:
    """Accuracy, balanced accuracy, quadratic weighted kappa and macro F1 of each matrix, (R,); NaN where undefined.

    Balanced accuracy is over classes that occur, F1 over classes that occur or are predicted, as in scikit-learn.

    References
    ----------
    Cohen, J. (1968). Weighted kappa. Psychological Bulletin 70(4), 213-220.
    """
    truth_RK, predicted_RK, total_R = c_RKK.sum(axis=2), c_RKK.sum(axis=1), c_RKK.sum(axis=(1, 2))
    hits_RK = np.diagonal(c_RKK, axis1=1, axis2=2)
    grade = np.arange(c_RKK.shape[1], dtype=np.float64)
    cost_KK = (grade[:, None] - grade[None, :]) ** 2
    observed = (c_RKK * cost_KK).sum(axis=(1, 2))
    chance = np.einsum("rk,kl,rl->r", truth_RK, cost_KK, predicted_RK)
    return {
        "accuracy": _divide(hits_RK.sum(axis=1), total_R),
        "balanced_accuracy": _nanmean(_divide(hits_RK, truth_RK)),
        "kappa": 1.0 - _divide(observed * total_R, chance),
        "f1": _nanmean(_divide(2 * hits_RK, truth_RK + predicted_RK)),
    }


def auc(labels_N: Ints, p_NK: Floats, weights_RN: Floats) -> Floats:
    """Macro one-vs-rest area under the ROC curve, (R,), over classes with both sides present; NaN where there are none.

    With two classes it is the usual AUC of the second.
    """
    columns = [1] if p_NK.shape[1] == 2 else range(p_NK.shape[1])
    return _nanmean(np.stack([_auc_of(labels_N == k, p_NK[:, k], weights_RN) for k in columns], axis=1))


def _auc_of(positive_N: npt.NDArray[np.bool_], score_N: Floats, weights_RN: Floats) -> Floats:
    order = np.argsort(score_N, kind="stable")
    starts = np.flatnonzero(np.diff(score_N[order], prepend=-np.inf) > 0)
    # Per distinct score: weight of positives and negatives; half of a tie counts as won.
    ahead = np.add.reduceat((weights_RN * positive_N)[:, order], starts, axis=1)
    behind = np.add.reduceat((weights_RN * ~positive_N)[:, order], starts, axis=1)
    won = (ahead * (np.cumsum(behind, axis=1) - behind / 2)).sum(axis=1)
    return _divide(won, ahead.sum(axis=1) * behind.sum(axis=1))


def metrics(labels_N: Ints, p_NK: Floats) -> dict[str, float | None]:
    """The metrics of :data:`NAMES` and the mean negative log-likelihood ``loss``; ``None`` where undefined."""
    ones = np.ones((1, len(labels_N)))
    values = _all(labels_N, p_NK, ones)
    log_p = np.log(np.clip(p_NK[np.arange(len(labels_N)), labels_N], 1e-12, None))
    return {"loss": float(-log_p.mean()), **{name: _number(values[name][0]) for name in NAMES}}


def _all(labels_N: Ints, p_NK: Floats, weights_RN: Floats) -> dict[str, Floats]:
    c_RKK = confusion(labels_N, p_NK.argmax(axis=1), weights_RN, p_NK.shape[1])
    return {**from_confusion(c_RKK), "auc": auc(labels_N, p_NK, weights_RN)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def group_level(
    groups: pd.Series, labels_N: Ints, p_NK: Floats, views: pd.Series | None = None, any_counts: bool = False
) -> tuple[pd.Series, Ints, Floats]:
    """One row per group, such as a patient or a breast.

    The probabilities are the mean over its images, the label the class that most of them have, the denser on a tie.

    Parameters
    ----------
    views : Series of length N, optional
        Side and view of each image: the mean is then over the means of each, so that a view taken twice counts once.
    any_counts : bool
        The label is the highest class that any image has: a patient with one image of cancer has cancer.
    """
    codes, names = pd.factorize(groups, sort=True)
    counts = np.zeros((len(names), p_NK.shape[1]))
    np.add.at(counts, (codes, labels_N), 1.0)
    if any_counts:
        counts = np.minimum(counts, 1)
    # On a tie the denser class, as in split.
    labels = (counts.shape[1] - 1 - counts[:, ::-1].argmax(axis=1)).astype(np.int64)
    return pd.Series(names), labels, group_means(groups, p_NK, views)[1]


def group_means(groups: pd.Series, p_NK: Floats, views: pd.Series | None = None) -> tuple[pd.Series, Floats]:
    """Names of the groups, sorted, and the mean probabilities of each; ``views`` as in :func:`group_level`.

    Examples
    --------
    >>> names, means = group_means(pd.Series(["b", "a", "b"]), np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]))
    >>> list(names), means.tolist()
    (['a', 'b'], [[0.0, 1.0], [0.75, 0.25]])
    """
    codes, names = pd.factorize(groups, sort=True)
    weights_N = np.ones(len(codes)) if views is None else 1.0 / _times(pd.Series(codes), views)
    sums, totals = np.zeros((len(names), p_NK.shape[1])), np.zeros(len(names))
    np.add.at(sums, codes, p_NK * weights_N[:, None])
    np.add.at(totals, codes, weights_N)
    return pd.Series(names), sums / totals[:, None]


def _times(codes: pd.Series, views: pd.Series) -> Floats:
    """How many images of its group have the view that each image has."""
    both = pd.DataFrame({"group": codes.to_numpy(), "view": views.to_numpy()})
    times: Floats = both.groupby(["group", "view"], dropna=False)["view"].transform("size").to_numpy(dtype=np.float64)
    return times


def side_and_view(rows: pd.DataFrame) -> pd.Series:
    """``L CC`` and the like of each row, from its columns laterality and view, as far as there are any."""
    parts = [
        rows[name].fillna("").astype(str) if name in rows else pd.Series("", index=rows.index)
        for name in ("laterality", "view")
    ]
    return (parts[0] + " " + parts[1]).str.upper()


def summarise(
    patients: pd.Series, labels_N: Ints, p_NK: Floats, class_names: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Any]:
    """Everything about one set of rows at one level, ready for metrics.json.

    Parameters
    ----------
    patients : Series of length N
        Rows of one patient are resampled together.
    labels_N : (N,) int64
    p_NK : (N, K) float64
        Probabilities.
    class_names : tuple of str
    resamples : int
        Bootstrap resamples for the 95 % percentile intervals; 0 for none.
    seed : int
    """
    codes = pd.factorize(patients, sort=True)[0]
    weights_RN = _resample(codes, resamples, seed)
    values = _all(labels_N, p_NK, weights_RN)
    counts_KK = confusion(labels_N, p_NK.argmax(axis=1), weights_RN[:1], len(class_names))[0]
    return {
        "n": len(labels_N),
        **{name: _interval(values[name]) for name in NAMES},
        "majority_accuracy": _number(counts_KK.sum(axis=1).max() / counts_KK.sum()),
        "confusion": counts_KK.astype(int).tolist(),
        "per_class": {name: per_class(counts_KK, k) for k, name in enumerate(class_names)},
    }


def _resample(codes_N: npt.NDArray[Any], resamples: int, seed: int) -> Floats:
    """Weights, (1 + resamples, N): ones, then how often each row's patient was drawn."""
    n = int(codes_N.max()) + 1
    rng = np.random.default_rng([seed, n])
    drawn = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
    return np.concatenate([np.ones((1, len(codes_N))), drawn[:, codes_N]])


def _interval(values_R: Floats) -> dict[str, float | None]:
    resampled = values_R[1:][np.isfinite(values_R[1:])]
    if len(resampled) == 0:
        return {"value": _number(values_R[0]), "low": None, "high": None}
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"value": _number(values_R[0]), "low": float(low), "high": float(high)}


def with_interval(metric: dict[str, float | None]) -> str:
    """Text of a metric of :func:`summarise`.

    Examples
    --------
    >>> with_interval({"value": 0.75, "low": 0.5, "high": 0.875}), with_interval({"value": None, "low": None})
    ('0.750 [0.500, 0.875]', 'undefined')
    """
    value, low, high = (metric.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def per_class(c_KK: Floats, k: int) -> dict[str, float | int | None]:
    """Precision, recall, F1 (``None`` where undefined) and rows ``n`` of class ``k`` of a confusion matrix."""
    truth, predicted, hits = c_KK[k].sum(), c_KK[:, k].sum(), c_KK[k, k]
    return {
        "precision": _number(hits / predicted) if predicted else None,
        "recall": _number(hits / truth) if truth else None,
        "f1": _number(2 * hits / (truth + predicted)) if truth + predicted else None,
        "n": int(truth),
    }


def judged(folds: Collection[str]) -> str:
    """The fold that a run is judged on: test, or val where no patients were set aside for a test."""
    return "test" if "test" in folds else "val"


def judge(predictions: pd.DataFrame, class_names: tuple[str, ...], config: EvaluateConfig, seed: int) -> dict[str, Any]:
    """metrics.json: every fold of ``predictions``, per image, per patient, and per breast where ``config`` asks.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``patient_id, fold, label`` (a class name) and ``p_<class>``; ``laterality`` and ``view`` for breasts and views.
    class_names : tuple of str
        In the order of the model's outputs.
    config : EvaluateConfig
    seed : int
        Of the resamples.

    Raises
    ------
    ConfigError
        Breasts are asked for, and the side of some images is unknown.
    """
    folds: dict[str, Any] = {}
    for fold, rows in predictions.groupby("fold", sort=True):
        labels = rows["label"].map({name: k for k, name in enumerate(class_names)}).to_numpy(dtype=np.int64)
        p_NK = rows[[f"p_{name}" for name in class_names]].to_numpy(dtype=np.float64)
        views = side_and_view(rows) if config.average == "views" else None
        any_counts = class_names == CLASS_NAMES["cancer"]
        of_patients = group_level(rows["patient_id"], labels, p_NK, views, any_counts)
        folds[str(fold)] = {
            "image": summarise(rows["patient_id"], labels, p_NK, class_names, config.bootstrap, seed),
            "patient": summarise(*of_patients, class_names, config.bootstrap, seed),
        }
        if config.breasts:
            of_breasts = group_level(breasts_of(rows), labels, p_NK, views, any_counts)
            owners = of_breasts[0].str.rsplit(" ", n=1).str[0]  # Both breasts of a patient are resampled together.
            folds[str(fold)]["breast"] = summarise(owners, *of_breasts[1:], class_names, config.bootstrap, seed)
    intervals = {"level": LEVEL, "method": "percentile bootstrap over patients", "resamples": config.bootstrap}
    return {"classes": list(class_names), "intervals": intervals, "folds": folds}


def breasts_of(rows: pd.DataFrame) -> pd.Series:
    """``patient side`` of each row.

    Raises
    ------
    ConfigError
        The side of some rows is unknown.
    """
    side = rows["laterality"].fillna("").astype(str).str.upper() if "laterality" in rows else None
    known = 0 if side is None else int(side.isin(["L", "R"]).sum())
    if side is None or known < len(rows):
        found = f"it for {known} of {len(rows)} images"
        raise ConfigError("--breasts", "the side, L or R, of every image", found, "Leave --breasts out.")
    return rows["patient_id"].astype(str) + " " + side
