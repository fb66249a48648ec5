"""study.html: what a search looked for and found, against the default; its figures; all of its trials.

One page that opens without a network: plotly.js stands in it, and its policy lets run that and ``study.js``, by their
digests, and nothing else, whatever a study's names and values hold.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import optuna
import pandas as pd
from plotly.offline import get_plotlyjs

from mammoray import __version__, page
from mammoray.markup import UNDEFINED, Html, el, join, number, table
from mammoray.studyfigures import Objective, Section, finished, objectives, sections

FIXED = (
    "number", "state", "score", "epoch", "epochs", "seconds", "epoch_seconds", "start_seconds", "images_per_second",
    "gflops", "reason", "folder", "parent",
)  # fmt: skip
"""Columns of trials.parquet that every study has, the parent only a population; the others are the drawn settings,
under their dotted names."""
_STATES = ("complete", "pruned", "failed", "running", "waiting")
_TITLES = {
    "number": "Trial",
    "start_seconds": "Start, s",
    "seconds": "Seconds",
    "epoch_seconds": "Epoch, s",
    "images_per_second": "Images/s",
    "gflops": "GFLOPs",
    "epoch": "Best epoch",
}


def render(study: optuna.Study, trials: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The page's HTML.

    Parameters
    ----------
    study : optuna.Study
        Loaded, with all of its trials.
    trials : pandas.DataFrame
        Content of trials.parquet: the columns :data:`FIXED`, and one for each drawn setting.
    facts : mapping
        ``title``, ``metric``, ``direction``, ``objectives`` (``[name, direction]`` each; may be empty where there is
        one, which is then the metric), ``sampler``, ``pruner``, ``best`` and ``default`` (numbers of trials, or None),
        ``notes``, ``seed``, ``split_digest``, ``test`` (None, or ``metric``, which need not be the search's,
        ``validation``, ``test``, ``low``, ``high``, ``n`` and ``folder`` of the retrained model).
    """
    named = facts["objectives"] or [[facts["metric"], facts["direction"]]]
    drawn = sections(study, named, facts["best"])
    script = Html(resources.files("mammoray").joinpath("study.js").read_text(encoding="utf-8"))
    plotly = Html(get_plotlyjs())
    parts = {
        "name": facts["title"],
        "hashes": Html(" ".join(_hash(text) for text in (plotly, script))),
        "facts": _facts(trials, facts, objectives(named)),
        "best": _best(study, trials, facts, objectives(named)),
        "test": _test(study, facts),
        "contents": _contents(drawn),
        "figures": join(_section(one) for one in drawn),
        "trials": _table(study, trials, facts, objectives(named)[0].maximize),
        "notes": _notes(facts),
        "version": __version__,
        "optuna": optuna.__version__,
        "plotly": plotly,
        "script": script,
    }
    return page.fill("study.html", parts)


