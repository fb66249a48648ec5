"""Which settings have no effect beside the others: for a note to people, and for a search that must not draw them.

One table of rules. A setting is in it where no value of it would change what a training computes, chooses or writes
down; not where its value only happens to be a neutral one, such as 0. Data, split and decoding are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter

from mammoray.config import Config
from mammoray.recipe import AugmentConfig, CollapseConfig

_AMOUNTS = tuple(field.name for field in fields(AugmentConfig) if field.name != "augment")
_SIGNS = tuple(field.name for field in fields(CollapseConfig) if field.name != "collapse_after")


@dataclass(frozen=True, slots=True)
class _Rule:
    keys: tuple[str, ...]
    """The settings that are idle, by dotted key."""
    when: Callable[[Config], bool]
    why: str
    """For people; ``{0.sample.sampler}`` and the like are the config's."""


def _nothing_to_vary(config: Config) -> bool:
    return not any(getattr(config.augment, name) for name in _AMOUNTS)


def _heads_only(config: Config) -> bool:
    return config.optim.freeze_epochs >= config.train.last_epoch


def _warm_to_the_end(config: Config) -> bool:
    # A plateau lowers the rate within the warm-up too.
    return config.optim.schedule == "cosine" and config.optim.warmup_epochs >= config.train.last_epoch


_RULES = (
    _Rule(("sample.alpha",), lambda c: c.sample.sampler != "balanced", "--sampler is {0.sample.sampler}"),
    _Rule(
        ("sample.beta",),
        lambda c: "effective" not in (c.sample.sampler, c.loss.class_weights),
        "neither --sampler nor --class-weights is effective",
    ),
    _Rule(tuple(f"augment.{name}" for name in _AMOUNTS), lambda c: not c.augment.augment, "--no-augment"),
    _Rule(("augment.augment",), _nothing_to_vary, "no amount of it is above 0"),
    _Rule(("model.pretrained",), lambda c: c.model.weights is not None, "the weights come from --weights"),
    _Rule(("loss.focal_gamma",), lambda c: c.loss.loss != "focal", "--loss is {0.loss.loss}"),
    _Rule(
        ("loss.double_correction",),
        lambda c: c.sample.sampler == "natural" or c.loss.class_weights == "none",
        "--sampler and --class-weights are not both set",
    ),
    _Rule(("loss.auxiliary_weight",), lambda c: not c.model.auxiliary, "there is no --auxiliary"),
    _Rule(("optim.momentum",), lambda c: c.optim.optimizer != "sgd", "--optimizer is {0.optim.optimizer}"),
    _Rule(("optim.min_lr",), lambda c: c.optim.schedule == "constant", "--schedule is constant"),
    _Rule(("optim.min_lr",), _warm_to_the_end, "--warmup-epochs lasts to the end"),
    _Rule(
        ("optim.plateau_patience", "optim.plateau_factor"),
        lambda c: c.optim.schedule != "plateau",
        "--schedule is {0.optim.schedule}",
    ),
    # Not without --freeze-epochs: stages then wake from the first epoch on.
    _Rule(
        ("optim.stage_epochs", "optim.layer_decay", "model.drop_path"),
        _heads_only,
        "--freeze-epochs keeps the backbone frozen to the end",
    ),
    _Rule(("speed.sync_batchnorm",), lambda c: c.optim.freeze_norm, "--freeze-norm keeps batch norms as they are"),
    _Rule(
        tuple(f"collapse.{name}" for name in _SIGNS),
        lambda c: c.collapse.collapse_after > c.train.last_epoch,
        "--collapse-after lies behind the last epoch",
    ),
    _Rule(
        ("train.min_delta",),
        lambda c: not c.train.patience and c.optim.schedule != "plateau",
        "there is neither --patience nor --schedule plateau",
    ),
    _Rule(
        ("train.monitor", "train.monitor_level"),
        lambda c: c.train.train_on == "train_and_val" and c.optim.schedule != "plateau",
        "--train-on train_and_val keeps the last epoch",
    ),
)


def idle(config: Config) -> dict[str, str]:
    """The settings that have no effect beside the others, by dotted key, each with the reason.

    Examples
    --------
    >>> idle(Config())["sample.alpha"]
    '--sampler is natural'
    >>> "optim.lr" in idle(Config())
    False
    """
    found: dict[str, str] = {}
    for rule in _RULES:
        for key in rule.keys if rule.when(config) else ():
            found.setdefault(key, rule.why.format(config))
    return found


def notes(config: Config) -> list[str]:
    """A line for each setting that was changed from its default, and is idle."""
    default = Config()
    return [
        f"note: {_flag(key, attrgetter(key)(config))} has no effect: {why}"
        for key, why in idle(config).items()
        if attrgetter(key)(config) != attrgetter(key)(default)
    ]


def _flag(key: str, value: object) -> str:
    name = key.rpartition(".")[2].replace("_", "-")
    return f"--no-{name}" if value is False else f"--{name}"
