"""The trackers of a run: opened with all that is known, made complete, and never in the way of the training.

What a tracker's library raises is said once and costs the run nothing: history.jsonl has everything, and the tracker is
opened anew, which brings it up to date, after some epochs, when the run closes, and when it is resumed.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from mammoray.config import Config
from mammoray.curves import History, Mlflow, TensorBoard, View, Wandb
from mammoray.errors import ConfigError

Say = Callable[[str], None]
Opener = Callable[[History], View]

_VIEWS: dict[str, Callable[[Path, Config, dict[str, Any], History], View]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": Wandb,
}
# Modules that must be there; a local store of MLflow wants SQLAlchemy, which mlflow-skinny leaves out.
_PACKAGES = {"tensorboard": ("tensorboardX",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def check(names: tuple[str, ...]) -> None:
    """What :func:`open_all` needs, to be asked for before hours go into decoding.

    Raises
    ------
    ConfigError
        A tracker's package is not installed, or wandb would have to ask for a key.
    """
    for name in names:
        missing = [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]
        if missing:
            extra = "mammoray" if name == "tensorboard" else f"mammoray[{name}]"
            raise ConfigError(
                f"--trackers {name}",
                f"the Python packages {' and '.join(_PACKAGES[name])}",
                f"no {' and no '.join(missing)}",
                f"pip install '{extra}', or leave {name} out of --trackers.",
            )
    if "wandb" in names:
        _check_key()


def _check_key() -> None:
    """Refuse what would ask for a key at the terminal, after hours, with nobody there."""
    import wandb

    sends = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
    if sends and not wandb.login(prompt=False):
        remedy = "Run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline to send the run later."
        raise ConfigError("--trackers wandb", "a key of Weights & Biases", "none", remedy)


def open_all(
    names: tuple[str, ...], outdir: Path, config: Config, facts: dict[str, Any], history: History, say: Say
) -> Trackers:
    """Open the trackers of a run and bring them up to its history; never raises what a tracker raises.

    Parameters
    ----------
    names : tuple of str
        As of ``--trackers``.
    outdir : Path
        The run's folder. Gets ``tensorboard/``, ``mlflow/``, ``wandb/``, and ``trackers.json`` with the run's ids.
    config, facts
        Settings, and what else is known of the run; go out as parameters, paths without their folders.
    history : list of dict
        The epochs until now: empty for a new run. A record that a tracker has is not written again.
    say : callable
        Gets one line for each tracker that fails.
    """
    openers: dict[str, Opener] = {name: partial(_VIEWS[name], outdir, config, facts) for name in names}
    return Trackers(openers, history, say)


class Trackers:
    """The open trackers of a run.

    A context manager: leaving it closes them as of a run that did not finish, unless :meth:`close` was called.
    """

    def __init__(self, openers: dict[str, Opener], history: History, say: Say) -> None:
        self._history = list(history)
        self._epochs = {record["epoch"] for record in history}
        self._guarded = [_Guarded(name, opener, say) for name, opener in openers.items()]
        self._closed = False
        for one in self._guarded:
            one.update(self._history)

    def log(self, record: dict[str, Any]) -> None:
        """Add an epoch's record; nothing happens for an epoch that is there."""
        if record["epoch"] in self._epochs:
            return
        self._epochs.add(record["epoch"])
        self._history.append(record)
        for one in self._guarded:
            one.update(self._history)

    def close(self, summary: dict[str, Any] | None) -> None:
        """End the run in all trackers: with what metrics.json holds, or None where it did not finish."""
        if self._closed:
            return
        self._closed = True
        for one in self._guarded:
            one.close(self._history, summary)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(None)


class _Guarded:
    """One tracker, whose failures end here."""

    def __init__(self, name: str, opener: Opener, say: Say) -> None:
        self._name, self._opener, self._say = name, opener, say
        self._view: View | None = None
        self._said = False
        self._failures = 0
        self._pause = 0

    def update(self, history: History) -> None:
        """Write the last record; or all that is lacking, after a failure."""
        if self._pause:
            self._pause -= 1
            return
        self._attempt(lambda: self._bring(history))

    def close(self, history: History, summary: dict[str, Any] | None) -> None:
        """One more attempt where it had failed, then the end."""

        def end() -> None:
            view = self._view or self._opener(history)
            view.close(summary)

        self._attempt(end)

    def _bring(self, history: History) -> None:
        if self._view is None:
            self._view = self._opener(history)
        else:
            self._view.write(history[-1])

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # Whatever a tracker's library and its server come up with.
            self._view = None
            # A server that hangs costs seconds each time: with twice the epochs between, that is little in all.
            self._pause = 2**self._failures - 1
            self._failures += 1
            if not self._said:
                self._said = True
                self._say(f"trackers: {self._name} failed ({_plainly(error)}); history.jsonl is complete all the same")
        else:
            self._failures = 0


def _plainly(error: Exception) -> str:
    """One line of an exception, without the user and password that an address may hold.

    Examples
    --------
    >>> _plainly(OSError("no answer from https://me:secret@host/api"))
    'OSError: no answer from https://host/api'
    """
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {re.sub(r'//[^/@ ]*@', '//', line)[:300]}"
