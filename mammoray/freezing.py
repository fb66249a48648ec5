"""Which weights learn in which epoch: heads first, then the backbone, at once or by stages; its norms perhaps never.

The network is a ``models.DensityNet``: a timm model ``backbone``, and perhaps more heads beside it. What is frozen
neither learns nor moves: its batch norms keep their running statistics, and its dropout and drop path are off.
"""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from mammoray.errors import ModelError
from mammoray.recipe import OptimConfig

_PREFIX = "backbone."


def backbone_of(net: nn.Module) -> nn.Module:
    """The timm model in a network."""
    return net.get_submodule(_PREFIX.rstrip("."))


def classifier(backbone: nn.Module) -> set[str]:
    """Names, within the backbone, of the parameters of its classifier, or of its several classifiers."""
    timm_model: Any = backbone
    found = timm_model.get_classifier()
    several = nn.ModuleList(found if isinstance(found, (tuple, list)) else [found])
    own = {id(parameter) for parameter in several.parameters()}
    return {name for name, parameter in backbone.named_parameters() if id(parameter) in own}


def heads(net: nn.Module) -> set[str]:
    """Names of the parameters of all heads: the backbone's classifier and whatever stands beside the backbone."""
    own = {_PREFIX + name for name in classifier(backbone_of(net))}
    return {name for name, _ in net.named_parameters() if name in own or not name.startswith(_PREFIX)}


def grouped(backbone: nn.Module, coarse: bool) -> list[list[str]]:
    """Names of all parameters in timm's groups, from the stem to the classifier: stages if ``coarse``, else layers.

    Raises
    ------
    ModelError
        timm does not know the parts of this model.
    """
    timm_model: Any = backbone
    try:
        matcher = timm_model.group_matcher(coarse=coarse)
    # Some models have no matcher, and one (RDNet) has none for stages.
    except (AttributeError, AssertionError) as error:
        raise ModelError(
            "--arch",
            "a model whose stages and layers timm knows (group_matcher)",
            f"{type(backbone).__name__}, of which it does not",
            "Take another --arch, or leave --layer-decay at 1 and --stage-epochs at 0.",
        ) from error
    return list(group_parameters(backbone, matcher).values())


def stages(backbone: nn.Module) -> list[list[str]]:
    """Names, within the backbone, of the parameters of each stage, from the stem to the last; without the classifier.

    What timm puts into the classifier's group, such as the norm before it, belongs to the last stage: on its own it
    would be a stage with next to nothing to learn.

    Raises
    ------
    ModelError
        timm does not know the stages of this model.
    """
    head = classifier(backbone)
    groups = grouped(backbone, coarse=True)
    bare = [[name for name in group if name not in head] for group in groups]
    if len(bare) > 1 and not head.isdisjoint(groups[-1]):
        bare[-2:] = [bare[-2] + bare[-1]]
    return [group for group in bare if group]


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a norm with running statistics: torch's batch norms, and timm's, which act as well."""
    return getattr(module, "running_var", None) is not None


def _norms(net: nn.Module) -> set[str]:
    """Names of the weights and biases of the norms with running statistics."""
    own = {id(p) for module in net.modules() if _has_statistics(module) for p in module.parameters(recurse=False)}
    return {name for name, parameter in net.named_parameters() if id(parameter) in own}


def _awake(net: nn.Module, config: OptimConfig, epoch: int) -> set[str]:
    """Names of the parameters of all heads, and of the stages that are not frozen in this epoch."""
    backbone, free = backbone_of(net), heads(net)
    everything = {name for name, _ in net.named_parameters()}
    if not config.stage_epochs:
        return everything if epoch > config.freeze_epochs else free
    # Before the first epochs are over too, so that a model without stages is refused at the start.
    parts = stages(backbone)
    past = epoch - config.freeze_epochs
    count = 0 if past <= 0 else 1 + (past - 1) // config.stage_epochs
    frozen = {_PREFIX + name for part in parts[: max(0, len(parts) - count)] for name in part}
    return everything - frozen


def learning(net: nn.Module, config: OptimConfig, epoch: int) -> set[str]:
    """Names of the parameters that learn in an epoch.

    Parameters
    ----------
    net : nn.Module
        The bare network, with ``backbone``.
    config : OptimConfig
    epoch : int
        From 1.

    Raises
    ------
    ModelError
        ``--stage-epochs`` for a model whose stages timm does not know.
    """
    return _awake(net, config, epoch) - (_norms(net) if config.freeze_norm else set())


def _sleep(module: nn.Module, awake: set[int]) -> None:
    """Put the largest parts without an awake parameter into evaluation mode; parts without parameters go with theirs.

    By identity and not by name: a parameter that two blocks share has one name only.
    """
    own = [id(parameter) for parameter in module.parameters()]
    if own and awake.isdisjoint(own):
        module.eval()
        return
    for child in module.children():
        _sleep(child, awake)


def apply(net: nn.Module, config: OptimConfig, epoch: int) -> bool:
    """Set ``requires_grad`` and the training modes of a network for an epoch, counted from 1.

    To be called before each epoch, because validation leaves the whole network in evaluation mode.

    Returns
    -------
    bool
        Whether other parameters learn than before: DDP must then be wrapped again, since it looks only once.

    Raises
    ------
    ModelError
        As of :func:`learning`.
    """
    wanted, awake = learning(net, config, epoch), _awake(net, config, epoch)
    parameters = dict(net.named_parameters())
    changed = wanted != {name for name, parameter in parameters.items() if parameter.requires_grad}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
        if name not in wanted:
            # An old gradient would still move the weight, and so would momentum and decay.
            parameter.grad = None
    net.train()
    _sleep(net, {id(parameters[name]) for name in awake})
    for module in net.modules():
        if config.freeze_norm and _has_statistics(module):
            module.training = False
    return changed
