"""A search space: which settings a trial draws, in a TOML file like config.toml, or by a Python function.

In TOML, a setting has a list of choices, or a range; ``when`` draws it only beside certain values of other settings::

    [optim]
    lr = {low = 1e-4, high = 1e-2, log = true}

    [sample]
    sampler = ["natural", "balanced", "effective"]
    alpha = {low = 0.25, high = 1.0, when = {sampler = "balanced"}}

    [decode]
    "height, width" = [[256, 192], [512, 384]]

A Python function (``FILE.py`` or ``FILE.py:NAME``, by default ``space``) gets an Optuna trial and draws settings by
their dotted names, ``trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)``; what it returns, a dictionary or None,
is set besides.
"""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from mammoray import plain
from mammoray.config import Config
from mammoray.draws import Space, Values, encoded, flat, read_toml, settings, toml_space
from mammoray.errors import ConfigError
from mammoray.idle import idle

Distributions = dict[str, BaseDistribution]
"""Parameters as Optuna draws them, by its names."""
DEFAULT = Path(__file__).with_name("default_space.toml")
"""The space that is shipped."""
_LOOKS = 200  # Random trials by which a space is tried before it is used.
_LOOKS_BESIDE = 50  # The same for each known point.
_DRAWN = ("decode", "sample", "augment", "model", "loss", "optim", "speed")
_DRAWN_TOO = ("train.epochs", "train.patience", "train.min_delta")
"""What a trial takes from its own settings, by section and by name: everything else is the search's, alike for all its
trials (which patients, files and classes) or what they are compared by (monitor, the signs of a collapse)."""


def load(place: str, base: Config) -> Space:
    """Read a space and try it.

    Parameters
    ----------
    place : str
        A TOML file, or a Python file, with the name of a function behind a colon.
    base : Config
        The settings of what is not drawn.

    Raises
    ------
    ConfigError
        There is no such space, or it draws a setting that does not exist, that is not a trial's own, that cannot have
        such a value, or that would have no effect beside the others.
    """
    file, name = _file(place)
    space = _python(file, name) if file.suffix == ".py" else toml_space(file, base)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for drawn, _ in _tried(space, place):
        apply(base, drawn, place)
    return space


def parameters(space: Space) -> Distributions:
    """What a space that was loaded draws, by Optuna's names: all that it draws in some random trials."""
    return {name: kind for _, kinds in _tried(space, "the search space") for name, kind in kinds.items()}


def values(space: Space, trial: optuna.Trial, where: str = "the search space") -> Values:
    """Draw the settings of a trial.

    Raises
    ------
    ConfigError
        A parameter has other choices, or is of another kind, than in the trials before.
    """
    try:
        return space(trial)
    except ValueError as error:
        expected = "parameters with the same choices in every trial"
        raise ConfigError(where, expected, str(error), "Give those that differ names of their own.") from error


def _tried(
    space: Space, where: str, point: Values | None = None, looks: int = _LOOKS
) -> list[tuple[Values, Distributions]]:
    """What random trials draw beside a point, and how."""
    study = optuna.create_study(sampler=_Beside(point or {}))
    trials = [study.ask() for _ in range(looks)]
    return [(values(space, trial, where), trial.distributions) for trial in trials]


