"""study.html: says what a search found and what that is worth, escapes its data, and opens without a network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from mammoray import studypage
from tests import studies
from tests.browser import needs_chromium, see

ODD = "<script>alert(1)</script>"
TEST = {
    "metric": "kappa per image",
    "validation": 0.8,
    "test": 0.7577,
    "low": 0.7,
    "high": 0.81,
    "n": 1212,
    "folder": "best/",
}


class Page(HTMLParser):
    """Tags, the words outside of scripts and styles, and the rows of the table of trials."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    return studies.make(25)


def render(study: optuna.Study, trials: pd.DataFrame | None = None, **changes: Any) -> str:
    return studypage.render(study, studies.frame(study) if trials is None else trials, studies.facts(study, **changes))


def order(html: str) -> list[int]:
    """The numbers of the trials in their table, from above."""
    body = html[html.index('<table class="sortable">') :]
    return [int(n) for n in re.findall(r'<th data-value="(\d+)">', body)]


def test_the_head_says_what_was_searched_and_how_trials_ended(study: optuna.Study) -> None:
    text = Page(render(study)).text
    counts = studies.frame(study)["state"].value_counts()
    assert f"Trials 25: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed" in text
    for words in (f"the highest {studies.METRIC}", "TPE, multivariate", "ASHA by epochs", "9a0c41d2be77f310"):
        assert words in text


def test_the_best_trial_stands_against_the_default_with_the_settings_that_differ(study: optuna.Study) -> None:
    text = Page(render(study)).text
    best, default = study.best_trial, study.trials[0]
    assert default.values is not None
    gain = best.values[0] - default.values[0]
    assert f"Default {default.values[0]:.4f}: {gain:.4f} better" in text
    differing = text[text.index("Settings that differ") : text.index("What the best score is worth")]
    for name in {**best.params, **default.params}:
        assert (name in differing) == (best.params.get(name) != default.params.get(name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"default": None}, "The default configuration was not among the trials."),
        ({"default": 5}, "Trial 5, the default configuration, has no score (failed)."),
        ({"default": 99}, "Trial 99, the default configuration, has no score."),
        ({"best": 0}, "Trial 0, the default configuration, is the best"),
        ({"best": None}, "No trial has finished with a score."),
    ],
)
def test_a_best_or_default_trial_that_is_not_there_is_said(
    study: optuna.Study, changes: dict[str, Any], words: str
) -> None:
    assert words in Page(render(study, **changes)).text


def test_until_the_test_patients_are_looked_at_the_page_says_how(study: optuna.Study) -> None:
    text = Page(render(study)).text
    assert "of the best of 25 trials (12 finished) is optimistic" in text
    assert "The test patients have not been looked at: --retrain-best" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "0.7577 0.7000 to 0.8100 1,212 It fell by 0.0423"),
        ({"low": None, "high": None}, "0.7577 \u2013 1,212 It fell by 0.0423"),
        ({"test": 0.81}, "It rose by 0.0100"),
    ],
)
def test_the_fall_from_validation_to_test_is_told(study: optuna.Study, changes: dict[str, Any], words: str) -> None:
    text = Page(render(study, test={**TEST, **changes})).text
    assert words in text
    assert "kappa per image" in text, "which need not be what was searched for"
    assert "have not been looked at" not in text


def test_all_trials_and_columns_are_in_the_table_the_best_first_and_those_without_a_score_last(
    study: optuna.Study,
) -> None:
    trials = studies.frame(study)
    trials.loc[trials["number"] == 3, "score"] = np.nan
    html = render(study, trials)
    expected = trials.sort_values("score", ascending=False)["number"].tolist()
    assert order(html) == expected
    assert expected[-1] == 3
    assert order(render(study, trials, objectives=[["loss", "minimize"]]))[0] == expected[-2]
    table = html[html.index('<table class="sortable">') :]
    assert table.count("<button") == len(trials.columns)
    assert table.count("<td") == 25 * (len(trials.columns) - 1)
    assert table.count("CUDA out of memory") == 2 * 3  # The text, and what the table is sorted by.
    assert "Trials 5, 13, 21: CUDA out of memory" in Page(html).text


def test_whole_numbers_that_pandas_made_floats_are_whole_numbers() -> None:
    trials = studies.frame(studies.make(2)).assign(**{"model.layers": [12345.0, np.nan], "flag": [True, None]})
    text = Page(render(studies.make(2), trials)).text
    assert " 12345 " in text
    assert " True " in text
    assert " nan " not in text.lower()


@pytest.mark.parametrize("trials", [0, 1])
def test_a_study_of_nothing_and_of_one_trial_has_a_page(trials: int) -> None:
    text = Page(render(studies.make(trials))).text
    assert ("The study has no trials." in text) == (trials == 0)
    assert ("is optimistic" in text) == (trials == 1)


