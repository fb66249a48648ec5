"""The Optuna study of a search: its storage, which is the truth about all trials, its samplers, pruners and objectives.

Everything that a search decides follows from the storage and the seed: a trial's settings are drawn with a generator of
its own, from (seed, number). So a search whose driver was killed goes on to the trials that it would have made.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mammoray.config import Config, TuneConfig
from mammoray.errors import StudyError
from mammoray.plain import replace
from mammoray.space import Distributions, shown

JOURNAL = "study.journal"
NAME = "mammoray"
Direction = Literal["minimize", "maximize"]
_DEFAULT = "default"  # User attribute of the trial that is the settings of the search themselves.
_ELSEWHERE = "from"  # User attribute of a trial of another study.
_NEVER = "never_began"  # User attribute of a trial that was drawn, and whose driver was then lost.
_INSTEAD = "instead_of"  # User attribute of the trial that takes its place: its number.
_NUMBER = "from_number"  # User attribute of a trial of another study: its number there.
_BEGUN = "begun"  # User attribute of the study: it has been given all that is known beforehand.
_SEARCH = "search"  # User attribute of the study: whose it is.
_SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    # Both draw categories and conditional parameters by the independent sampler.
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(
        seed=seed, independent_sampler=optuna.samplers.TPESampler(seed=seed), warn_independent_sampling=False
    ),
    "gp": lambda seed: optuna.samplers.GPSampler(
        seed=seed, independent_sampler=optuna.samplers.TPESampler(seed=seed), warn_independent_sampling=False
    ),
}


def open_study(place: str, config: TuneConfig, base: Config, search: str) -> optuna.Study:
    """The study in a storage; a new one, which is this search's from now on, where there is none.

    Parameters
    ----------
    place : str
        A journal file, or the URL of a database.
    config, base
        Settings of the search and of what it does not draw.
    search : str
        Which search it is, of all that may share the storage; as of :func:`mammoray.marker.search`.

    Raises
    ------
    StudyError
        The storage cannot be opened, or holds another kind of study, or that of another search.
    """
    directions = [direction for _, direction in objectives(config, base)]
    try:
        study = optuna.create_study(
            study_name=config.study_name, storage=storage(place), directions=directions, load_if_exists=True
        )
        _require_own(study, place, search)
        if _SEARCH not in study.user_attrs:
            study.set_user_attr(_SEARCH, search)
    except StudyError:
        raise
    except Exception as error:  # Every database has its own.
        raise StudyError(_shown(place), "a storage that Optuna can open", _kind(error), "Check it.") from error
    if [d.name.lower() for d in study.directions] != directions:
        found = ", ".join(d.name.lower() for d in study.directions)
        raise StudyError(_shown(place), f"a study to {', '.join(directions)}", found, "Choose another --study-name.")
    study.pruner = pruner(config, base)
    return study


def absolute(config: TuneConfig) -> TuneConfig:
    """The same search for a process with another working folder: its files by their whole paths."""
    return replace(
        config,
        points=config.points and config.points.absolute(),
        warm_start=tuple(map(_whole, config.warm_start)),
        study_storage=config.study_storage and _whole(config.study_storage),
    )


def _whole(place: str) -> str:
    """A journal's path, or that in the URL of an SQLite file, from the root on.

    Examples
    --------
    >>> _whole("postgresql://host/db"), _whole("sqlite:////shared/study.db")
    ('postgresql://host/db', 'sqlite:////shared/study.db')
    >>> _whole("sqlite:///study.db") == f"sqlite:///{Path('study.db').absolute()}"
    True
    """
    found = re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!file:|:memory:)(.+)", place)
    if found:
        return found[1] + str(Path(found[2]).absolute())
    return place if "://" in place else str(Path(place).absolute())


def require_own(place: str, config: TuneConfig, search: str) -> None:
    """Refuse the study of another search, before anything is written.

    Raises
    ------
    StudyError
        As of :func:`open_study`.
    """
    try:
        study = optuna.load_study(study_name=config.study_name, storage=storage(place))
    except KeyError:  # There is none of this name.
        return
    except Exception as error:
        raise StudyError(_shown(place), "a storage that Optuna can open", _kind(error), "Check it.") from error
    _require_own(study, place, search)


def _require_own(study: optuna.Study, place: str, search: str) -> None:
    """Two searches in one study would end each other's trials."""
    if (held := study.user_attrs.get(_SEARCH, search)) != search:
        remedy = "Choose another --study-name, or go on in the folder of that search."
        where = f"the study {study.study_name} in {_shown(place)}"
        raise StudyError(where, f"a new study, or that of this search ({search})", f"another's ({held})", remedy)


