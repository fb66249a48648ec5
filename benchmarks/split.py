"""The split against scikit-learn's, on a table like RSNA's: balance, time, moved patients, overlap of seeds.

``python benchmarks/split.py [--quick]``. Time is CPU time of the whole split, from rows to the checked result. Balance
is scikit-learn's own criterion (over the parts the deviation of each class's share of images, the mean over the
classes), and the patients of a class by which two parts differ at most.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import rsna_table
from sklearn.model_selection import StratifiedGroupKFold

from mammoray import deal, split
from mammoray.config import LABELS, Classes, SplitConfig

Parts = npt.NDArray[np.int64]


def labelled(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """The rows with a label, as the catalog gives them."""
    labels = table["cancer"].map({"0": "negative", "1": "cancer"}) if classes == "cancer" else table["density"]
    return table.assign(label=labels)[labels != ""].reset_index(drop=True)


def ours(rows: pd.DataFrame, classes: Classes, folds: int, seed: int) -> Parts:
    """Part of each row."""
    parts = np.zeros(len(rows), dtype=np.int64)
    for fold in range(folds):
        made = split.make(rows, SplitConfig(folds=folds, fold=fold), classes, seed).rows
        parts[rows["image_id"].isin(made.loc[made["fold"] == "test", "image_id"])] = fold
    return parts


def theirs(rows: pd.DataFrame, folds: int, seed: int) -> Parts:
    """Part of each row, by scikit-learn."""
    parts = np.zeros(len(rows), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(rows, rows["label"], rows["patient_id"])):
        parts[test] = fold
    return parts


def balance(rows: pd.DataFrame, parts: Parts, classes: Classes) -> tuple[float, int]:
    """Deviation of the classes' shares of images; patients of a class by which two parts differ at most."""
    images = pd.crosstab(parts, rows["label"])
    label = rows["label"].map(LABELS[classes].index)
    patients = pd.DataFrame({"patient": rows["patient_id"], "part": parts, "label": label}).groupby("patient").max()
    spread = np.ptp(pd.crosstab(patients["part"], patients["label"]).to_numpy(), axis=0).max()
    return float((images / images.sum()).std(ddof=0).mean()), int(spread)


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of a call, the median of three."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def print_balance(table: pd.DataFrame, seeds: int) -> None:
    """Ours against scikit-learn's, the worst of the seeds."""
    print("### Balance and time\n")
    print("| labels | folds | rows | deviation, ours : theirs | patients, ours : theirs | CPU s, ours : theirs |")
    print("|---|---|---|---|---|---|")
    cases: list[tuple[Classes, int]] = [("density", 5), ("density", 10), ("cancer", 5), ("cancer", 10)]
    for classes, folds in cases:
        rows = labelled(table, classes)
        a = [balance(rows, ours(rows, classes, folds, seed), classes) for seed in range(seeds)]
        b = [balance(rows, theirs(rows, folds, seed), classes) for seed in range(seeds)]
        config = SplitConfig(folds=folds)
        seconds = cpu(partial(split.make, rows, config, classes, 0)), cpu(partial(theirs, rows, folds, 0))
        print(
            f"| {classes} | {folds} | {len(rows):,} | {max(a)[0]:.6f} : {max(b)[0]:.6f} "
            f"| {max(n for _, n in a)} : {max(n for _, n in b)} | {seconds[0]:.2f} : {seconds[1]:.2f} |"
        )


def print_moved(table: pd.DataFrame, trials: int) -> None:
    """Patients that change their part, and their test or not test, when others come."""
    rows = labelled(table, "density")
    ids = rows["patient_id"].unique()
    print("\n### Patients moved by new ones (density, 5 folds)\n")
    print("| new patients | other part, ours : theirs | in or out of the test set, ours : theirs | bound |")
    print("|---|---|---|---|")
    for count in (1, 10, 100, 1000):
        moved: list[tuple[float, ...]] = []
        for trial in range(trials):
            gone = set(np.random.default_rng(trial).choice(ids, count, replace=False))
            before = rows[~rows["patient_id"].isin(gone)].reset_index(drop=True)
            pairs = [
                (ours(before, "density", 5, trial), ours(rows, "density", 5, trial)),
                (theirs(before, 5, trial), theirs(rows, 5, trial)),
            ]
            moved.append(tuple(itertools.chain.from_iterable(_moves(before, rows, *pair) for pair in pairs)))
        mean = np.mean(moved, axis=0)
        bound = f"{deal.bound(cells=7, parts=5)}" if count == 1 else ""
        print(f"| {count} | {mean[0]:.1%} : {mean[2]:.1%} | {mean[1]:.1%} : {mean[3]:.1%} | {bound} |")
        if count == 1:
            of = before["patient_id"].nunique()
            print(
                f"| of {of:,} | {mean[0] * of:.0f} : {mean[2] * of:.0f} | {mean[1] * of:.0f} : {mean[3] * of:.0f} | |"
            )


def _moves(before: pd.DataFrame, after: pd.DataFrame, old: Parts, new: Parts) -> tuple[float, float]:
    was = pd.Series(old, index=before["patient_id"]).groupby(level=0).first()
    became = pd.Series(new, index=after["patient_id"]).groupby(level=0).first()[was.index]
    return float((was != became).mean()), float(((was == 0) != (became == 0)).mean())


def print_overlap(table: pd.DataFrame, seeds: int) -> None:
    """How much of a test set is in that of another seed, any of its parts; chance is one in the number of parts."""
    rows = labelled(table, "density")
    first = ~rows.duplicated("patient_id")
    print("\n### Overlap of the parts of two seeds (density, 5 folds; chance 20 %)\n")
    print("| split | mean | largest |")
    print("|---|---|---|")
    for name, made in (
        ("mammoray", [ours(rows, "density", 5, seed)[first] for seed in range(seeds)]),
        ("scikit-learn, shuffle", [theirs(rows, 5, seed)[first] for seed in range(seeds)]),
    ):
        tables = [pd.crosstab(a, b, normalize="index").to_numpy() for a, b in itertools.combinations(made, 2)]
        diagonal = np.mean([np.diag(t).mean() for t in tables])
        print(f"| {name} | {diagonal:.1%} | {max(t.max() for t in tables):.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed and one trial")
    quick = parser.parse_args().quick
    made_table = rsna_table.make(0)
    print_balance(made_table, 1 if quick else 5)
    print_moved(made_table, 1 if quick else 10)
    print_overlap(made_table, 2 if quick else 4)
