"""A TOML search space: the settings that it draws, each by choices or a range, beside which others.

The format stands in :mod:`mammoray.space`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import optuna

from mammoray.config import Config
from mammoray.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Values = dict[str, Any]
"""Settings by dotted name."""
Space = Callable[[optuna.Trial], Values]
"""Draws the settings of a trial."""
Conditions = tuple[tuple[str, tuple[Any, ...]], ...]
_RANGE = {"low", "high", "log", "step", "when"}
_CHOICES = {"choices", "when"}
_REMEDY = "See docs/tuning.md."


def flat(table: Mapping[str, Any], prefix: str = "") -> Values:
    """Settings of nested tables by dotted name."""
    found: Values = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def settings(section: Any, prefix: str = "") -> Values:
    """All settings of a config by dotted name."""
    found: Values = {}
    for field in fields(section):
        value = getattr(section, field.name)
        name = f"{prefix}{field.name}"
        found |= settings(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """What a TOML space says of a setting, or of several that are chosen together."""

    names: tuple[str, ...]
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: Conditions = ()

    @property
    def name(self) -> str:
        """What Optuna calls it."""
        return ", ".join(self.names)

    def draw(self, trial: optuna.Trial) -> Values:
        """The settings and their values."""
        if self.choices:
            value = _decoded(trial.suggest_categorical(self.name, [encoded(choice) for choice in self.choices]))
            return dict(zip(self.names, value if len(self.names) > 1 else [value], strict=True))
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return {self.name: trial.suggest_int(self.name, low, high, step=step, log=self.log)}
        return {self.name: trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)}


def encoded(value: Any) -> Any:
    """Optuna stores choices that are plain values; others travel as JSON."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def toml_space(file: Path, base: Config) -> Space:
    """The space of a TOML file.

    Raises
    ------
    ConfigError
        The file cannot be read, or does not describe one.
    """
    content = read_toml(file, "--space")
    entries = _ordered(_entries(content, "", Config, str(file)), str(file))
    known = settings(base)

    def space(trial: optuna.Trial) -> Values:
        drawn: Values = {}
        for entry in entries:
            if all(drawn.get(name, known[name]) in values for name, values in entry.when):
                drawn |= entry.draw(trial)
        return drawn

    return space


def read_toml(file: Path, flag: str) -> dict[str, Any]:
    """The content of a TOML file that a flag names."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        found = "no file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise ConfigError(f"{flag} {file}", "a TOML file", found, "Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {file}", "a TOML file", str(error), "Correct the file.") from error


def _entries(table: Mapping[str, Any], section: str, cls: type[Any], where: str) -> list[_Entry]:
    hints = get_type_hints(cls)
    found = []
    for key, value in table.items():
        names = [part.strip() for part in key.split(",")]
        for name in names:
            if name not in hints:
                expected = f"settings among {', '.join(hints)}"
                raise ConfigError(f"{where}: {section}{key}", expected, name, "Correct or remove it.")
        if is_dataclass(hints[names[0]]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key}", "a [section] of settings", repr(value), "Write it as a table.")
            found += _entries(value, f"{key}.", hints[key], where)
        else:
            whole = int in (hints[names[0]], *get_args(hints[names[0]]))
            found.append(
                _entry(tuple(section + name for name in names), value, whole, section, f"{where}: {section}{key}")
            )
    return found


def _entry(names: tuple[str, ...], value: Any, whole: bool, section: str, where: str) -> _Entry:
    table = {"choices": value} if isinstance(value, list) else value
    if not isinstance(table, dict) or ("choices" in table) == ("low" in table or "high" in table):
        raise ConfigError(where, "a list of choices, or {low = ..., high = ...}", repr(value), _REMEDY)
    unknown = sorted(set(table) - (_CHOICES if "choices" in table else _RANGE))
    if unknown:
        known = ", ".join(sorted(_CHOICES if "choices" in table else _RANGE))
        raise ConfigError(where, f"keys among {known}", ", ".join(unknown), _REMEDY)
    when = _conditions(table.get("when", {}), section, where)
    if "choices" in table:
        choices = table["choices"]
        fits = isinstance(choices, list) and choices and all(len(names) == 1 or _is_row(c, len(names)) for c in choices)
        if not fits:
            expected = f"a list of choices{'' if len(names) == 1 else f', each a list of {len(names)} values'}"
            raise ConfigError(where, expected, repr(choices), _REMEDY)
        return _Entry(names=names, choices=tuple(choices), when=when)
    low: Any = table.get("low")
    high: Any = table.get("high")
    log, step = table.get("log", False), table.get("step")
    if not _is_range(low, high, log, step, whole) or len(names) > 1:
        kind = "whole numbers" if whole else "numbers"
        expected = f"{kind} low <= high of one setting; with log = true, low above 0 and no step"
        raise ConfigError(where, expected, repr(value), _REMEDY)
    return _Entry(names=names, low=low, high=high, log=log, step=step, whole=whole, when=when)


def _is_range(low: Any, high: Any, log: Any, step: Any, whole: bool) -> bool:
    numbers = [low, high, *([] if step is None else [step])]
    kinds = (int,) if whole else (int, float)
    if not all(isinstance(n, kinds) and not isinstance(n, bool) for n in numbers) or not isinstance(log, bool):
        return False
    return bool(low <= high and not (log and (low <= 0 or step is not None)) and (step is None or step > 0))


def _is_row(choice: Any, length: int) -> bool:
    return isinstance(choice, list) and len(choice) == length


def _conditions(when: Any, section: str, where: str) -> Conditions:
    """``when`` with whole names: those of the same section may stand alone."""
    if not isinstance(when, dict):
        raise ConfigError(where, "when = {setting = value or list of values}", repr(when), "Correct it.")
    known = settings(Config())
    found = []
    for name, values in when.items():
        whole = section + name if section + name in known else name
        if whole not in known:
            raise ConfigError(
                f"{where}: when", "a setting of this section, or a quoted dotted name", name, "Correct it."
            )
        found.append((whole, tuple(values) if isinstance(values, list) else (values,)))
    return tuple(found)


def _ordered(entries: list[_Entry], where: str) -> list[_Entry]:
    """Each entry behind those that it is conditional on."""
    done: list[_Entry] = []
    left = list(entries)
    while left:
        open_names = {name for entry in left for name in entry.names}
        ready = [entry for entry in left if not open_names & {name for name, _ in entry.when}]
        if not ready:
            found = ", ".join(entry.name for entry in left)
            raise ConfigError(where, "conditions that end somewhere", f"a circle of {found}", "Take one away.")
        done += ready
        left = [entry for entry in left if entry not in ready]
    return done