def storage(place: str) -> optuna.storages.BaseStorage:
    """The storage of a journal file, or of a database by its URL."""
    if "://" in place:
        return optuna.storages.RDBStorage(place)
    return optuna.storages.JournalStorage(JournalFileBackend(place))


def _shown(place: str) -> str:
    """Without a password."""
    head, at, tail = place.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at and "://" in head else place


def _kind(error: Exception) -> str:
    return type(error).__name__  # Its text may hold the URL, with a password.


def objectives(config: TuneConfig, base: Config) -> list[tuple[str, Direction]]:
    """Name and direction of each objective."""
    direction: Direction = "minimize" if base.train.monitor == "loss" else "maximize"
    monitor = (f"val_{base.train.monitor}", direction)
    return [monitor if name == "score" else (name, "minimize") for name in config.objectives]


def pruner(config: TuneConfig, base: Config) -> optuna.pruners.BasePruner:
    """What ends trials early, by their values so far; in steps of epochs, or of folds."""
    most = config.folds_per_trial if config.folds_per_trial > 1 else base.train.epochs
    grace = min(config.grace, most)
    if config.scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=config.reduction)
    if config.scheduler == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=grace, max_resource=most, reduction_factor=config.reduction)
    if config.scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=grace)
    return optuna.pruners.NopPruner()


def ask(study: optuna.Study, config: TuneConfig, seed: int) -> optuna.Trial:
    """A new trial, that draws by a generator of its own."""
    trials = study.get_trials(deepcopy=False)
    number = next((t.number for t in trials if t.state == TrialState.WAITING), len(trials))
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = _SAMPLERS[config.search](own)
    return study.ask()


def again(study: optuna.Study, number: int) -> optuna.Trial:
    """A trial that was begun, to go on with."""
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def enqueue(
    study: optuna.Study,
    points: list[dict[str, Any]],
    default: dict[str, Any] | None,
    attributes: dict[str, Any] | None = None,
) -> None:
    """Make known points the next trials of a study; the default, where there is one, before all others."""
    if default is not None:
        study.enqueue_trial(default, user_attrs={**(attributes or {}), _DEFAULT: True})
    for point in points:
        study.enqueue_trial(point, user_attrs=attributes)


def is_begun(study: optuna.Study) -> bool:
    """Whether it has been given all that is known beforehand, by :func:`begin`; no trial is drawn before that."""
    own = (trial for trial in study.get_trials(deepcopy=False) if not is_foreign(trial))
    return _BEGUN in study.user_attrs or any(trial.state != TrialState.WAITING for trial in own)


def begin(study: optuna.Study, points: list[dict[str, Any]], default: dict[str, Any] | None) -> None:
    """As :func:`enqueue`, what a driver that was lost in the middle of it has not given the study yet."""
    held = [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False)]
    enqueue(study, [point for point in points if point not in held], None if default in held else default)
    study.set_user_attr(_BEGUN, True)


def adopt(study: optuna.Study, place: str) -> int:
    """Let the sampler know the finished trials of an earlier search, each once; returns how many there are.

    Raises
    ------
    StudyError
        As of :func:`earlier`.
    """
    known = earlier(place, [direction.name.lower() for direction in study.directions])
    shown = _shown(place)
    held = {
        (t.user_attrs[_ELSEWHERE], t.user_attrs[_NUMBER]) for t in study.get_trials(deepcopy=False) if is_foreign(t)
    }
    study.add_trials([_foreign(trial, shown) for trial in known if (shown, trial.number) not in held])
    return len(known)


def earlier(place: str, directions: Sequence[str]) -> list[FrozenTrial]:
    """The finished trials of an earlier search.

    Raises
    ------
    StudyError
        There are none, or they have other objectives.
    """
    path, _, name = place.partition("#")
    try:
        other = optuna.load_study(study_name=name or NAME, storage=storage(path))
    except Exception as error:
        expected = "a journal file or database URL of a study (#NAME behind it)"
        raise StudyError(f"--warm-start {_shown(path)}", expected, _kind(error), "Check it.") from error
    known = [trial for trial in other.get_trials() if trial.state == TrialState.COMPLETE and not is_foreign(trial)]
    if not known or [direction.name.lower() for direction in other.directions] != list(directions):
        found = "none" if not known else "trials of other objectives"
        remedy = "Choose another study."
        raise StudyError(f"--warm-start {_shown(path)}", "finished trials of the same objectives", found, remedy)
    return known


