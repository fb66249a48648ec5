"""Classic classifiers on the features of a network: what its features are worth without its own head.

Fitted on training patients alone, and judged on others by the same function as the network. What a classifier needs to
know of the features' scale is part of it, and so learned from the training patients too.

Shapes: ``N`` rows, ``M`` of them for training, ``F`` features, ``K`` classes.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mammoray import evaluate, split
from mammoray.config import Classes, SplitConfig
from mammoray.errors import SplitError
from mammoray.origin import SEEN
from mammoray.recipe import EvaluateConfig

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
_ITERATIONS = 2000
_NEIGHBOURS = 15


def models(training_rows: int) -> dict[str, Pipeline]:
    """The classifiers, each on standardised features, by name.

    Parameters
    ----------
    training_rows : int
        There can be no more neighbours than these.
    """
    neighbours = KNeighborsClassifier(min(_NEIGHBOURS, training_rows), weights="distance")
    return {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS)),
        "nearest neighbours": make_pipeline(StandardScaler(), neighbours),
    }


def fit_predict(
    model: Pipeline, x_MF: Features, labels_M: npt.NDArray[np.int64], x_NF: Features, classes: int
) -> Floats:
    """Fit a classifier on some rows; probabilities of others, (N, K), 0 for classes that none of the former has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Whether it is good enough is what is judged.
        model.fit(x_MF, labels_M)
    p_NK = np.zeros((len(x_NF), classes))
    p_NK[:, model.classes_] = model.predict_proba(x_NF)
    return p_NK


def folds(rows: pd.DataFrame, classes: Classes, seed: int) -> tuple[pd.Series, str]:
    """Which rows the classifiers are fitted on and judged on, and in words by what split.

    Where the training patients of the network are among the rows, by its own split: features of what a network has
    learned from by heart look better than they are, so that only its other patients may judge. Otherwise the rows are
    split by the rule that all splits follow.

    Parameters
    ----------
    rows : pandas.DataFrame
        Labelled, with ``image_id, patient_id, label`` and ``fold``, of :func:`mammoray.origin.folds`.
    classes : {"density", "binary", "cancer"}
    seed : int

    Raises
    ------
    SplitError
        There are too few patients, or nobody is left to judge by.
    """
    if (rows["fold"] == "train").any():
        found, words = rows["fold"], "the split that the network was trained by"
    else:
        own = rows[~rows["fold"].isin(SEEN)]
        parts = split.make(own, SplitConfig(), classes, seed).rows.set_index("image_id")["fold"]
        found, words = rows["image_id"].map(parts), f"a split of these patients by seed {seed}"
    if found.isin(SEEN).all():
        remedy = "Add patients that the network has not seen."
        raise SplitError("the baselines", "patients to judge by", "only those of folds train and val", remedy)
    return found, words


def judge(
    rows: pd.DataFrame,
    x_NF: Features,
    own_NK: Floats,
    class_names: tuple[str, ...],
    config: EvaluateConfig,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Metrics of each classifier, and of the network's own head on the same rows, by name.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``patient_id, laterality, view``, ``fold`` of :func:`folds`, and ``target``, the index of the class. Rows of
        fold train are fitted on; those of val and those without a fold are left out; the others judge.
    x_NF : (N, F) float32
    own_NK : (N, K) float64
        Probabilities by the network.
    class_names : tuple of str
    config : EvaluateConfig
    seed : int
        Of the resamples.

    Returns
    -------
    dict
        Name -> as of :func:`mammoray.evaluate.judge`.

    Raises
    ------
    SplitError
        The training patients have one class only.
    """
    training = (rows["fold"] == "train").to_numpy()
    held_out = (rows["fold"].notna() & ~rows["fold"].isin(SEEN)).to_numpy()
    target = rows["target"].to_numpy()
    if len(np.unique(target[training])) < 2:
        found = f"{len(np.unique(target[training]))} in {int(training.sum())} images"
        raise SplitError("the baselines", "training images of two classes or more", found, "Add labelled patients.")
    scores = {"network": own_NK[held_out]}
    for name, model in models(int(training.sum())).items():
        scores[name] = fit_predict(model, x_NF[training], target[training], x_NF[held_out], len(class_names))
    about = rows.loc[held_out].assign(label=np.array(class_names)[target[held_out]])
    return {
        name: evaluate.judge(_with(about, p_NK, class_names), class_names, config, seed)
        for name, p_NK in scores.items()
    }


def _with(rows: pd.DataFrame, p_NK: Floats, class_names: tuple[str, ...]) -> pd.DataFrame:
    return rows.assign(**{f"p_{name}": p_NK[:, k] for k, name in enumerate(class_names)})