class _Beside(optuna.samplers.RandomSampler):
    """Draws by chance what a point does not have."""

    def __init__(self, point: Values) -> None:
        super().__init__(seed=0)
        self.point = point

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if param_name in self.point and _fits(self.point[param_name], param_distribution):
            return self.point[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


def _fits(value: Any, kind: BaseDistribution) -> bool:
    """Whether a parameter can have a value."""
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        return value in kind.choices
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and kind._contains(kind.to_internal_repr(value))


def _file(place: str) -> tuple[Path, str]:
    """File and, of a Python file, the name of the function."""
    if place == "default":
        return DEFAULT, ""
    file, _, name = place.rpartition(":") if ".py:" in place else (place, "", "space")
    if not Path(file).is_file():
        raise ConfigError("--space", "a TOML or Python file of a search space", f"no file {file}", "Check the path.")
    return Path(file), name


def defaults(space: Space, base: Config) -> tuple[Values, list[str]]:
    """The parameters of the trial that is the base itself, and those for which the space lacks the base's value."""
    sampler = _Base(settings(base))
    trial = optuna.create_study(sampler=sampler).ask()
    space(trial)
    for name, value in trial.params.items():  # Optuna asks no sampler where there is one value only.
        if trial.distributions[name].single() and sampler.wanted(name) != value:
            sampler.missing.append(name)
    return {name: value for name, value in trial.params.items() if name not in sampler.missing}, sampler.missing


class _Base(optuna.samplers.BaseSampler):
    """Draws what the base has, where it can."""

    def __init__(self, known: Values) -> None:
        self.known, self.missing = known, list[str]()

    def wanted(self, param_name: str) -> Any:
        """The base's value of a parameter, as a trial has it."""
        values = [self.known.get(name) for name in param_name.split(", ")]
        return encoded(values if len(values) > 1 else values[0])

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Values:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        wanted = self.wanted(param_name)
        if isinstance(param_distribution, optuna.distributions.CategoricalDistribution):
            if wanted in param_distribution.choices:
                return wanted
            self.missing.append(param_name)
            return param_distribution.choices[0]
        if wanted is not None and param_distribution.low <= wanted <= param_distribution.high:
            return wanted
        self.missing.append(param_name)
        return param_distribution.low


def apply(base: Config, values: Values, where: str = "the search space") -> Config:
    """The settings of a trial on top of those of the search.

    Raises
    ------
    ConfigError
        A setting does not exist, is not a trial's own, cannot have its value, or has no effect beside the others.
    """
    content = plain.to_dict(base)
    known = settings(base)
    for name, value in values.items():
        _require_own(name, known, where)
        *sections, last = name.split(".")
        table = content
        for section in sections:
            table = table[section]
        if value is None:
            table.pop(last, None)
        else:
            table[last] = value
    try:
        config = plain.from_dict(Config, content, where)
    except ConfigError as error:
        shown = ", ".join(f"{name} = {value!r}" for name, value in values.items())
        raise ConfigError(
            f"{where} ({shown})", error.expected, error.found, f"{error.where}: {error.remedy}"
        ) from error
    unused = {name: why for name, why in idle(config).items() if name in values}
    for name, why in unused.items():
        remedy = "Draw it only beside the values that it belongs to: when = {...}, or an if in a Python space."
        raise ConfigError(
            f"{where}: {name}", "settings that have an effect where they are drawn", f"none: {why}", remedy
        )
    return config


def _require_own(name: str, known: Values, where: str) -> None:
    """Refuse a setting that does not exist, or that a trial does not take from what is drawn for it."""
    if name not in known:
        raise ConfigError(where, "settings of config.toml by their names, such as optim.lr", name, "Correct it.")
    if name.partition(".")[0] not in _DRAWN and name not in _DRAWN_TOO:
        expected = f"settings of a trial's own: those of {', '.join(_DRAWN)}, and {', '.join(_DRAWN_TOO)}"
        remedy = "Set it by its flag or in --config: it is the same for all trials of a search."
        raise ConfigError(f"{where}: {name}", expected, name, remedy)


def text(place: str) -> str:
    """The content of the file of a space."""
    return _file(place)[0].read_text(encoding="utf-8")


def absolute(place: str) -> str:
    """The same place for a process with another working folder."""
    file, name = _file(place)
    return (
        place if place == "default" else f"{file.absolute()}:{name}" if file.suffix == ".py" else str(file.absolute())
    )


def copy(place: str, folder: Path) -> str:
    """Keep the file of a space in a folder; returns the place of the copy, as of :func:`load`."""
    file, name = _file(place)
    kept = folder / f"space{file.suffix}"
    if kept.absolute() != file.absolute():
        kept.write_text(text(place), encoding="utf-8")
    return f"{kept}:{name}" if file.suffix == ".py" else str(kept)


def points(file: Path | None) -> list[Values]:
    """Known good points: the ``[[point]]`` tables of a TOML file, settings by dotted name.

    Raises
    ------
    ConfigError
    """
    if file is None:
        return []
    content = read_toml(file, "--points")
    found = content.get("point")
    if not isinstance(found, list) or set(content) != {"point"} or not all(isinstance(one, dict) for one in found):
        raise ConfigError(
            f"--points {file}", "[[point]] tables and nothing else", ", ".join(content) or "nothing", "Correct it."
        )
    return [{_whole(name): encoded(value) for name, value in flat(one).items()} for one in found]


def _whole(key: str) -> str:
    """What Optuna calls settings that are chosen together.

    Examples
    --------
    >>> _whole("decode.height, width")
    'decode.height, decode.width'
    """
    section, dot, _ = key.partition(",")[0].rpartition(".")
    return ", ".join(part if "." in part else section + dot + part for part in map(str.strip, key.split(",")))


def require_points(file: Path | None, known: list[Values], space: Space, base: Config) -> None:
    """Check that a space draws known good points as they are.

    Raises
    ------
    ConfigError
        It lacks a setting or a value, or draws a setting only beside others, which the point does not have.
    """
    drawn = parameters(space) if known else {}
    for number, point in enumerate(known, 1):
        where = f"--points {file}: point {number}"
        beside = _tried(space, where, point, _LOOKS_BESIDE)
        for name, value in point.items():
            kinds = [trial[name] for _, trial in beside if name in trial]
            if not kinds and name not in drawn:
                expected = f"parameters of the space: {', '.join(sorted(drawn))}"
                raise ConfigError(f"{where}: {name}", expected, "none of this name", "Correct or remove it.")
            if len(kinds) < len(beside):
                found = f"a space that draws it in {len(kinds)} of {len(beside)} trials beside the point"
                remedy = "Add what it is conditional on to the point, with a value that it belongs to, or remove it."
                raise ConfigError(f"{where}: {name}", "a parameter that is drawn beside the others", found, remedy)
            if not _fits(value, kinds[0]):
                remedy = "Correct the point, or widen the space."
                raise ConfigError(f"{where}: {name}", shown(kinds[0]), repr(value), remedy)
        for settled, _ in beside:
            apply(base, settled, where)


def shown(kind: BaseDistribution) -> str:
    """A parameter's choices or range, for people.

    Examples
    --------
    >>> shown(optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True))
    '0.0001 to 0.01, log'
    """
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        return f"one of {', '.join(map(repr, kind.choices))}"
    assert isinstance(kind, (optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution))
    step = "" if kind.step is None or kind.log else f" in steps of {kind.step:g}"
    whole = "whole numbers " if isinstance(kind, optuna.distributions.IntDistribution) else ""
    return f"{whole}{kind.low:g} to {kind.high:g}{step}{', log' if kind.log else ''}"


# Python ---------------------------------------------------------------------------------------------------------------


def _python(file: Path, name: str) -> Space:
    function = runpy.run_path(str(file)).get(name)
    if not callable(function):
        remedy = "Name the function behind the file: --space FILE.py:NAME."
        raise ConfigError(str(file), f"a function {name}(trial)", "none", remedy)

    def space(trial: optuna.Trial) -> Values:
        returned = function(trial)
        if returned is not None and not isinstance(returned, Mapping):
            remedy = "Return a dictionary of settings by dotted name, or nothing."
            raise ConfigError(f"{file}: {name}", "a dictionary or None", type(returned).__name__, remedy)
        return {**trial.params, **(returned or {})}

    return space
