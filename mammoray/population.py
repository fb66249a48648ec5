"""Population-based training: members that train in generations, the worst going on from the best.

After Jaderberg et al., "Population based training of neural networks" (2017); generations wait for each other.

A trial is a member in one generation: ``--grace`` epochs, on from the checkpoint of its parent. Before each generation
the worst quarter takes weights and settings from the best quarter, and changes those numbers that can change
(:data:`mammoray.changes.CHANGEABLE`) by a fifth up or down. The lineage of the default takes over nothing: it is a
training with the settings of the command line, which the others are held against.

All of it follows from the study and the seed. A generation begins when the one before has ended.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from mammoray import study as studies
from mammoray.changes import CHANGEABLE, Change
from mammoray.config import Config, TuneConfig
from mammoray.draws import Space
from mammoray.errors import ConfigError
from mammoray.plain import replace

GENERATION, MEMBER, PARENT = "generation", "member", "parent"
"""User attributes of a trial; its parent is the number of a trial, or None."""
_FEWEST = 4
_STEPS = (0.8, 1.2)
_LOOKS = 50


@dataclass(frozen=True, slots=True)
class Shape:
    """Members, generations, and the epochs of each."""

    members: int
    generations: int
    epochs: int

    @property
    def trials(self) -> int:
        """In all."""
        return self.members * self.generations


def shape(search: TuneConfig, config: Config) -> Shape:
    """The population that ``--num-trials`` has room for.

    Raises
    ------
    ConfigError
        It would be too small.
    """
    generations = -(-config.train.epochs // search.grace)
    members = search.num_trials // generations
    if generations < 2 or members < _FEWEST:
        least = f"{_FEWEST} members or more, in 2 generations or more of --grace epochs"
        found = f"--num-trials {search.num_trials} for {generations} generations (--epochs / --grace)"
        remedy = f"Use --num-trials {max(2, generations) * 8}, or another --grace."
        raise ConfigError("--scheduler pbt", least, found, remedy)
    return Shape(members, generations, search.grace)


def check(draw: Space, config: Config, own: Shape, known: int) -> None:
    """Check that a space draws something that a population can change, and that there is room for what is known.

    Parameters
    ----------
    known : int
        Points to begin with, the default included.

    Raises
    ------
    ConfigError
    """
    for flag, value in (
        ("--patience", config.train.patience),
        ("--time-limit", config.train.time_limit),
        ("--collapse-stop", config.collapse.collapse_stop),
    ):
        if value:
            remedy = "Leave it out: members that fall behind are replaced."
            raise ConfigError(f"{flag} with --scheduler pbt", "members that train to the end", str(value), remedy)
    if known > own.members:
        remedy = "Use more --num-trials, or fewer --points."
        raise ConfigError("--scheduler pbt", f"at most {own.members} points, a member each", str(known), remedy)
    for seed in range(_LOOKS):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        draw(trial)
        if set(trial.params) & set(CHANGEABLE):
            return
    expected = f"a space that draws one of {', '.join(CHANGEABLE)}"
    raise ConfigError("--scheduler pbt", expected, "none", "Draw one of these, or use another --scheduler.")


class Population:
    """Which member comes next, and with which settings."""

    def __init__(self, study: optuna.Study, own: Shape, seed: int) -> None:
        self.study, self.shape, self.seed = study, own, seed

    def ready(self) -> bool:
        """Whether there is a next member, and all of the generation before it have ended."""
        generation, members = self._present()
        if len(members) < self.shape.members:
            return True
        last = generation + 1 == self.shape.generations
        return not last and all(t.state.is_finished() for t in members) and any(map(_is_complete, members))

    def ask(self, search: TuneConfig) -> optuna.Trial:
        """The trial of the next member."""
        generation, members = self._present()
        if len(members) == self.shape.members:
            generation, members = generation + 1, []
        member = min(set(range(self.shape.members)) - {t.user_attrs[MEMBER] for t in members})
        parent = self._parent(generation, member) if generation else None
        if parent is not None and not self._waits(generation, member):
            attrs = {GENERATION: generation, MEMBER: member, PARENT: parent.number}
            params = self._params(parent, generation, member)
            default = studies.is_default(parent) and parent.user_attrs[MEMBER] == member
            studies.enqueue(self.study, [] if default else [params], params if default else None, attrs)
        trial = studies.ask(self.study, search, self.seed)
        if parent is None:
            for name, value in {GENERATION: 0, MEMBER: member, PARENT: None}.items():
                trial.set_user_attr(name, value)
        return trial

    def settings(self, trial: optuna.Trial, own: Config, of_parent: Config | None) -> Config:
        """All settings of a trial: those drawn, or the parent's with what has changed since; and where it ends."""
        generation = trial.user_attrs[GENERATION]
        end = min((generation + 1) * self.shape.epochs, own.train.epochs)
        if of_parent is None:
            return replace(own, train=replace(own.train, stop_epoch=end))
        before = self._numbered(trial.user_attrs[PARENT]).params
        begin = generation * self.shape.epochs + 1
        new = [str(Change(begin, name, value)) for name, value in trial.params.items() if value != before[name]]
        changes = (*of_parent.train.changes, *new)
        return replace(of_parent, train=replace(of_parent.train, stop_epoch=end, changes=changes))

    def _numbered(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _members(self) -> list[FrozenTrial]:
        begun = [t for t in self.study.get_trials(deepcopy=False) if MEMBER in t.user_attrs]
        # A driver that was killed may have drawn a trial that it never began, whose place is free.
        return [t for t in begun if t.state == TrialState.RUNNING or studies.has_ended(t)]

    def _present(self) -> tuple[int, list[FrozenTrial]]:
        """The present generation, and its members so far."""
        every = self._members()
        generation = max((t.user_attrs[GENERATION] for t in every), default=0)
        return generation, [t for t in every if t.user_attrs[GENERATION] == generation]

    def _waits(self, generation: int, member: int) -> bool:
        """Whether a driver that was killed has put the trial down already."""
        waiting = [t.user_attrs for t in self.study.get_trials(deepcopy=False, states=[TrialState.WAITING])]
        return any((a.get(GENERATION), a.get(MEMBER)) == (generation, member) for a in waiting)

    def _parent(self, generation: int, member: int) -> FrozenTrial:
        """The member itself, one generation ago, or one of the best, where it was among the worst."""
        before = [t for t in self._members() if t.user_attrs[GENERATION] == generation - 1]
        own = next(t for t in before if t.user_attrs[MEMBER] == member)
        sign = -1 if self.study.direction == optuna.study.StudyDirection.MINIMIZE else 1
        ranked = sorted(filter(_is_complete, before), key=lambda t: (-sign * t.values[0], t.number))
        quarter = max(1, len(before) // 4)
        worst = {t.number for t in ranked[quarter:][-quarter:]}
        if _is_complete(own) and (own.number not in worst or studies.is_default(own)):
            return own
        best = ranked[:quarter]
        return best[int(self._rng(generation, member, 0).integers(len(best)))]

    def _rng(self, generation: int, member: int, draw: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, generation, member, draw])

    def _params(self, parent: FrozenTrial, generation: int, member: int) -> dict[str, Any]:
        """The parent's settings; changed ones where it is another member."""
        if parent.user_attrs[MEMBER] == member:
            return dict(parent.params)
        rng = self._rng(generation, member, 1)
        return {
            name: _stepped(value, parent.distributions[name], int(rng.integers(2))) if name in CHANGEABLE else value
            for name, value in parent.params.items()
        }


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _stepped(value: Any, distribution: BaseDistribution, up: int) -> Any:
    """A fifth more or less, within the range; of choices, the next one up or down.

    Examples
    --------
    >>> from optuna.distributions import FloatDistribution
    >>> _stepped(1.0, FloatDistribution(0.0, 1.1), 1), _stepped(1.0, FloatDistribution(0.0, 1.1), 0)
    (1.1, 0.8)
    >>> _stepped(0.5, CategoricalDistribution([0.1, 0.5, 0.9]), 1)
    0.9
    """
    if isinstance(distribution, CategoricalDistribution):
        choices: list[Any] = sorted(distribution.choices)
        return choices[min(max(bisect.bisect_left(choices, value) + (1 if up else -1), 0), len(choices) - 1)]
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]
    new = value * _STEPS[up]
    if step is not None:
        new = low + round((new - low) / step) * step
    return type(value)(min(max(new, low), high))
