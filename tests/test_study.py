"""The study: what it draws follows from its storage and the seed, and it outlives its driver."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from mammoray import study as studies
from mammoray.config import Config, TuneConfig
from mammoray.errors import ConfigError, StudyError
from mammoray.plain import replace
from mammoray.recipe import TrainConfig

BASE = Config(train=TrainConfig(epochs=9))


def draw(trial: optuna.Trial) -> dict[str, Any]:
    return {"lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True), "net": trial.suggest_categorical("net", ["a", "b"])}


def value(values: dict[str, Any]) -> float:
    return float(-abs(values["lr"] - 2e-3) + (values["net"] == "b"))


def opened(place: Path, config: TuneConfig) -> optuna.Study:
    return studies.open_study(str(place), config, BASE, "a")


def run(place: Path, config: TuneConfig, count: int, seed: int = 0, anew: bool = False) -> list[dict[str, Any]]:
    """Settings of all trials; ``anew`` opens the study again for each, as a new driver would."""
    study = opened(place, config)
    for _ in range(count):
        study = opened(place, config) if anew else study
        trial = studies.ask(study, config, seed)
        score = value(draw(trial))
        trial.set_user_attr("reason", "")
        study.tell(trial, [score] * len(config.objectives))
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("search", ["tpe", "random", "cmaes", "gp"])
def test_a_search_is_repeatable_and_goes_on_after_any_trial_as_if_it_had_not_been_interrupted(
    search: Any, tmp_path: Path
) -> None:
    config = TuneConfig(search=search)
    once = run(tmp_path / "a", config, 14)
    assert run(tmp_path / "b", config, 14, anew=True) == once
    assert run(tmp_path / "c", config, 14, seed=1) != once
    assert len({str(params) for params in once}) == 14, "no trial is drawn twice"


def test_tpe_finds_what_random_search_does_not(tmp_path: Path) -> None:
    def late(search: Any) -> float:
        return sum(value(params) for params in run(tmp_path / search, TuneConfig(search=search), 40)[-15:]) / 15

    assert late("tpe") > late("random") + 0.1


def test_the_default_and_known_points_come_first(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", TuneConfig())
    studies.enqueue(study, [{"lr": 5e-3}], {"lr": 3e-4, "net": "a"})
    drawn = [draw(studies.ask(study, TuneConfig(), 0)) for _ in range(3)]
    assert drawn[0] == {"lr": 3e-4, "net": "a"}
    assert drawn[1]["lr"] == 5e-3
    assert studies.default_number(study) == 0


def test_a_driver_that_is_lost_between_the_default_and_the_points_loses_none(tmp_path: Path) -> None:
    study, points, default = (
        opened(tmp_path / "s", TuneConfig()),
        [{"lr": 5e-3}, {"lr": 6e-3}],
        {"lr": 3e-4, "net": "a"},
    )
    studies.enqueue(study, points[:1], default)
    assert not studies.is_begun(study)
    drawn = opened(tmp_path / "drawn", TuneConfig())
    studies.ask(drawn, TuneConfig(), 0)
    assert studies.is_begun(drawn), "also that of an older version, which says nothing of it"
    studies.begin(study, points, default)
    assert studies.is_begun(opened(tmp_path / "s", TuneConfig()))
    assert [trial.system_attrs["fixed_params"] for trial in study.get_trials()] == [default, *points]


def test_trials_of_an_earlier_study_are_known_and_are_not_this_studys(tmp_path: Path) -> None:
    config = TuneConfig(search="random")
    run(tmp_path / "old", config, 12)
    study = opened(tmp_path / "new", config)
    assert studies.adopt(study, str(tmp_path / "old")) == 12
    assert len(study.get_trials()) == 12
    assert studies.finished(study) == []
    assert studies.best_number(study, config, BASE) is None
    assert studies.adopt(study, str(tmp_path / "old")) == 12
    assert len(study.get_trials()) == 12, "a driver that was lost in between may have done it before"
    with pytest.raises(StudyError, match="warm-start"):
        studies.adopt(study, str(tmp_path / "none"))
    with pytest.raises(StudyError, match="other objectives"):
        several = TuneConfig(objectives=("score", "gflops"), scheduler="none")
        studies.adopt(opened(tmp_path / "several", several), str(tmp_path / "old"))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"net": CategoricalDistribution(["b", "c"])}, "net: expected one of 'b', 'c', as now, found one of 'a', 'b'"),
        ({"lr": CategoricalDistribution([1e-3])}, "lr: expected one of 0.001, as now, found 0.0001 to 0.01, log"),
        ({"lr": FloatDistribution(1e-4, 1e-2)}, "lr: expected 0.0001 to 0.01, as now, found 0.0001 to 0.01, log"),
    ],
)
def test_an_earlier_study_with_other_choices_is_refused_with_both(
    parameters: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run(tmp_path / "old", TuneConfig(search="random"), 2)
    config = TuneConfig(warm_start=(str(tmp_path / "old"),))
    with pytest.raises(StudyError, match=said) as caught:
        studies.require_earlier(config, BASE, parameters)
    assert caught.value.where.startswith(f"--warm-start {tmp_path / 'old'}: ")


def test_an_earlier_study_with_wider_ranges_or_other_parameters_is_welcome(tmp_path: Path) -> None:
    run(tmp_path / "old", TuneConfig(search="random"), 2)
    config = TuneConfig(warm_start=(str(tmp_path / "old"),))
    studies.require_earlier(
        config, BASE, {"lr": FloatDistribution(1e-3, 1e-2, log=True), "new": FloatDistribution(0, 1)}
    )


def test_what_was_interrupted_is_gone_on_with_and_what_never_began_is_closed(tmp_path: Path) -> None:
    config = TuneConfig()
    study = opened(tmp_path / "s", config)
    trials = [studies.ask(study, config, 0) for _ in range(3)]
    for trial in trials:
        draw(trial)
    trials[0].set_user_attr("reason", "")
    study.tell(trials[0], 0.5)
    later = opened(tmp_path / "s", config)
    assert [t.number for t in studies.interrupted(later, lambda number: number == 2)] == [2]
    assert later.get_trials()[1].state == TrialState.FAIL
    assert [t.number for t in studies.finished(later)] == [0], "the one that never began is drawn anew"
    again = studies.again(later, 2)
    again.report(0.25, 1)
    later.tell(again, 0.75)
    assert later.get_trials()[2].value == 0.75


def test_the_default_and_a_point_that_never_began_come_again_and_the_reason_is_kept(tmp_path: Path) -> None:
    config = TuneConfig(search="random")
    points = [{"lr": 5e-3, "net": "b"}, {"lr": 6e-3, "net": "b"}]
    studies.enqueue(opened(tmp_path / "s", config), points, {"lr": 3e-4, "net": "a"})
    for lost in range(2):  # The default, and then the first point, by drivers that are killed at once.
        study = opened(tmp_path / "s", config)
        studies.ask(study, config, 0)
        assert studies.interrupted(opened(tmp_path / "s", config), lambda number: False) == []
        trial = opened(tmp_path / "s", config).get_trials()[lost]
        assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "the driver was lost before it began")
    study = opened(tmp_path / "s", config)
    assert studies.finished(study) == [], "they are no trials of those that were asked for"
    trials = [studies.ask(study, config, 0) for _ in range(3)]
    assert [draw(trial)["lr"] for trial in trials] == [6e-3, 3e-4, 5e-3], "each once more"
    assert [studies.is_default(trial) for trial in trials] == [False, True, False]
    assert studies.default_number(study) == trials[1].number
    assert "instead_of" not in draw(studies.ask(study, config, 0)) and len(study.get_trials()) == 6


def test_a_driver_that_is_lost_while_it_closes_a_trial_puts_its_point_down_once(tmp_path: Path) -> None:
    config = TuneConfig()
    study = opened(tmp_path / "s", config)
    studies.enqueue(study, [], {"lr": 3e-4, "net": "a"})
    studies._put_down_again(study, study.get_trials()[studies.ask(study, config, 0).number])
    studies.interrupted(opened(tmp_path / "s", config), lambda number: False)
    assert [t.state for t in opened(tmp_path / "s", config).get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_places_are_whole_when_a_search_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warm = ("old/study.journal#mine", "sqlite:///old.db", "postgresql://host/db")
    given = TuneConfig(points=Path("known.toml"), warm_start=warm, study_storage="sqlite+pysqlite:///new.db")
    whole = studies.absolute(given)
    monkeypatch.chdir("/")
    assert whole.points == tmp_path / "known.toml"
    assert whole.warm_start == (f"{tmp_path}/old/study.journal#mine", f"sqlite:///{tmp_path}/old.db", warm[2])
    assert whole.study_storage == f"sqlite+pysqlite:///{tmp_path}/new.db"
    assert studies.absolute(whole) == whole
    assert studies.absolute(TuneConfig()) == TuneConfig()


class TestPruners:
    """The pruner sees values as the trials report them; the storage remembers them for the next driver."""

    def survivors(self, place: Path, config: TuneConfig, values: list[float], epochs: int = 9) -> list[int]:
        """Numbers of the trials that run to the end, each reporting its value at every epoch."""
        left = []
        for score in values:
            study = opened(place, config)
            trial = studies.ask(study, config, 0)
            for epoch in range(1, epochs + 1):
                trial.report(score, epoch)
                if trial.should_prune():
                    study.tell(trial, state=TrialState.PRUNED)
                    break
            else:
                study.tell(trial, score)
                left.append(trial.number)
        return left

    SCORES = (0.5, 0.1, 0.2, 0.9, 0.3, 0.4, 0.6, 0.95, 0.05)

    def test_asha_lets_the_best_third_go_on(self, tmp_path: Path) -> None:
        left = self.survivors(tmp_path / "s", TuneConfig(scheduler="asha", grace=1), list(self.SCORES))
        assert left == [0, 3, 7]

    def test_the_median_ends_those_below_it_and_none_ends_none(self, tmp_path: Path) -> None:
        left = self.survivors(tmp_path / "s", TuneConfig(scheduler="median"), list(self.SCORES))
        assert {3, 7} <= set(left) and 8 not in left
        assert len(self.survivors(tmp_path / "n", TuneConfig(scheduler="none"), list(self.SCORES))) == 9

    def test_hyperband_has_brackets(self, tmp_path: Path) -> None:
        left = self.survivors(tmp_path / "s", TuneConfig(scheduler="hyperband", grace=1), [*self.SCORES] * 3)
        assert 3 <= len(left) < 27

    def test_nothing_ends_within_its_grace(self, tmp_path: Path) -> None:
        config = TuneConfig(scheduler="asha", grace=9)
        assert len(self.survivors(tmp_path / "s", config, list(self.SCORES), epochs=8)) == 9


def test_a_loss_is_minimised(tmp_path: Path) -> None:
    base = replace(BASE, train=replace(BASE.train, monitor="loss"))
    study = studies.open_study(str(tmp_path / "s"), TuneConfig(), base, "a")
    assert [d.name for d in study.directions] == ["MINIMIZE"]
    for score in (0.4, 0.2, 0.3):
        study.tell(studies.ask(study, TuneConfig(), 0), score)
    assert studies.best_number(study, TuneConfig(), base) == 1
    with pytest.raises(StudyError, match="maximize"):
        studies.open_study(str(tmp_path / "s"), TuneConfig(), BASE, "a")


def test_a_database_is_a_storage(tmp_path: Path) -> None:
    config = TuneConfig()
    study = studies.open_study(f"sqlite:///{tmp_path}/s.db", config, BASE, "a")
    study.tell(studies.ask(study, config, 0), 0.5)
    assert len(studies.open_study(f"sqlite:///{tmp_path}/s.db", config, BASE, "a").trials) == 1
    with pytest.raises(StudyError) as caught:
        studies.open_study(f"sqlite:///{tmp_path}/none/s.db", config, BASE, "a")
    assert "OperationalError" in str(caught.value)


def test_two_searches_do_not_share_a_study_that_neither_knows_of(tmp_path: Path) -> None:
    place, config = f"sqlite:///{tmp_path}/s.db", TuneConfig()
    studies.require_own(place, config, "a")  # There is no such study yet.
    first = studies.open_study(place, config, BASE, "a")
    running = studies.ask(first, config, 0)
    for opened_by_another in (
        lambda: studies.require_own(place, config, "b"),
        lambda: studies.open_study(place, config, BASE, "b"),
    ):
        with pytest.raises(StudyError, match="another --study-name"):
            opened_by_another()
    studies.require_own(place, config, "a")
    assert len(studies.open_study(place, config, BASE, "a").trials) == 1
    assert studies.open_study(place, replace(config, study_name="mine"), BASE, "b").trials == []
    first.tell(running, 0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_trials": 0},
        {"folds_per_trial": 2},
        {"objectives": ("gflops",)},
        {"objectives": ("score", "gflops")},
        {"objectives": ("score", "gflops"), "scheduler": "none", "search": "cmaes"},
        {"reduction": 1},
        {"study_storage": "postgresql://me:sesame@host/db"},
    ],
)
def test_settings_that_cannot_be_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TuneConfig(**settings)
