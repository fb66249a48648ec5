"""The optimiser, the learning rate over time, and the moving average of the weights.

Nothing here keeps a state of its own: rates follow from the step and from the scores of the epochs, and what an
optimiser holds goes to tensors and plain numbers, so that a run goes on exactly where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from mammoray.errors import CheckpointError, ConfigError
from mammoray.freezing import backbone_of, grouped, heads
from mammoray.recipe import OptimConfig

Tensors = dict[str, torch.Tensor]
Values = dict[str, str | int | float | bool | None]

_FUSED = ("adamw", "sgd")
_KIND = "optimizer"


def _scales(net: nn.Module, config: OptimConfig) -> dict[str, float]:
    """Learning rate of every parameter as a share of the schedule's: 1, or less by layer, or that of the heads."""
    scale = dict.fromkeys((name for name, _ in net.named_parameters()), 1.0)
    if config.layer_decay < 1:
        layers = grouped(backbone_of(net), coarse=False)
        for depth, layer in enumerate(layers):
            scale |= {f"backbone.{name}": config.layer_decay ** (len(layers) - 1 - depth) for name in layer}
    head = 1.0 if config.head_lr is None else config.head_lr / config.lr
    return scale | dict.fromkeys(heads(net), head)


def _decays(net: nn.Module) -> set[str]:
    """Names of the parameters with weight decay: no biases, no vectors, and not what the model itself excludes."""
    exclude = getattr(backbone_of(net), "no_weight_decay", set)
    patterns = [f"backbone.{pattern}" for pattern in exclude()]
    return {
        name
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1 and not name.endswith(".bias") and not any(fnmatch(name, one) for one in patterns)
    }


def _groups(net: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups, one for each (scale of the learning rate, weight decay), in the order of the network.

    Frozen parameters too: an optimiser leaves alone what has no gradient, and they may learn in a later epoch.
    """
    scales, decays = _scales(net, config), _decays(net)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        scale, decay = scales[name], config.weight_decay if name in decays else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append((name, parameter))
    return list(groups.values())


def build(net: nn.Module, config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    """The optimiser of all parameters of a network, at its peak learning rate.

    Parameters
    ----------
    net : nn.Module
        The bare network, with ``backbone``, on its device.
    config : OptimConfig
    fused : bool
        Whether to take the form that does a step in one kernel.

    Returns
    -------
    torch.optim.Optimizer
        Every group has ``lr_scale``, the share that it takes of the schedule's learning rate (:func:`set_rate`).

    Raises
    ------
    ModelError
        A layer decay for a model whose layers timm does not know.
    ConfigError
        No fused form of this optimiser.
    """
    if fused and config.optimizer not in _FUSED:
        expected = f"an optimiser with a fused form ({', '.join(_FUSED)})"
        raise ConfigError("--fused", expected, config.optimizer, "Leave out --fused, or change --optimizer.")
    options: dict[str, Any] = {"fused": True} if fused else {}
    if config.optimizer == "sgd":
        # torch refuses Nesterov momentum of 0.
        options["nesterov"] = config.momentum > 0
    if config.optimizer == "lamb":
        # Else it clips gradients to a norm of 1 besides --clip-grad.
        options["max_grad_norm"] = None
    made: torch.optim.Optimizer = create_optimizer_v2(
        _groups(net, config), config.optimizer, lr=config.lr, momentum=config.momentum, **options
    )
    set_rate(made, config.lr)
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the learning rate ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def set_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Give each group that decays the weight decay ``decay``."""
    for group in optimizer.param_groups:
        group["weight_decay"] = decay if group["weight_decay"] else 0.0


def rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int, drops: int) -> float:
    """Learning rate of a step: linear warm-up to the peak, and from there as ``--schedule`` says.

    Parameters
    ----------
    config : OptimConfig
    step : int
        From 0, since the start of the training.
    steps_per_epoch, epochs : int
    drops : int
        How often the plateau schedule has lowered the rate so far (:func:`drops`).

    Examples
    --------
    >>> config = OptimConfig(lr=1.0, warmup_epochs=1)
    >>> [round(rate(config, step, 4, 3, 0), 2) for step in range(12)]
    [0.25, 0.5, 0.75, 1.0, 0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03]
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    # The last step of the warm-up is the first of the cosine, so that the peak is there once.
    peak = max(0, warmup - 1)
    ramp = (step + 1) / warmup if step < peak else 1.0
    if config.schedule == "plateau":
        return config.lr * ramp * max(config.min_lr, config.plateau_factor**drops)
    if config.schedule == "constant" or step < peak:
        return config.lr * ramp
    progress = min(1.0, (step - peak) / max(1, steps_per_epoch * epochs - peak))
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def _better(scores: Sequence[float | None], min_delta: float) -> list[bool]:
    """For each epoch, whether its score is an improvement: more than ``min_delta`` above the last improvement.

    The first score is one. A missing score, or one that is no number, is none.
    """
    best: float | None = None
    better = []
    for score in scores:
        better.append(score is not None and math.isfinite(score) and (best is None or score > best + min_delta))
        best = score if better[-1] else best
    return better


def drops(scores: Sequence[float | None], patience: int, min_delta: float) -> int:
    """How often the plateau schedule has lowered the learning rate after these epochs.

    It does so after ``patience`` epochs in a row without an improvement, and then begins to count again.

    Parameters
    ----------
    scores : sequence of float or None
        Of each epoch so far; higher is better, None is no improvement.
    patience : int
        Epochs, at least 1.
    min_delta : float
        By how much a score must be better to count.

    Examples
    --------
    >>> drops([0.1, 0.5, 0.4, 0.5, 0.3, 0.2], patience=2, min_delta=0.0)
    2
    """
    count = waited = 0
    for better in _better(scores, min_delta):
        waited = 0 if better else waited + 1
        if waited == patience:
            count, waited = count + 1, 0
    return count


def stale(scores: Sequence[float | None], min_delta: float) -> int:
    """Epochs since the last improvement, for early stopping; the arguments are those of :func:`drops`.

    Examples
    --------
    >>> stale([0.1, 0.5, 0.4, None], min_delta=0.0)
    2
    """
    better = _better(scores, min_delta)
    return better[::-1].index(True) if True in better else len(better)


def _own(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What the optimiser itself has put into a group, such as LAMB's count of steps."""
    given = {"params", "param_names", "lr_scale", *optimizer.defaults}
    return {key: value for key, value in group.items() if key not in given}


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters, in the order in which torch numbers them."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[Tensors, Values]:
    """Everything that an optimiser has learnt so far, but for its settings.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Of :func:`build`.

    Returns
    -------
    tensors : dict of str to Tensor
        Contiguous copies on the CPU, which later steps do not change: ``exp_avg.backbone.conv1.weight``, and for what
        a group has, ``step.#0``. Parameters that never learnt have none.
    values : dict of str to str, int, float, bool or None
        The same for what is no tensor, and the optimiser's kind; fit for JSON.
    """
    held: dict[str, Any] = {_KIND: type(optimizer).__name__}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(_names(optimizer), parameters, strict=True):
        held |= {f"{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    for number, group in enumerate(optimizer.param_groups):
        held |= {f"{key}.#{number}": value for key, value in _own(optimizer, group).items()}
    tensors = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in held.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, {key: value for key, value in held.items() if key not in tensors}


def load_state(optimizer: torch.optim.Optimizer, tensors: Tensors, values: Values) -> None:
    """Put what :func:`state_tensors` gave into a new optimiser of the same network and settings; exactly.

    Raises
    ------
    CheckpointError
        The state of another kind of optimiser, or of another network.
    """
    kind = type(optimizer).__name__
    if values.get(_KIND) != kind:
        raise _misfit(f"the state of {kind}", f"that of {values.get(_KIND)}")
    blank = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {name: number for number, name in enumerate(_names(optimizer))}
    slots: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values}.items():
        slot, _, owner = key.partition(".")
        if key == _KIND:
            continue
        if owner.startswith("#") and int(owner[1:]) < len(blank["param_groups"]):
            blank["param_groups"][int(owner[1:])][slot] = _copy(value)
        elif owner in numbers:
            slots.setdefault(numbers[owner], {})[slot] = _laid_out(key, value, parameters[numbers[owner]])
        else:
            raise _misfit("the state of this network's parameters", f"{key}, which is of none of them")
    optimizer.load_state_dict({**blank, "state": slots})


