"""From a finished run's folder to ``report.html``: one page, figures inside, that opens without a network.

Reads only the run's files, so a report can be written again anywhere, without Ray, torch or the images. Equal files
give equal bytes. ``report.html`` beside this module is the page's frame and prose; the files are read and checked in
:mod:`mammoray.runfolder`; the figures are in :mod:`mammoray.figures`, the images in :mod:`mammoray.gallery`; here the
files become sentences and tables.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mammoray import gallery, page
from mammoray.errors import RunFolderError
from mammoray.figures import (
    Line,
    class_legend,
    confusion,
    interval_strip,
    line_chart,
    reliability,
    stacked_bar,
)
from mammoray.markup import UNDEFINED, Html, defined, el, join, number, table
from mammoray.plain import to_toml
from mammoray.runfolder import FOLDS, LEVELS, METRICS, Json, RunFolder, read_run

# The head of the page --------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds in the units a person would use.

    Examples
    --------
    >>> duration(12.34), duration(80), duration(7500)
    ('12.3 s', '1 min 20 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _definitions(pairs: dict[str, str]) -> Html:
    return el("dl", *(el("div", el("dt", key), el("dd", value)) for key, value in pairs.items()), class_="facts")


def _facts(folder: RunFolder) -> Html:
    run, config = folder.run, folder.config
    workers = f"{run['num_workers']} {'worker' if run['num_workers'] == 1 else 'workers'} on {run['device']}"
    return _definitions(
        {
            "Network": f"{config.model.arch}, {run['parameters'] / 1e6:,.2f} M parameters",
            "Classes": ", ".join(folder.classes),
            "Data": f"{run['layout']} layout, {run['decoded']:,} images decoded",
            "Input": f"{config.decode.height} x {config.decode.width}",
            "Checkpoint": f"epoch {run['best_epoch']} of {config.train.last_epoch}",
            "Ran on": workers,
            "Took": duration(sum(run["seconds"].values())),
            "Started": f"{run['started'][:16].replace('T', ' ')} UTC",
        }
    )


def interval(metric: Json, digits: int = 3) -> str:
    """Text of a metric's interval, such as ``0.69 to 0.85``; an en dash where there is none."""
    if not (defined(metric["low"]) and defined(metric["high"])):
        return UNDEFINED
    return f"{number(metric['low'], digits)} to {number(metric['high'], digits)}"


def against_majority(accuracy: Json, majority: float | None) -> str:
    """Say how accuracy stands against always answering the most frequent class.

    Examples
    --------
    >>> against_majority({"value": 0.8, "low": 0.7, "high": 0.9}, 0.43)
    'better than'
    >>> against_majority({"value": 0.5, "low": 0.4, "high": 0.6}, 0.43)
    'not distinguishable from'
    >>> against_majority({"value": 0.5, "low": None, "high": None}, 0.43)
    'not tested (there is no interval) against'
    """
    if majority is None or not defined(majority) or not defined(accuracy["value"]):
        return "not comparable with"
    if not (defined(accuracy["low"]) and defined(accuracy["high"])):
        return "not tested (there is no interval) against"
    if accuracy["low"] > majority:
        return "better than"
    return "worse than" if accuracy["high"] < majority else "not distinguishable from"


def _verdict(folder: RunFolder) -> Html:
    patient, image = folder.judged["patient"], folder.judged["image"]
    majority = patient["majority_accuracy"]
    kind, seen = ("test", "that the network never saw")
    if folder.fold == "val":
        kind, seen = ("validation", "by which its best epoch was chosen")
    sentence = el(
        "p",
        f"On {patient['n']:,} {kind} patients ({image['n']:,} images) {seen}, its accuracy is "
        f"{number(patient['accuracy']['value'], 2)}: ",
        el("strong", against_majority(patient["accuracy"], majority)),
        f" always answering the most frequent class ({number(majority, 2)}).",
    )
    baselines = {
        "kappa": ("Quadratic weighted kappa", 0.0, "0: no agreement beyond chance"),
        "accuracy": ("Accuracy", majority, f"{number(majority, 2)}: always the most frequent class"),
        "auc": ("AUC", 0.5, "0.50: chance"),
    }
    cards = [_card(folder, key, *rest) for key, rest in baselines.items()]
    return join([sentence, el("div", *cards, class_="cards")])