def test_a_study_whose_trials_all_failed_says_why() -> None:
    study = optuna.create_study(direction="maximize")
    for _ in range(3):
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    trials = studies.frame(study).assign(reason=["out of memory", "out of memory", None])
    text = Page(render(study, trials)).text
    assert "Trials 0, 1: out of memory" in text
    assert "Trial 2: no reason known" in text
    assert "No trial has finished with a score." in text


def test_several_objectives_have_a_front_and_may_have_a_chosen_trial() -> None:
    study = studies.make_several(20)
    text = Page(render(study)).text
    assert "The search has no single best trial." in text
    for trial in study.best_trials:
        assert f"Trial {trial.number} {trial.values[0]:.4f} {trial.values[1]:.4f}" in text
    chosen = study.best_trials[0].number
    assert f"Trial {chosen} is the best." in Page(render(study, best=chosen)).text


def test_whatever_a_study_holds_is_text() -> None:
    study = studies.make(10, choices=(ODD, "b", "c"))
    trials = studies.frame(study).assign(reason=ODD, folder=ODD, **{ODD: ODD})
    test = {**TEST, "folder": ODD}
    named = [[ODD, "maximize"]]
    odd = dict.fromkeys(("title", "metric", "sampler", "pruner", "split_digest"), ODD)
    html = render(study, trials, **odd, notes=[ODD], objectives=named, test=test)
    plain = render(study)
    assert Page(html).tags.count("script") == Page(plain).tags.count("script")
    assert "alert(1)" not in "".join(re.findall(r"<script>.*?</script>", html, flags=re.DOTALL))
    assert Page(html).words.count(ODD) > 15


def test_equal_studies_give_equal_pages(study: optuna.Study) -> None:
    assert render(study) == render(studies.make(25))


# A browser -------------------------------------------------------------------------------------------------------


@needs_chromium
def test_the_page_opens_without_a_network_and_draws_every_figure(study: optuna.Study, tmp_path: Path) -> None:
    html = render(study, test=TEST)
    (tmp_path / "study.html").write_text(html, encoding="utf-8", newline="\n")
    seen = see(tmp_path, (tmp_path / "study.html").as_uri())
    assert seen.console == []
    assert seen.hosts == set()
    drawn = re.findall(r'<div class="plot js-plotly-plot".*?</svg>', seen.dom, flags=re.DOTALL)
    assert len(drawn) == html.count('class="plot"') == 9
    assert all('class="main-svg"' in one for one in drawn)


@needs_chromium
def test_nothing_on_the_page_can_reach_a_network_or_run_another_script(study: optuna.Study, tmp_path: Path) -> None:
    """The policy of the page holds even where escaping had failed; without it the same page does ask."""
    foreign = '<img src="http://elsewhere.test/x.png"><script>document.title = "foreign"</script></main>'
    html = render(study).replace("</main>", foreign)
    open_html = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", html)
    for name, text, asked in (("held", html, set()), ("free", open_html, {"elsewhere.test"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.html").write_text(text, encoding="utf-8", newline="\n")
        seen = see(tmp_path / name, (tmp_path / name / "study.html").as_uri())
        assert seen.hosts == asked
        assert ("<title>foreign</title>" in seen.dom) == bool(asked)
        assert any("Content Security Policy" in line for line in seen.console) == (not asked)


CLICKS = ("score", "optim.lr", "optim.lr", "model.arch", "sample.alpha", "sample.alpha")
SORT = """
addEventListener("load", () => {
  const buttons = [...document.querySelectorAll(".sortable button")];
  const rows = document.querySelector(".sortable").tBodies[0].rows;
  document.title = JSON.stringify(CLICKS.map(name => {
    buttons.find(button => button.textContent.toLowerCase() === name).click();
    return [...rows].map(row => Number(row.cells[0].textContent));
  }));
});
"""


@needs_chromium
def test_a_click_on_a_heading_sorts_the_other_way_at_the_second_and_leaves_empty_cells_last(
    study: optuna.Study, tmp_path: Path
) -> None:
    trials = studies.frame(study).set_index("number")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", render(study))
    html = html.replace("</body>", f"<script>{SORT.replace('CLICKS', json.dumps(CLICKS))}</script></body>")
    (tmp_path / "study.html").write_text(html, encoding="utf-8", newline="\n")
    dom = see(tmp_path, (tmp_path / "study.html").as_uri()).dom
    orders = json.loads(re.findall(r"<title>(.*?)</title>", dom)[0])
    for place, (column, numbers) in enumerate(zip(CLICKS, orders, strict=True)):
        shown = trials[column].reindex(numbers)
        assert sorted(numbers) == sorted(trials.index)
        assert shown.isna().tolist() == sorted(shown.isna())
        values = shown.dropna().tolist()
        assert values == sorted(values, reverse=column in CLICKS[place - 1 : place])
