"""The figures of a study: what can be drawn is, in the direction of its objective; the rest says why not."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import optuna
import plotly.io
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mammoray import studyfigures
from tests import studies

Direction = Literal["maximize", "minimize"]
KAPPA = [[studies.METRIC, "maximize"]]
BOTH = [*KAPPA, ["GFLOPs", "minimize"]]


def content(study: optuna.Study, named: list[list[str]], best: int | None = None) -> dict[str, str]:
    return {one.key: one.content for one in studyfigures.sections(study, named, best)}


def plots(html: str) -> list[Any]:
    """The figures of a section, as plotly reads them back."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', html)
    return [plotly.io.from_json(one, skip_invalid=True) for one in found]


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    return studies.make(25)


def test_every_figure_of_an_ordinary_study_is_drawn(study: optuna.Study) -> None:
    drawn = content(study, KAPPA, study.best_trial.number)
    assert {key: len(plots(html)) for key, html in drawn.items()} == {
        "history": 1, "intermediate": 1, "parallel": 1, "importances": 1, "slices": 5,
    }  # fmt: skip


def test_history_and_slices_hold_the_trials_that_finished(study: optuna.Study) -> None:
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    drawn = content(study, KAPPA)
    points = next(trace for trace in plots(drawn["history"])[0].data if trace.mode == "markers" and len(trace.x))
    assert list(points.x) == [trial.number for trial in done]
    assert list(points.y) == pytest.approx([trial.values[0] for trial in done])
    rates = next(one for one in plots(drawn["slices"]) if one.layout.xaxis.title.text == "optim.lr")
    assert sorted(rates.data[0].x) == pytest.approx(sorted(trial.params["optim.lr"] for trial in done))
    assert rates.layout.xaxis.type == "log"


def test_the_best_trial_and_the_pruned_ones_stand_out(study: optuna.Study) -> None:
    best = study.best_trial.number
    (figure,) = plots(content(study, KAPPA, best)["intermediate"])
    curves = [trace for trace in figure.data if trace.name.startswith("Trial")]
    strong = [trace.name for trace in curves if trace.line.color == studyfigures.BLUE]
    pruned = {trace.name for trace in curves if trace.line.dash == "dot"}
    assert strong == [f"Trial{best}"]
    assert pruned == {f"Trial{trial.number}" for trial in study.trials if trial.state.name == "PRUNED"}
    assert [trace.name for trace in figure.data if trace.showlegend is None] == ["other trials", "pruned", "best trial"]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_better_a_trial_the_bluer_its_line_whatever_the_direction(direction: Direction) -> None:
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("a", 0, 1) + trial.suggest_float("b", 0, 1), n_trials=6)
    (figure,) = plots(content(study, [["score", direction]])["parallel"])
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    heights = [trace.y[0] for trace in lines]  # On the first axis, in the order of drawing.
    assert heights == sorted(heights, reverse=direction == "minimize")
    reds = [int(re.findall(r"\d+", trace.line.color)[0]) for trace in lines]
    assert reds == sorted(reds, reverse=True)
    assert reds[0] > reds[-1]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_importances_are_those_of_the_good_trials_where_there_are_several_objectives(direction: Direction) -> None:
    """The good end of the first objective hangs on one setting, its bad end on another."""
    sign = 1 if direction == "maximize" else -1
    study = optuna.create_study(directions=[direction, "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        good, bad = trial.suggest_float("good", 0, 1), trial.suggest_float("bad", 0, 1)
        return sign * (good if good > 0.8 else -bad if bad > 0.8 else 0.0), good

    study.optimize(objective, n_trials=100)
    figure = plots(content(study, [["first", direction], ["second", "minimize"]])["importances"])[0]
    shares = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert shares["good"] > 9 * shares["bad"]


def test_several_objectives_have_a_figure_each_and_a_front() -> None:
    drawn = content(studies.make_several(30), BOTH)
    counts = {key: len(plots(html)) for key, html in drawn.items()}
    assert counts == {"history": 2, "intermediate": 0, "parallel": 2, "importances": 2, "slices": 12, "front": 1}
    assert "several objectives" in drawn["intermediate"]
    assert drawn["history"].count("<h3>") == 2


def test_the_front_is_drawn_for_every_pair_of_objectives() -> None:
    study = optuna.create_study(directions=["minimize"] * 3, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: [trial.suggest_float(name, 0, 1) for name in "xyz"], n_trials=12)
    drawn = plots(content(study, [[name, "minimize"] for name in "abc"])["front"])
    assert [(one.layout.xaxis.title.text, one.layout.yaxis.title.text) for one in drawn] == [
        ("a", "b"), ("a", "c"), ("b", "c"),
    ]  # fmt: skip
    front = {trial.values[0] for trial in study.best_trials}
    assert {x for trace in drawn[0].data if trace.name == "on the front" for x in trace.x} == front


@pytest.mark.parametrize("trials", [0, 1])
def test_what_a_study_of_next_to_nothing_cannot_show_is_a_sentence(trials: int) -> None:
    drawn = content(studies.make(trials), KAPPA)
    assert ("No trial has finished" in drawn["history"]) == (trials == 0)
    assert plots(drawn["importances"]) == []
    assert all("could not draw" not in html and html for html in drawn.values())


def test_one_setting_has_no_importance() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    drawn = content(study, [["loss", "minimize"]])
    assert "One setting was searched" in drawn["importances"]
    assert "No trial has reported" in drawn["intermediate"]
    assert len(plots(drawn["parallel"])) == len(plots(drawn["slices"])) == 1


def test_a_study_whose_trials_were_all_pruned_shows_what_they_reported() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.report(trial.suggest_float("x", 0, 1), 1)
        raise optuna.TrialPruned

    study = optuna.create_study()
    study.optimize(objective, n_trials=3)
    drawn = content(study, [["loss", "minimize"]])
    assert len(plots(drawn["intermediate"])) == 1
    assert "No trial has finished" in drawn["parallel"]


def test_infinite_scores_are_left_out() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) if trial.number % 2 else float("inf"), n_trials=6)
    (figure,) = plots(content(study, [["loss", "minimize"]])["slices"])
    assert len(figure.data[0].x) == 3


def test_a_figure_that_optuna_refuses_is_a_sentence() -> None:
    """A setting that was a number in one study and a choice in another, from which trials were taken over."""
    kinds: dict[Any, Any] = {2.0: FloatDistribution(1, 9, log=True), "a": CategoricalDistribution(["a", "b"])}
    study = optuna.create_study()
    for value, kind in kinds.items():
        study.add_trial(optuna.trial.create_trial(params={"x": value}, distributions={"x": kind}, value=1.0))
    drawn = content(study, [["loss", "minimize"]])
    assert "Optuna could not draw it (TypeError: " in drawn["parallel"]
    assert len(plots(drawn["history"])) == 1


def test_no_value_can_end_the_element_of_a_figure() -> None:
    drawn = content(studies.make(12, choices=("</script><b>", "b", "c")), KAPPA)
    for html in drawn.values():
        for text in re.findall(r'<script type="application/json">(.*?)</script>', html):
            assert "<" not in text
            json.loads(text)
    assert any("</script><b>" in str(one.to_dict()) for one in plots(drawn["slices"]))