def _card(folder: RunFolder, key: str, title: str, baseline: float | None, meaning: str) -> Html:
    patient, image = folder.judged["patient"][key], folder.judged["image"][key]
    level = f"{100 * folder.metrics['intervals']['level']:g}\u00a0%"
    by_image = f"{number(image['value'], 2)} ({interval(image, 2)})"
    return el(
        "article",
        el("h3", title),
        el("div", number(patient["value"], 2), el("small", f"{level} interval {interval(patient, 2)}"), class_="value"),
        interval_strip(patient["value"], patient["low"], patient["high"], baseline),
        el("p", el("span", class_="mark"), meaning, el("br"), f"By patient; by image {by_image}"),
        class_="card",
    )


def _limits(folder: RunFolder) -> Html:
    if not folder.run["limits"]:
        return Html("")
    items = [el("li", text) for text in folder.run["limits"]]
    return el("aside", el("h2", "Limits of this run"), el("ul", *items), class_="limits", aria_label="Limits")


# The sections ----------------------------------------------------------------------------------------------------


def _confusion(folder: RunFolder) -> Html:
    panels = []
    units = {"image": "Images", "patient": "Patients", "breast": "Breasts"}
    for level, unit in ((level, units[level]) for level in folder.levels):
        values = folder.judged[level]
        matrix = confusion(values["confusion"], folder.classes, f"{unit}, n = {values['n']:,}")
        panels.append(el("div", matrix, class_="panel"))
    return el("div", *panels, class_="two")


def _metrics(folder: RunFolder) -> Html:
    folds = folder.metrics["folds"]
    # The test comes first: on a narrow screen the rest is scrolled to.
    shown = [fold for fold in ("test", "val") if fold in folds]
    columns = [(fold, level) for fold in shown for level in folder.levels]
    header = ["Metric", *(LEVELS[level] for _, level in columns)]
    rows: list[list[str]] = []
    for key, title in METRICS.items():
        cells = [folds[fold][level][key] for fold, level in columns]
        rows.append([title, *(join([number(c["value"]), el("small", interval(c))]) for c in cells)])
    rows.append(
        ["Accuracy of the most frequent class", *(number(folds[f][v]["majority_accuracy"]) for f, v in columns)]
    )
    rows.append(["n", *(f"{folds[f][v]['n']:,}" for f, v in columns)])
    main = el("div", table(header, rows, groups=[FOLDS[fold] for fold in shown]), class_="panel")
    by_class = el("div", *(_per_class(folder, level) for level in folder.levels), class_="two")
    name = FOLDS[folder.fold]
    return join([main, el("h3", f"{name}, by class"), by_class, el("h3", f"{name}, calibration"), _calibration(folder)])


def _calibration(folder: RunFolder) -> Html:
    bins = reliability_bins(folder.predictions[folder.predictions["fold"] == folder.fold], folder.classes)
    rows = [[number(sure, 2), number(right, 2), f"{n:,}"] for sure, right, n in bins]
    note = "Images in bins of equal width; few of them say little. Below the diagonal the network is surer than right."
    numbers = table(["Mean probability", "Share right", "Images"], rows, "In numbers")
    chart = reliability(bins, "How often right, against how sure")
    return el("div", chart, el("div", numbers, el("p", note, class_="quiet foot"), class_="panel"), class_="two")


def _per_class(folder: RunFolder, level: str) -> Html:
    per_class = folder.judged[level]["per_class"]
    keys = ("precision", "recall", "f1")
    rows = [[c, *(number(per_class[c][key]) for key in keys), f"{per_class[c]['n']:,}"] for c in folder.classes]
    header = ["Class", "Precision", "Recall", "F1", "n"]
    return el("div", table(header, rows, LEVELS[level].capitalize()), class_="panel")


def _interval_note(folder: RunFolder) -> str:
    chosen = folder.metrics["intervals"]
    if not chosen["resamples"]:
        return "No intervals were computed."
    level, how = f"{100 * chosen['level']:g}\u00a0%", f"{chosen['method']}, {chosen['resamples']:,} resamples"
    return f"Small figures: {level} intervals ({how})."


