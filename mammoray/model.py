"""The network: a timm backbone with the heads that a training asks for, and where its weights start.

Shapes: ``B`` images, ``J`` outputs of the density's head, ``K`` classes, ``F`` features, ``H, W`` pixels.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import load_state_dict as load_weights_file
from torch import nn

from mammoray import losses, tasks
from mammoray.config import CLASS_NAMES, Classes
from mammoray.errors import ModelError
from mammoray.plain import replace
from mammoray.recipe import ModelConfig

Tensors = dict[str, torch.Tensor]
DENSITY = "density"
"""The name of the main output beside those of the auxiliary tasks, whatever the classes are."""


class DensityNet(nn.Module):
    """A timm backbone with the normalisation it wants, from grey images to the outputs that a loss wants.

    Parameters
    ----------
    backbone : timm model
        Whose classifier has as many outputs as the loss wants; one for ``coral``, whose thresholds stand here.
    channels : int
        Input channels of the backbone.
    loss : str
        How the outputs are read: ``recipe.LossConfig.loss``.
    classes : int
    auxiliary : tuple of str
        Tasks with a head of their own on the features.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, backbone: nn.Module, channels: int, loss: str, classes: int, auxiliary: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = channels
        self.loss = loss
        cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", {})
        mean, std = cfg.get("mean", (0.5,)), cfg.get("std", (0.5,))
        self.register_buffer("mean", torch.tensor(float(np.mean(mean))))
        self.register_buffer("std", torch.tensor(float(np.mean(std))))
        if loss == "coral":
            # Falling, so that "denser than A" is the likeliest from the start.
            self.thresholds = nn.Parameter(torch.linspace(1.0, -1.0, classes - 1) if classes > 2 else torch.zeros(1))
        features: int = backbone.head_hidden_size  # type: ignore[assignment]
        self.auxiliary = nn.ModuleDict({task: nn.Linear(features, tasks.outputs(task)) for task in auxiliary})

    def forward(self, x_B1HW: torch.Tensor) -> Tensors:
        """Outputs of all heads: :data:`DENSITY`, (B, J), and each auxiliary task, of float images in 0 to 1."""
        if not self.auxiliary:
            return {DENSITY: self._ordered(self.backbone(self._normalised(x_B1HW)))}
        x_BF = self.features(x_B1HW)
        outputs = {DENSITY: self._ordered(self.backbone.get_classifier()(x_BF))}  # type: ignore[operator]
        return {**outputs, **{task: head(x_BF) for task, head in self.auxiliary.items()}}

    def _normalised(self, x_B1HW: torch.Tensor) -> torch.Tensor:
        return ((x_B1HW - self.mean) / self.std).expand(-1, self.channels, -1, -1)

    def features(self, x_B1HW: torch.Tensor) -> torch.Tensor:
        """What the classifier sees, (B, F): the pooled outputs of the last stage; see :func:`require_features`."""
        maps = self.backbone.forward_features(self._normalised(x_B1HW))  # type: ignore[operator]
        x_BF: torch.Tensor = self.backbone.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return x_BF

    def _ordered(self, outputs_BJ: torch.Tensor) -> torch.Tensor:
        return outputs_BJ + self.thresholds if self.loss == "coral" else outputs_BJ

    def log_probabilities(self, x_B1HW: torch.Tensor) -> torch.Tensor:
        """Logarithms of the class probabilities, (B, K) float32."""
        return losses.log_probabilities(self(x_B1HW)[DENSITY].float(), self.loss)

    def log_probabilities_of(self, x_BF: torch.Tensor) -> torch.Tensor:
        """The same of features, (B, K) float32."""
        outputs_BJ = self._ordered(self.backbone.get_classifier()(x_BF))  # type: ignore[operator]
        return losses.log_probabilities(outputs_BJ.float(), self.loss)


def to_unit(x: torch.Tensor) -> torch.Tensor:
    """Float32 in 0 to 1 of an unsigned 8 or 16-bit tensor, on its own device."""
    return x.to(torch.float32) / (255.0 if x.dtype == torch.uint8 else 65535.0)