def _hash(text: str) -> str:
    """A script's source expression for a Content-Security-Policy (W3C CSP 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


# The head of the page --------------------------------------------------------------------------------------------


def _facts(trials: pd.DataFrame, facts: Mapping[str, Any], every: Sequence[Objective]) -> Html:
    counts = trials["state"].value_counts()
    states = [state for state in (*_STATES, *sorted(set(counts.index) - set(_STATES))) if state in counts]
    pairs = {
        "Searched for": ", ".join(f"the {'highest' if one.maximize else 'lowest'} {one.name}" for one in every),
        "Trials": ": ".join(filter(None, (f"{len(trials):,}", ", ".join(f"{counts[s]:,} {s}" for s in states)))),
        "Sampler": facts["sampler"],
        "Pruner": facts["pruner"],
        "Seed": str(facts["seed"]),
        "Split digest": facts["split_digest"],
    }
    return el("dl", *(el("div", el("dt", key), el("dd", value)) for key, value in pairs.items()), class_="facts")


def _best(study: optuna.Study, trials: pd.DataFrame, facts: Mapping[str, Any], every: Sequence[Objective]) -> Html:
    values = {trial.number: trial.values for trial in finished(study)}
    best, default = facts["best"], facts["default"]
    front = _front(study, every) if len(every) > 1 else Html("")
    if best not in values:
        lead = "The search has no single best trial." if front else "No trial has finished with a score."
        return join([el("p", lead), front])
    sentence = _default_sentence(trials, best, default, default in values)
    cards = [_card(one, values[best], values.get(default), best) for one in every]
    differing = _differences(trials, best, default) if default in values and default != best else Html("")
    found = el("div", el("div", *cards, class_="stack"), differing, class_="two")
    return join([el("p", sentence), found, front])


def _default_sentence(trials: pd.DataFrame, best: int, default: int | None, has_score: bool) -> str:
    if default is None:
        return f"Trial {best} is the best. The default configuration was not among the trials."
    if best == default:
        return f"Trial {best}, the default configuration, is the best: no other trial was better."
    if has_score:
        return f"Trial {best} is the best. The default configuration is trial {default}."
    state = trials.loc[trials["number"] == default, "state"]
    how = f" ({state.iloc[0]})" if len(state) else ""
    return f"Trial {best} is the best. Trial {default}, the default configuration, has no score{how}."


def _card(one: Objective, best: Sequence[float], default: Sequence[float] | None, number_of_best: int) -> Html:
    value = best[one.place]
    small = el("small", f"trial {number_of_best}")
    words = "The default has no score."
    if default is not None and default is best:
        words = "The default configuration."
    elif default is not None:
        words = f"Default {number(default[one.place], 4)}: {_change(value - default[one.place], one.maximize)}"
    return el(
        "article", el("h3", one.name), el("div", number(value, 4), small, class_="value"), el("p", words), class_="card"
    )


def _change(by: float, maximize: bool) -> str:
    if by == 0:
        return "the same"
    return f"{number(abs(by), 4)} {'better' if (by > 0) == maximize else 'worse'}"


def _differences(trials: pd.DataFrame, best: int, default: int) -> Html:
    rows = trials.set_index("number")
    drawn = [name for name in trials.columns if name not in FIXED]
    cells = {name: (_text(name, rows.at[default, name]), _text(name, rows.at[best, name])) for name in drawn}
    differing = [[name, old, new] for name, (old, new) in cells.items() if old != new]
    if not differing:
        return el("p", "The best trial drew the default's settings.", class_="quiet")
    made = table(["Setting", f"Default (trial {default})", f"Best (trial {best})"], differing, "Settings that differ")
    return el("div", made, class_="panel")


def _front(study: optuna.Study, every: Sequence[Objective]) -> Html:
    numbers = {trial.number for trial in study.best_trials}
    front = [trial for trial in finished(study) if trial.number in numbers]
    rows = [[f"Trial {t.number}", *(number(value, 4) for value in t.values)] for t in front]
    made = table(["On the Pareto front", *(one.name for one in every)], rows)
    return el("div", made, class_="panel") if rows else Html("")


def _test(study: optuna.Study, facts: Mapping[str, Any]) -> Html:
    done = len(finished(study))
    if not done:
        return Html("")
    lead = (
        f"The validation score of the best of {len(study.trials):,} trials ({done:,} finished) is optimistic: by it "
        "the trial was chosen. A part of its lead is luck with these validation patients, and more trials bring more."
    )
    if done == 1:
        lead = "The validation score is optimistic: by it the best epoch was chosen."
    head = [el("h2", "What the best score is worth"), el("p", lead)]
    if facts["test"] is None:
        return join(
            [
                *head,
                el("p", "The test patients have not been looked at: ", el("code", "--retrain-best"), " does it, once."),
            ]
        )
    return join([*head, _fall(facts["test"]), el("p", _folder(facts["test"]), class_="quiet foot")])


def _folder(test: Mapping[str, Any]) -> Html:
    return join(
        [
            "The retrained model learned from the training and validation patients; it is in ",
            el("code", test["folder"]),
            ".",
        ]
    )


def _fall(test: Mapping[str, Any]) -> Html:
    low, high = test["low"], test["high"]
    between = UNDEFINED if low is None or high is None else f"{number(low, 4)} to {number(high, 4)}"
    change = test["test"] - test["validation"]
    rows = [
        ["Best trial, on the validation patients that chose it", number(test["validation"], 4), "", ""],
        ["The same settings retrained, on the test patients", number(test["test"], 4), between, f"{test['n']:,}"],
        [f"It {'fell' if change < 0 else 'rose'} by", number(abs(change), 4), "", ""],
    ]
    return el("div", table([test["metric"], "Score", "95\u00a0% interval", "n"], rows), class_="panel")


# The body --------------------------------------------------------------------------------------------------------


def _contents(drawn: Sequence[Section]) -> Html:
    links = [(one.key, one.title) for one in drawn] + [("trials", "Trials"), ("notes", "Notes")]
    return join(el("a", title, href=f"#{key}") for key, title in links)


def _section(one: Section) -> Html:
    return el("section", el("h2", one.title), el("p", one.words), one.content, id=one.key)


def _notes(facts: Mapping[str, Any]) -> Html:
    if not facts["notes"]:
        return el("p", "None.", class_="quiet")
    return el("ul", *(el("li", note) for note in facts["notes"]))


def _table(study: optuna.Study, trials: pd.DataFrame, facts: Mapping[str, Any], maximize: bool) -> Html:
    if trials.empty:
        return el("p", "The study has no trials.", class_="quiet")
    drawn = [name for name in trials.columns if name not in FIXED]
    shown = [name for name in ("number", "state", "score", *drawn, *FIXED[3:]) if name in trials.columns]
    ordered = trials.sort_values(["score", "number"], ascending=[not maximize, True], na_position="last")
    strong = {facts["best"]} if facts["best"] is not None else {trial.number for trial in study.best_trials}
    heads = [
        el(
            "th",
            el("button", _TITLES.get(name, name.capitalize() if name in FIXED else name), type="button"),
            scope="col",
        )
        for name in shown
    ]
    rows = [_row(shown, row, row["number"] in strong) for row in ordered.to_dict("records")]
    made = el("table", el("thead", el("tr", *heads)), el("tbody", *rows), class_="sortable")
    return join([_failures(trials), el("div", el("div", made, class_="scroll"), class_="panel")])


def _failures(trials: pd.DataFrame) -> Html:
    """The reasons of the failed trials, one line a reason: in the table they stand far to the right."""
    failed = trials[trials["state"] == "failed"]
    if failed.empty:
        return Html("")
    lines = [
        el("li", f"Trial{'s' if len(group) > 1 else ''} {', '.join(map(str, group))}: {reason or 'no reason known'}")
        for reason, group in failed.groupby(failed["reason"].fillna(""), sort=False)["number"]
    ]
    return el(
        "aside", el("h3", "Failed trials"), el("ul", *lines), class_="limits failures", aria_label="Failed trials"
    )


def _row(shown: Sequence[str], row: Mapping[str, Any], strong: bool) -> Html:
    cells = []
    for name in shown:
        text = _text(name, row[name])
        exact = "" if text == UNDEFINED else str(row[name])
        kind = "reason" if name == "reason" else None
        child = el("span", text, class_=f"chip {text}") if name == "state" else text
        cells.append(el("th" if name == "number" else "td", child, data_value=exact, class_=kind))
    return el("tr", *cells, class_="strong" if strong else None)


def _text(name: str, value: Any) -> str:
    """A cell for the eye: scores with four digits, other broken numbers with four significant ones."""
    if value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    if name == "score":
        return number(value, 4)
    if name in ("seconds", "start_seconds", "images_per_second"):
        return number(value, 1)
    if isinstance(value, float):  # pandas makes floats of whole numbers where a cell of the column is empty.
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)