def _training_note(folder: RunFolder) -> str:
    lead = "Epoch 0 is the untrained network. " if folder.history[0]["epoch"] == 0 else ""
    settings, best = folder.config.train, folder.run["best_epoch"]
    level = " by patient" if settings.monitor_level == "patient" else ""
    why = f"the best validation {settings.monitor.replace('_', ' ')}{level}."
    if settings.train_on == "train_and_val":
        why = "the last one. The validation images were learned from too, so their curves show what it has learned."
    stopped = folder.history[-1].get("stopped")
    if stopped is None and settings.last_epoch < settings.epochs:
        stopped = f"--stop-epoch {settings.stop_epoch}, of a schedule of {settings.epochs}"
    end = f" The training was stopped: {stopped}." if stopped else ""
    return f"{lead}The checkpoint of epoch {best} was kept: {why}{end}"


def _training(folder: RunFolder) -> Html:
    def line(name: str, style: str, key: str) -> Line:
        return Line(name=name, style=style, values=tuple(epoch[key] for epoch in folder.history))

    epochs = [int(epoch["epoch"]) for epoch in folder.history]
    best = folder.run["best_epoch"]
    loss = [line("validation", "l0", "val_loss"), line("training", "l1", "train_loss")]
    scores = [line("kappa", "l0", "val_kappa"), line("accuracy", "l1", "val_accuracy"), line("AUC", "l2", "val_auc")]
    learned = "" if folder.config.train.train_on == "train" else " (validation images were learned from)"
    charts = (
        line_chart("Loss" + learned, epochs, loss, best, False),
        line_chart("Validation scores" + learned, epochs, scores, best, True),
    )
    return join([_collapse(folder), el("div", *charts, class_="two"), _history_table(folder)])


def _collapse(folder: RunFolder) -> Html:
    """Say in which epochs the network had collapsed, and by what; nothing where it never had."""
    epochs = [epoch for epoch in folder.history if epoch.get("collapse")]
    if not epochs:
        return Html("")
    last = epochs[-1]
    lead = f"In {len(epochs)} of {len(folder.history)} epochs the network answered (nearly) the same for all images. "
    signs = el("p", lead, f"Epoch {last['epoch']}, the last of them: {'; '.join(last['collapse'])}.")
    cause = el("p", "Likely cause: ", last["collapse_cause"]) if last.get("collapse_cause") else ""
    return el("aside", el("h3", "The network collapsed"), signs, cause, class_="limits", aria_label="Collapse")


def _history_table(folder: RunFolder) -> Html:
    columns = {
        "train_loss": ("Training loss", 4),
        "val_loss": ("Validation loss", 4),
        "val_kappa": ("Kappa", 3),
        "val_accuracy": ("Accuracy", 3),
        "val_balanced_accuracy": ("Balanced accuracy", 3),
        "val_auc": ("AUC", 3),
        "lr": ("Learning rate", 7),
        "seconds": ("Seconds", 1),
        "images_per_second": ("Images/s", 1),
    }
    header = ["Epoch", *(title for title, _ in columns.values())]
    rows = [
        [str(e["epoch"]), *(number(e[key], digits) for key, (_, digits) in columns.items())] for e in folder.history
    ]
    if any(e.get("collapse") for e in folder.history):
        header.append("Collapse")
        rows = [[*row, "; ".join(e.get("collapse", []))] for row, e in zip(rows, folder.history, strict=True)]
    return el("details", el("summary", "All epochs in numbers"), table(header, rows))


def _data_note(folder: RunFolder) -> str:
    run, unlabelled = folder.run, folder.split["unlabelled"]
    return (
        f"{run['decoded']:,} images were decoded and {run['failed']:,} could not be. "
        f"{unlabelled['images']:,} images of {unlabelled['patients']:,} patients have no label and are in no fold. "
        f"All images of one {folder.split['grouped_by']} are in one fold."
    )