def autocast_kind(precision: str) -> torch.dtype | None:
    """The type of autocast for a precision of ``recipe.SpeedConfig``; None for fp32, which has none."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def build(config: ModelConfig, loss: str, classes: Classes, seed: int) -> DensityNet:
    """A network with its initial weights: pretrained, from a file, or drawn from the seed.

    Raises
    ------
    ModelError
        No such architecture, a stem or a head that cannot be converted, no model hub, or a file that does not fit.
    """
    if not timm.is_model(config.arch):
        near = ", ".join(difflib.get_close_matches(config.arch, timm.list_models(), 5, 0.5)) or "none like it"
        raise ModelError("--arch", "a timm model name", f"{config.arch!r} (timm has {near})", "See timm.list_models().")
    torch.manual_seed(seed)
    hub = config.pretrained and config.weights is None
    count = len(CLASS_NAMES[classes])
    outputs = 1 if loss == "coral" else losses.outputs(loss, count)
    drop_path = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    try:
        backbone = timm.create_model(
            config.arch,
            pretrained=hub,
            num_classes=outputs,
            in_chans=config.channels,
            drop_rate=config.dropout,
            **drop_path,
        )
    except Exception as error:
        raise _unbuildable(config, error, hub) from error
    net = DensityNet(backbone, config.channels, loss, count, config.auxiliary)
    if config.auxiliary:
        remedy = "Leave --auxiliary out, or use another --arch, such as a resnet, efficientnet or convnext."
        require_features(net, config.arch, remedy)
    if config.weights is not None:
        _load_backbone(net.backbone, config.weights, config.channels)
    return net


def _unbuildable(config: ModelConfig, error: Exception, hub: bool) -> ModelError:
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    if "drop_path_rate" in reason:
        return ModelError(f"--arch {config.arch}", "an architecture with drop path", "none", "Use --drop-path 0.")
    if hub:
        remedy = "Give --weights FILE, or --no-pretrained to start from random weights."
        return ModelError(f"--arch {config.arch}", "pretrained weights from timm's model hub", reason, remedy)
    return ModelError(
        f"--arch {config.arch}", "a model that can be built", reason, "Try --channels 3, or another --arch."
    )


@torch.no_grad()
def require_features(net: DensityNet, arch: str, remedy: str) -> None:
    """Hold the way through the features against the backbone's own: a model may do more between them.

    Raises
    ------
    ModelError
        What its classifier takes is not what :meth:`DensityNet.features` gives.
    """
    size = max(64, *(getattr(net.backbone, "pretrained_cfg", {}).get("input_size", (1, 64, 64))[1:]))
    x_B1HW = torch.rand(1, 1, size, size)
    training = net.training
    net.eval()
    try:
        x_BCHW = net._normalised(x_B1HW)
        x_BF = net.features(x_B1HW)
        same = torch.allclose(net.backbone.get_classifier()(x_BF), net.backbone(x_BCHW), atol=1e-4)  # type: ignore[operator]
    except Exception as error:
        found = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise ModelError(f"--arch {arch}", "features that its classifier takes", found, remedy) from error
    net.train(training)
    if not same or x_BF.ndim != 2:
        found = "a classifier that takes something else"
        raise ModelError(f"--arch {arch}", "features that its classifier takes", found, remedy)


def _load_backbone(backbone: nn.Module, path: Path, channels: int) -> None:
    """Load a weights file into the backbone, stem converted, classifier left out when it has another shape."""
    remedy = "Check --weights and --arch."
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        given: Tensors = load_weights_file(str(file), weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(str(path), "a file of weights", "no file", remedy) from error
    except Exception as error:
        raise ModelError(
            str(path), "a safetensors file or a torch state dict", f"{type(error).__name__}", remedy
        ) from error
    cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", {})
    own_heads = ("mean", "std", "thresholds", "auxiliary.")  # Of a checkpoint of mammoray, beside the backbone.
    given = {k.removeprefix("backbone."): v for k, v in given.items() if not k.startswith(own_heads)}
    for conv in _names(cfg.get("first_conv")):
        key = f"{conv}.weight"
        if key in given and given[key].shape[1] != channels and channels == 1:
            given[key] = given[key].sum(dim=1, keepdim=True)
    own = backbone.state_dict()
    heads = tuple(f"{name}." for name in _names(cfg.get("classifier")))
    given = {k: v for k, v in given.items() if not (k.startswith(heads) and (k not in own or v.shape != own[k].shape))}
    missing = [k for k in own if k not in given and not k.startswith(heads)]
    unknown = [k for k in given if k not in own]
    misfit = [k for k in given if k in own and given[k].shape != own[k].shape]
    problems = {"missing": missing, "unknown": unknown, "of another shape": misfit}
    found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])}, ...)" for what, keys in problems.items() if keys)
    if found:
        raise ModelError(str(path), "the weights of this architecture", found, remedy)
    backbone.load_state_dict(given, strict=False)


def _names(value: object) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]


def parameters(net: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in net.parameters())


def without_start(config: ModelConfig) -> ModelConfig:
    """The same network with random weights, for weights that come from elsewhere."""
    return replace(config, pretrained=False, weights=None)
