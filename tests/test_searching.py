"""Between Ray Tune and the study: which trials go on, and how each is told."""

import itertools
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray import tune

from mammoray import study as studies
from mammoray.config import Config, TuneConfig
from mammoray.errors import ConfigError
from mammoray.scale import Scale
from mammoray.searching import StudyScheduler, StudySearch, Trials
from mammoray.trial import Job, Trial

BASE = Config()


def job(trial: optuna.Trial) -> Job:
    trial.suggest_float("lr", 1e-4, 1e-2)
    where = Path("trials") / str(trial.number)
    return Job(number=trial.number, folder=where, rows="", folds=1, split_digest="", scale=Scale())


def begun(folder: Path, begin: Any = job, left: int = 4, **settings: Any) -> Trials:
    config = TuneConfig(**{"search": "random", "scheduler": "none", **settings})
    study = studies.open_study(str(folder / "study.journal"), config, BASE, "a")
    studies.enqueue(study, [], {"lr": 1e-3})
    return Trials(study, config, BASE, begin, [], left, lambda line: None)


def message(value: float | None, step: int, collapse: str = "") -> dict[str, Any]:
    return {"value": value, "step": step, "epoch": step, "epoch_seconds": 2.0, "collapse": collapse, "done": False}


def test_a_collapsed_trial_is_ended_with_the_reason_and_the_default_is_not(tmp_path: Path) -> None:
    trials = begun(tmp_path)
    default, other = trials.next(), trials.next()
    assert default and other
    for step, collapse in enumerate(["", "only class B", "", "only class B", "only class B"], 1):
        assert trials.hear(default.number, message(0.0, step, collapse))
        assert trials.hear(other.number, message(0.0, step, collapse)) == (step < 5), "two epochs in a row"
    trials.end(other.number, died=False)
    trials.end(default.number, died=False)
    first, second = trials.study.get_trials()
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert second.user_attrs["reason"] == "collapsed in 2 epochs in a row: only class B"


def test_collapse_ends_nothing_where_it_is_not_to(tmp_path: Path) -> None:
    trials = begun(tmp_path, prune_collapsed=False)
    for _ in range(2):
        one = trials.next()
        assert one and all(trials.hear(one.number, message(0.0, step, "only class B")) for step in range(1, 9))


def test_scores_that_fall_behind_end_a_trial_but_never_the_default(tmp_path: Path) -> None:
    trials = begun(tmp_path, scheduler="asha", grace=1, reduction=2)
    default, good, bad = (trials.next() for _ in range(3))
    assert default and good and bad
    assert trials.hear(good.number, message(0.9, 1))
    assert not trials.hear(bad.number, message(0.1, 1))
    assert trials.hear(default.number, message(0.0, 1))


def test_a_trial_that_cannot_begin_is_told_as_failed_and_the_next_is_drawn(tmp_path: Path) -> None:
    def begin(trial: optuna.Trial) -> Job:
        if trial.number < 2:
            raise ConfigError("--arch", "a network", "none", "Correct it.")
        return job(trial)

    trials = begun(tmp_path, begin, left=3)
    search = StudySearch(trials)
    given = search.suggest("x")
    assert isinstance(given, dict)
    assert given["job"].number == 2
    assert [t.state.name for t in trials.study.get_trials()] == ["FAIL", "FAIL", "RUNNING"]
    assert "expected a network" in trials.study.get_trials()[0].user_attrs["reason"]
    assert search.suggest("y") == StudySearch.FINISHED


@pytest.mark.parametrize(
    ("messages", "died", "reason"),
    [
        ([message(0.5, 1)], True, "died"),
        ([message(None, 1)], False, "undefined"),
        ([message(0.5, 1), {"failed": "TrainError: a finite loss", "done": True}], False, "a finite loss"),
    ],
)
def test_what_goes_wrong_is_a_failed_trial_with_its_reason(
    messages: list[dict[str, Any]], died: bool, reason: str, tmp_path: Path
) -> None:
    trials = begun(tmp_path)
    one = trials.next()
    assert one
    for each in messages:
        trials.hear(one.number, each)
    trials.end(one.number, died)
    told = trials.study.get_trials()[0]
    assert told.state == TrialState.FAIL
    assert reason in told.user_attrs["reason"]


@pytest.mark.parametrize(
    ("last", "state", "reason"),
    [
        ({"failed": "TrainError: a finite loss", "done": True}, TrialState.FAIL, "TrainError: a finite loss"),
        ({**message(0.5, 4), "finished": True, "done": True}, TrialState.COMPLETE, ""),
    ],
)
def test_a_trial_whose_last_message_is_its_only_one_is_told_by_it(
    last: dict[str, Any], state: TrialState, reason: str, tmp_path: Path
) -> None:
    trials = begun(tmp_path)
    search = StudySearch(trials)
    search.suggest("x")
    search.on_trial_complete("x", last)
    told = trials.study.get_trials()[0]
    assert (told.state, told.user_attrs["reason"]) == (state, reason)


def test_several_objectives_are_told_in_their_order(tmp_path: Path) -> None:
    trials = begun(tmp_path, objectives=("seconds", "score"))
    one = trials.next()
    assert one
    trials.hear(one.number, {**message(0.5, 1), "done": True})
    trials.end(one.number, died=False)
    assert trials.study.get_trials()[0].values == [2.0, 0.5]


class Endless(Trial):
    """Trains no network, but says one collapsed epoch after the other, until it is told to stop."""

    def _work(self, job: Job) -> None:
        messages, stop = self.messages, self.stop_asked
        for step in itertools.count(1):
            messages.put(message(0.5, step, "only class B"))
            if stop.wait(0.05):
                break
        job.folder.touch()


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_is_ended_early_stops_before_the_next_one_is_drawn(tmp_path: Path) -> None:
    """The next one's images may be decoded on the CPUs that it would else still hold."""
    stopped = list[bool]()

    def begin(trial: optuna.Trial) -> Job:
        if trial.number:
            end = time.monotonic() + 20
            while not (before := (tmp_path / str(trial.number - 1)).exists()) and time.monotonic() < end:
                time.sleep(0.05)
            stopped.append(before)
        return Job(
            number=trial.number, folder=tmp_path / str(trial.number), rows="", folds=1, split_digest="", scale=Scale()
        )

    config = TuneConfig(search="random", scheduler="none", grace=1)
    study = studies.open_study(str(tmp_path / "study.journal"), config, BASE, "a")
    trials = Trials(study, config, BASE, begin, [], 3, lambda line: None)
    tune.Tuner(
        Endless,
        tune_config=tune.TuneConfig(
            search_alg=StudySearch(trials),
            scheduler=StudyScheduler(trials),
            num_samples=3,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "ray"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        ),
    ).fit()
    assert stopped == [True, True]
    assert [t.state for t in study.get_trials()] == [TrialState.PRUNED] * 3
