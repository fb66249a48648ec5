"""Ray Tune's side of a search: an adapter that asks the study for trials, and one that lets the study end them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from mammoray import study as studies
from mammoray.config import Config, TuneConfig
from mammoray.errors import MammorayError, StorageError
from mammoray.population import Population
from mammoray.trial import Job

Say = Callable[[str], None]
Message = dict[str, Any]
Begin = Callable[[optuna.Trial], Job]
"""Draws a trial's settings, or reads those that it has, and makes what its process needs; raises MammorayError where
that fails."""


class Trials:
    """The trials of a search that are under way, between Ray Tune and the study.

    Parameters
    ----------
    begin : callable
        For a trial that is new, or to go on with; gives what its process is to do.
    begun : list of FrozenTrial
        Trials of an interrupted search, to go on with first.
    left : int
        New trials to run besides.
    population : Population
        What they are members of, or None.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: TuneConfig,
        base: Config,
        begin: Begin,
        begun: list[FrozenTrial],
        left: int,
        say: Say,
        population: Population | None = None,
    ) -> None:
        self.study, self.config, self.base, self.begin, self.begun, self.say = study, config, base, begin, begun, say
        self.left, self.population = left, population
        self.failed: StorageError | None = None
        self.open: dict[int, optuna.Trial] = {}
        self.pruned: dict[int, str] = {}
        self.last: dict[int, Message] = {}
        self.collapsed: dict[int, int] = {}

    def next(self) -> Job | None:
        """The next trial to run: one that was interrupted, or a new one; None where there is none yet, or no more."""
        while self.begun or self.left:
            if not self.begun and self.population and not self.population.ready():
                # Nothing that is under way can bring a member to its end: the population has died out.
                self.left = self.left if self.open else 0
                return None
            trial = studies.again(self.study, self.begun.pop(0).number) if self.begun else self._new()
            self.open[trial.number] = trial
            try:
                return self.begin(trial)
            except StorageError as error:  # No fault of the trial: it would be that of all others as well.
                self.failed, self.left = error, 0
                self.begun.clear()
                return None
            except MammorayError as error:
                self.last[trial.number] = {"failed": f"{type(error).__name__}: {error}"}
                self.end(trial.number, False)
        return None

    def _new(self) -> optuna.Trial:
        self.left -= 1
        if self.population:
            return self.population.ask(self.config)
        return studies.ask(self.study, self.config, self.base.seed)

    def hear(self, number: int, message: Message) -> bool:
        """Take in a message of a trial; returns whether it goes on."""
        trial = self.open[number]
        self.last[number] = {**self.last.get(number, {}), **message}
        if message.get("done") or "value" not in message:
            return True
        value = message["value"]
        if value is not None and len(self.config.objectives) == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # A trial that goes on after a loss may say a step again.
                trial.report(value, message["step"])
        if studies.is_default(trial):
            return True  # It runs to its end, as what all others are held against.
        if len(self.config.objectives) == 1 and trial.should_prune():
            self.pruned[number] = f"{self.config.scheduler}: after {message['step']} {self._steps()}"
        self.collapsed[number] = self.collapsed.get(number, 0) + 1 if message["collapse"] else 0
        if self.config.prune_collapsed and self.collapsed[number] >= self.config.grace:
            self.pruned[number] = (
                f"collapsed in {self.collapsed[number]} {self._steps()} in a row: {message['collapse']}"
            )
        return number not in self.pruned

    def _steps(self) -> str:
        return "folds" if self.config.folds_per_trial > 1 else "epochs"

    def end(self, number: int, died: bool) -> None:
        """Tell the study how a trial has ended."""
        trial, message = self.open.pop(number), self.last.pop(number, {})
        failed = "its process died, again and again" if died else message.get("failed")
        if failed is None and message.get("value") is None and number not in self.pruned:
            failed = f"val_{self.base.train.monitor} is undefined"
        reason = failed or self.pruned.get(number, "")
        for name in ("epoch", "epochs", "seconds", "epoch_seconds", "images_per_second", "start_seconds"):
            trial.set_user_attr(name, message.get(name))
        trial.set_user_attr("reason", reason)
        if failed:
            self.study.tell(trial, state=TrialState.FAIL)
        elif number in self.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            known = {"score": message["value"], "seconds": message["epoch_seconds"]}
            known["gflops"] = trial.user_attrs.get("gflops")
            self.study.tell(trial, [known[name] for name in self.config.objectives])
        self._announce(number, failed, message)

    def _announce(self, number: int, failed: str | None, message: Message) -> None:
        value, best = message.get("value"), studies.best_number(self.study, self.config, self.base)
        words = []
        if failed:
            words.append(f"failed: {failed}")
        if number in self.pruned:
            words.append(f"ended early ({self.pruned[number]})")
        if value is not None:
            words.append(f"val {self.base.train.monitor} {value:.4f} at epoch {message['epoch']}")
        if best is not None:
            words.append(f"best so far: trial {best}")
        self.say(f"trial {number}: {'; '.join(words)}")


class StudySearch(Searcher):  # type: ignore[misc]
    """What Ray Tune asks for trials."""

    def __init__(self, trials: Trials) -> None:
        super().__init__(metric="value", mode="max")
        self.trials = trials
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What a trial's process is given."""
        job = self.trials.next()
        if job is None:
            return None if self.trials.left else str(self.FINISHED)
        self.numbers[trial_id] = job.number
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: Message | None = None, error: bool = False) -> None:
        """Pass on how a trial has ended; its last message comes only here."""
        number = self.numbers.pop(trial_id)
        if result is not None and number not in self.trials.pruned:
            self.trials.hear(number, result)
        self.trials.end(number, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's storage has everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """What Ray Tune asks whether a trial goes on."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()
        self.trials = trials

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Message) -> str:
        """Go on or stop."""
        if self.trials.hear(trial.config["job"].number, result):
            return str(self.CONTINUE)
        # Ray Tune keeps the process for another trial (reuse_actors), and tells it of nothing until that one has been
        # drawn, and has its images: the training would go on until then, and hold the CPUs that these wait for.
        trial.temporary_state.ray_actor.halt.remote()
        return str(self.STOP)


class LostTrials(Callback):  # type: ignore[misc]
    """Says that a trial is begun anew: Ray Tune asks nobody."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say so."""
        number = trial.config["job"].number
        self.say(f"trial {number}: its process or its node was lost; it goes on from its last checkpoint")