def _copy(value: Any) -> Any:
    # Else the optimiser would go on in the caller's tensors.
    return value.clone() if isinstance(value, torch.Tensor) else value


def _laid_out(key: str, value: Any, parameter: torch.Tensor) -> Any:
    """A copy of one state of a parameter, in the parameter's memory format: sums over it depend on the order."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return _copy(value)
    if value.shape != parameter.shape:
        raise _misfit(f"{key} of shape {tuple(parameter.shape)}", f"shape {tuple(value.shape)}")
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu", requires_grad=False).copy_(value)


def _misfit(expected: str, found: str) -> CheckpointError:
    remedy = "Go on with the settings that the checkpoint was made with, or start anew in another --outdir."
    return CheckpointError("the optimiser of the checkpoint", expected, found, remedy)


def ema_of(net: nn.Module, config: OptimConfig) -> ModelEmaV3 | None:
    """A moving average of a network's weights and running statistics, which begins at the network; None for none.

    ``module`` is the averaged network, in evaluation mode; its ``state_dict`` is all there is to keep.
    """
    if not config.ema:
        return None
    # 3/4 reaches 0.99 after 460 steps and 0.999 after 10,000: the lengths of trainings on mammograms.
    ema = ModelEmaV3(net, decay=config.ema, use_warmup=True, warmup_power=0.75)
    ema.module.requires_grad_(False)
    return ema


def update_ema(ema: ModelEmaV3, net: nn.Module, step: int) -> None:
    """Move the average towards the network, after optimiser step ``step``, counted from 1; counters are copied.

    The decay follows from the step alone: min(decay, 1 - step^(-3/4)).
    """
    ema.update(net, step=step)