def require_earlier(config: TuneConfig, base: Config, parameters: Distributions) -> None:
    """Check all earlier searches, before anything is made.

    Raises
    ------
    StudyError
        As of :func:`earlier`, or the sampler cannot have their parameters beside those of the space.
    """
    for place in config.warm_start:
        trials = earlier(place, [direction for _, direction in objectives(config, base)])
        parameters = require_same(trials, parameters, f"--warm-start {_shown(place)}")


def require_same(trials: list[FrozenTrial], parameters: Distributions, where: str) -> Distributions:
    """Check that trials drew as a space draws: Optuna knows one list of choices for a parameter of a study.

    Returns
    -------
    dict
        The parameters of both.

    Raises
    ------
    StudyError
    """
    known = dict(parameters)
    for trial in trials:
        for name, theirs in trial.distributions.items():
            ours = known.setdefault(name, theirs)
            try:
                check_distribution_compatibility(ours, theirs)
            except ValueError as error:
                remedy = "Draw it in the space as that study did, or choose another study."
                raise StudyError(f"{where}: {name}", f"{shown(ours)}, as now", shown(theirs), remedy) from error
    return known


def _foreign(trial: FrozenTrial, place: str) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        params=trial.params,
        distributions=trial.distributions,
        values=trial.values,
        user_attrs={_ELSEWHERE: place, _NUMBER: trial.number},
    )


def is_foreign(trial: FrozenTrial) -> bool:
    """Whether it is known from another study, and was not run in this one."""
    return _ELSEWHERE in trial.user_attrs


def has_ended(trial: FrozenTrial) -> bool:
    """Whether it is complete, was ended early, or failed for a reason of its own."""
    return trial.state.is_finished() and "reason" in trial.user_attrs and not _never_began(trial)


def _never_began(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get(_NEVER))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The study's own trials that have ended, see :func:`has_ended`."""
    return [trial for trial in study.get_trials(deepcopy=False) if not is_foreign(trial) and has_ended(trial)]


def interrupted(study: optuna.Study, is_begun: Callable[[int], bool]) -> list[FrozenTrial]:
    """Trials to go on with; those that were drawn and never begun are closed, and known points put down again.

    Parameters
    ----------
    is_begun : callable
        Whether the trial with this number has written its settings down.
    """
    running = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
    for trial in running:
        if not is_begun(trial.number):
            _put_down_again(study, trial)
            for name, value in {_NEVER: True, "reason": "the driver was lost before it began"}.items():
                study._storage.set_trial_user_attr(trial._trial_id, name, value)
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial in running if is_begun(trial.number)]


def _put_down_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """A default or a point comes once more; once, also where this driver is lost before the trial is closed."""
    point = trial.system_attrs.get("fixed_params")
    done = any(other.user_attrs.get(_INSTEAD) == trial.number for other in study.get_trials(deepcopy=False))
    if point is not None and not done:
        study.enqueue_trial(point, user_attrs={**trial.user_attrs, _INSTEAD: trial.number})


def is_default(trial: FrozenTrial | optuna.Trial) -> bool:
    """Whether its settings are those of the search themselves."""
    return bool(trial.user_attrs.get(_DEFAULT))


def default_number(study: optuna.Study) -> int | None:
    """Number of the trial that is the settings of the search themselves; of a population, its last generation yet."""
    every = [t for t in study.get_trials(deepcopy=False) if is_default(t) and not _never_began(t)]
    done = [t.number for t in every if t.state == TrialState.COMPLETE]
    return done[-1] if done else every[0].number if every else None


def best_number(study: optuna.Study, config: TuneConfig, base: Config) -> int | None:
    """The trial with the best score, of those that were run to their end."""
    place = config.objectives.index("score")
    sign = -1 if objectives(config, base)[place][1] == "minimize" else 1
    done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE and not is_foreign(t)]
    return max(done, key=lambda t: (sign * t.values[place], -t.number)).number if done else None
