"""Settings that change between the epochs of a training, as a population-based search finds them.

``--changes "6: optim.lr = 0.0003"`` holds from the beginning of epoch 6 on. What a training computes stays a function
of its settings, so that a schedule that a search has found can be trained again from the beginning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mammoray.config import Config
from mammoray.errors import ConfigError
from mammoray.plain import replace

_AUGMENT = "flip_horizontal flip_vertical rotation zoom shift contrast brightness gamma noise cutout"
_LOSS = "label_smoothing soft_labels focal_gamma auxiliary_weight"
CHANGEABLE = (
    *("optim.lr", "optim.weight_decay", "optim.clip_grad", "sample.alpha"),
    *(f"loss.{name}" for name in _LOSS.split()),
    *(f"augment.{name}" for name in _AUGMENT.split()),
)
"""Settings by dotted name: numbers that leave the network, the optimiser's state and the number of steps alone."""


@dataclass(frozen=True, slots=True)
class Change:
    """From the beginning of an epoch on, a setting has a value."""

    epoch: int
    name: str
    value: float

    def __str__(self) -> str:
        """As ``--changes`` takes it.

        Examples
        --------
        >>> str(Change(6, "optim.lr", 3e-4))
        '6: optim.lr = 0.0003'
        """
        return f"{self.epoch}: {self.name} = {self.value!r}"


def parse(text: str) -> Change:
    """A change from its text.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> parse("6: optim.lr = 3e-4")
    Change(epoch=6, name='optim.lr', value=0.0003)
    """
    found = re.fullmatch(r"\s*(\d+)\s*:\s*([\w.]+)\s*=\s*(\S+)\s*", text)
    try:
        change = Change(int(found[1]), found[2], float(found[3])) if found else None
    except ValueError:
        change = None
    if change is None:
        remedy = 'Write them like "6: optim.lr = 0.0003".'
        raise ConfigError("--changes", "an epoch, a setting by dotted name, and a number", repr(text), remedy)
    if change.name not in CHANGEABLE:
        raise ConfigError("--changes", f"a setting among {', '.join(CHANGEABLE)}", change.name, "Correct or remove it.")
    return change


def at(config: Config, epoch: int) -> Config:
    """The settings of an epoch.

    Examples
    --------
    >>> from mammoray.recipe import TrainConfig
    >>> config = Config(train=TrainConfig(changes=("3: optim.lr = 0.01",)))
    >>> [at(config, epoch).optim.lr for epoch in (2, 3, 4)]
    [0.0003, 0.01, 0.01]
    """
    for change in map(parse, config.train.changes):
        if change.epoch <= epoch:
            section, name = change.name.split(".")
            config = replace(config, **{section: replace(getattr(config, section), **{name: change.value})})
    return config


def check(config: Config) -> None:
    """Check all changes of a training.

    Raises
    ------
    ConfigError
        One names no setting that can change, an epoch that is not there, or a value that the setting cannot have.
    """
    for change in map(parse, config.train.changes):
        if not 2 <= change.epoch <= config.train.epochs:
            expected = f"an epoch from 2 to --epochs {config.train.epochs}"
            raise ConfigError(f"--changes {change}", expected, str(change.epoch), "Correct or remove it.")
        # Weights that never decay stand in the optimiser's one group with those that may.
        if change.name == "optim.weight_decay" and (not config.optim.weight_decay or not change.value):
            raise ConfigError(f"--changes {change}", "above 0 before and after", "0", "Use a small number.")
    at(config, config.train.epochs)