def _data(folder: RunFolder) -> Html:
    folds, parts = folder.split["folds"], []
    # The split is by density letter, also where the network tells AB from CD only.
    classes = list(dict.fromkeys(name for fold in FOLDS for name in folds[fold]["classes"]))
    for fold, title in FOLDS.items():
        counts = {name: folds[fold]["classes"].get(name, {"images": 0})["images"] for name in classes}
        parts += [el("span", title), stacked_bar(counts, f"{title}, images by class")]
    header = ["Class", *(unit for _ in FOLDS for unit in ("images", "patients"))]
    none = {"images": 0, "patients": 0}
    rows = [
        [name, *(f"{folds[f]['classes'].get(name, none)[unit]:,}" for f in FOLDS for unit in ("images", "patients"))]
        for name in classes
    ]
    rows.append(["All", *(f"{folds[fold][unit]:,}" for fold in FOLDS for unit in ("images", "patients"))])
    bars = el("div", *parts, class_="folds")
    return el("div", class_legend(classes), bars, table(header, rows, groups=list(FOLDS.values())), class_="panel")


def reliability_bins(predictions: pd.DataFrame, classes: list[str], bins: int = 5) -> list[tuple[float, float, int]]:
    """Mean top probability, share right and count of images, in bins of equal width; empty bins left out."""
    sure = predictions[[f"p_{name}" for name in classes]].max(axis=1).astype(float)
    right = (predictions["label"] == predictions["predicted"]).astype(float)
    place = (sure * bins).clip(0, bins - 1e-9).fillna(-1).astype(int)
    found = []
    for index in range(bins):
        inside = (place == index) & sure.notna()
        if inside.any():
            found.append((float(sure[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return found


def _audit_note(folder: RunFolder) -> str:
    n = folder.audit["findings"]
    found = f"{n:,} {'finding' if n == 1 else 'findings'}"
    return f"{found}. Each one, with its file and tag, is in audit.csv beside this page."


def _audit(folder: RunFolder) -> Html:
    return page.findings(folder.audit)


def _again(folder: RunFolder) -> Html:
    run = folder.run
    facts = _definitions(
        {"mammoray": run["version"], "Split digest": run["split_digest"], "Seed": str(folder.config.seed)}
    )
    command = el("pre", el("code", "mammoray train --config config.toml ..."))
    rest = el("p", "The dots: where the data are and a new output folder; see mammoray train --help.", class_="quiet")
    times = table(["Step", "Time"], [[step, duration(seconds)] for step, seconds in run["seconds"].items()])
    config = el("details", el("summary", "config.toml"), el("pre", el("code", to_toml(folder.config))))
    return join([facts, el("br"), command, rest, config, el("details", el("summary", "Time by step"), times)])


# The page --------------------------------------------------------------------------------------------------------


def render(folder: RunFolder) -> str:
    """Build the page's HTML."""
    sections: dict[str, str] = {
        "name": folder.name,
        "facts": _facts(folder),
        "verdict": _verdict(folder),
        "limits": _limits(folder),
        "confusion": _confusion(folder),
        "interval_note": _interval_note(folder),
        "metrics": _metrics(folder),
        "training_note": _training_note(folder),
        "training": _training(folder),
        "data_note": _data_note(folder),
        "data": _data(folder),
        "augmented": gallery.augmented(folder),
        "images": gallery.judged(folder),
        "audit_note": _audit_note(folder),
        "audit": _audit(folder),
        "again": _again(folder),
        "version": folder.run["version"],
    }
    return page.fill("report.html", sections)


def write_report(outdir: Path) -> Path:
    """Write ``outdir/report.html`` from the other files of a finished run.

    Parameters
    ----------
    outdir : Path
        The run's folder.

    Returns
    -------
    Path
        The page: self-contained, the same bytes for the same files.

    Raises
    ------
    RunFolderError
        For a file that is missing or damaged, or a folder that cannot be written.
    """
    file = outdir / "report.html"
    html = render(read_run(outdir))
    try:
        file.write_text(html, encoding="utf-8", newline="\n")
    except OSError as error:
        raise RunFolderError(
            str(file), "a file that can be written", str(error), "Check the folder's permissions."
        ) from error
    return file
