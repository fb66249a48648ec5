"""Populations: who goes on from whom, with which settings."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from mammoray import plain, population
from mammoray import space as spaces
from mammoray import study as studies
from mammoray.changes import at
from mammoray.config import Config, TuneConfig
from mammoray.draws import Values
from mammoray.errors import ConfigError
from mammoray.population import GENERATION, MEMBER, PARENT, Population
from mammoray.scale import Scale
from mammoray.searching import Trials
from mammoray.trial import Job

BASE = plain.replace(Config(), train=plain.replace(Config().train, epochs=6))
SEARCH = TuneConfig(num_trials=24, grace=2, scheduler="pbt", search="random")
DEFAULT = {"optim.lr": 3e-4, "sample.sampler": "natural"}


def draw(trial: optuna.Trial) -> Values:
    drawn: Values = {"optim.lr": trial.suggest_float("optim.lr", 1e-5, 1e-2, log=True)}
    drawn["sample.sampler"] = trial.suggest_categorical("sample.sampler", ["natural", "balanced"])
    return drawn


class Run:
    """A search whose trials need no training: high learning rates are good, and one trial fails."""

    def __init__(self, folder: Path, failing: tuple[int, ...] = ()) -> None:
        self.place, self.failing = str(folder / "study.journal"), failing
        self.settings: dict[int, Config] = {}
        self.open()
        studies.enqueue(self.study, [], DEFAULT)

    def open(self, done: int = 0) -> None:
        """As a new driver."""
        self.study = studies.open_study(self.place, SEARCH, BASE, "a")
        own = population.shape(SEARCH, BASE)
        self.population = Population(self.study, own, BASE.seed)
        left = own.trials - done
        self.trials = Trials(self.study, SEARCH, BASE, self.begin, [], left, lambda line: None, self.population)

    def begin(self, trial: optuna.Trial) -> Job:
        parent = trial.user_attrs[PARENT]
        own = spaces.apply(BASE, draw(trial))
        self.settings[trial.number] = self.population.settings(trial, own, self.settings.get(parent))
        where = Path(str(trial.number))
        return Job(number=trial.number, folder=where, rows="", folds=1, split_digest="", scale=Scale())

    def end(self, number: int) -> None:
        value = self.study.get_trials()[number].params["optim.lr"]
        broken: dict[str, Any] = {"failed": "broken"} if number in self.failing else {}
        message = {"value": value, "step": 1, "epoch": 1, "epoch_seconds": 1.0, "collapse": "", "done": True}
        self.trials.hear(number, {**message, **broken})
        self.trials.end(number, died=False)

    def all(self, most: int = 1000) -> None:
        for _ in range(most):
            job = self.trials.next()
            if job is None:
                return
            self.end(job.number)


def facts(run: Run) -> list[tuple[Any, ...]]:
    trials = run.study.get_trials()
    return [(t.user_attrs[GENERATION], t.user_attrs[MEMBER], t.user_attrs[PARENT], t.params) for t in trials]


def test_the_worst_go_on_from_the_best_with_changed_numbers_and_the_others_from_themselves(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.all()
    trials = run.study.get_trials()
    assert [t.user_attrs[GENERATION] for t in trials] == [0] * 8 + [1] * 8 + [2] * 8
    for child in trials[8:]:
        before = [t for t in trials if t.user_attrs[GENERATION] == child.user_attrs[GENERATION] - 1]
        ranked = sorted(before, key=lambda t: -t.params["optim.lr"])
        own = next(t for t in before if t.user_attrs[MEMBER] == child.user_attrs[MEMBER])
        parent = trials[child.user_attrs[PARENT]]
        if own in ranked[-2:] and not studies.is_default(own):
            assert parent in ranked[:2]
            factor = child.params["optim.lr"] / parent.params["optim.lr"]
            assert factor == pytest.approx(0.8) or factor == pytest.approx(1.2) or child.params["optim.lr"] == 1e-2
        else:
            assert parent == own and child.params == parent.params
        assert child.params["sample.sampler"] == parent.params["sample.sampler"]


def test_the_settings_of_a_trial_say_the_whole_way_to_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.all()
    trials = run.study.get_trials()
    for trial in trials:
        own, generation = run.settings[trial.number], trial.user_attrs[GENERATION]
        assert own.train.stop_epoch == 2 * (generation + 1)
        lineage = trial
        for epoch in range(own.train.stop_epoch, 0, -1):
            if epoch <= 2 * lineage.user_attrs[GENERATION]:
                lineage = trials[lineage.user_attrs[PARENT]]
            assert at(own, epoch).optim.lr == lineage.params["optim.lr"]


def test_the_default_trains_on_as_it_is_to_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.all()
    kept = [t for t in run.study.get_trials() if studies.is_default(t)]
    assert [t.user_attrs[GENERATION] for t in kept] == [0, 1, 2]
    assert all(t.params == DEFAULT for t in kept)
    assert studies.default_number(run.study) == kept[-1].number


def test_a_generation_waits_for_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    jobs = [run.trials.next() for _ in range(9)]
    assert jobs[8] is None and run.trials.left == 16
    for job in jobs[:8]:
        assert job
        run.end(job.number)
    assert run.trials.next() is not None


def test_a_member_that_fails_is_replaced_and_a_population_that_dies_out_ends(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    run = Run(tmp_path / "one", failing=(3,))
    run.all()
    trials = run.study.get_trials()
    assert len(trials) == 24
    assert trials[11].user_attrs[MEMBER] == 3 and trials[11].user_attrs[PARENT] != 3
    (tmp_path / "all").mkdir()
    run = Run(tmp_path / "all", failing=tuple(range(8)))
    run.all()
    assert len(run.study.get_trials()) == 8 and run.trials.left == 0


@pytest.mark.parametrize("stop", [3, 8, 13])
def test_a_driver_that_is_killed_leads_to_the_same_population(tmp_path: Path, stop: int) -> None:
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole")
    whole.all()
    (tmp_path / "broken").mkdir()
    run = Run(tmp_path / "broken")
    run.all(most=stop)
    run.open(done=stop)
    run.all()
    assert facts(run) == facts(whole)


def test_what_cannot_be_a_population_is_an_error() -> None:
    own = population.shape(SEARCH, BASE)
    assert (own.members, own.generations, own.trials) == (8, 3, 24)
    with pytest.raises(ConfigError, match="4 members"):
        population.shape(plain.replace(SEARCH, num_trials=11), BASE)
    with pytest.raises(ConfigError, match="2 generations"):
        population.shape(plain.replace(SEARCH, grace=6), BASE)
    with pytest.raises(ConfigError, match="draws one of"):
        population.check(lambda trial: {"a": trial.suggest_int("model.channels", 1, 3)}, BASE, own, 1)
    with pytest.raises(ConfigError, match="at most 8 points"):
        population.check(draw, BASE, own, 9)
    with pytest.raises(ConfigError, match="--patience with"):
        population.check(draw, plain.replace(BASE, train=plain.replace(BASE.train, patience=3)), own, 1)
