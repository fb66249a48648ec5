"""The network, its weights, its loss, and the checkpoint format.

A checkpoint is a folder that no pickle ever enters: ``model.safetensors`` (weights), ``model.json`` (what the weights
are: architecture, classes, decode settings, split digest, version), and for a run that can go on
``optimizer.safetensors`` and ``state.json``.

Shapes: ``B`` batch, ``K`` classes, ``H, W`` image.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict as load_weights_file
from torch import nn

from mammoray import __version__
from mammoray.config import CLASS_NAMES, Classes, DecodeConfig, ModelConfig
from mammoray.errors import CheckpointError, ModelError
from mammoray.plain import from_dict, to_dict

FORMAT = 1
Tensors = dict[str, torch.Tensor]


class DensityNet(nn.Module):
    """A timm backbone with the normalisation it wants, from grey images to logits."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = channels
        cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", {})
        mean, std = cfg.get("mean", (0.5,)), cfg.get("std", (0.5,))
        self.register_buffer("mean", torch.tensor(float(np.mean(mean))))
        self.register_buffer("std", torch.tensor(float(np.mean(std))))

    def forward(self, x_B1HW: torch.Tensor) -> torch.Tensor:
        """Logits, (B, K), of float images in 0 to 1."""
        x_BCHW = ((x_B1HW - self.mean) / self.std).expand(-1, self.channels, -1, -1)
        logits_BK: torch.Tensor = self.backbone(x_BCHW)
        return logits_BK


def to_unit(x: torch.Tensor) -> torch.Tensor:
    """Float32 in 0 to 1 of an unsigned 8 or 16-bit tensor, on its own device."""
    return x.to(torch.float32) / (255.0 if x.dtype == torch.uint8 else 65535.0)


def build(config: ModelConfig, classes: Classes, seed: int) -> DensityNet:
    """A network with its initial weights: pretrained, from a file, or drawn from the seed.

    Raises
    ------
    ModelError
        No such architecture, a stem that cannot be converted, no model hub, or a file that does not fit.
    """
    if not timm.is_model(config.arch):
        near = ", ".join(difflib.get_close_matches(config.arch, timm.list_models(), 5, 0.5)) or "none like it"
        raise ModelError("--arch", "a timm model name", f"{config.arch!r} (timm has {near})", "See timm.list_models().")
    torch.manual_seed(seed)
    hub = config.pretrained and config.weights is None
    try:
        backbone = timm.create_model(
            config.arch,
            pretrained=hub,
            num_classes=len(CLASS_NAMES[classes]),
            in_chans=config.channels,
            drop_rate=config.dropout,
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        if hub:
            remedy = "Give --weights FILE, or --no-pretrained to start from random weights."
            raise ModelError(
                f"--arch {config.arch}", "pretrained weights from timm's model hub", reason, remedy
            ) from error
        raise ModelError(
            f"--arch {config.arch}", "a model that can be built", reason, "Try --channels 3, or another --arch."
        ) from error
    net = DensityNet(backbone, config.channels)
    if config.weights is not None:
        _load_backbone(net.backbone, config.weights, config.channels)
    return net


def _load_backbone(backbone: nn.Module, path: Path, channels: int) -> None:
    """Load a weights file into the backbone, stem converted, classifier left out when it has another shape."""
    remedy = "Check --weights and --arch."
    try:
        given: Tensors = load_weights_file(str(path), weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(str(path), "a file of weights", "no file", remedy) from error
    except Exception as error:
        raise ModelError(
            str(path), "a safetensors file or a torch state dict", f"{type(error).__name__}", remedy
        ) from error
    cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", {})
    given = {k.removeprefix("backbone."): v for k, v in given.items() if k not in ("mean", "std")}
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


def loss(
    logits_BK: torch.Tensor, target_B: torch.Tensor, weights_K: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Mean cross-entropy over the batch; with class weights, each image counts by the weight of its class.

    The weights are normalised over the training set and not over the batch, as ``reduction="mean"`` would, so that the
    mean over workers of this loss is the loss of the global batch.
    """
    per_image = nn.functional.cross_entropy(
        logits_BK, target_B, weight=weights_K, label_smoothing=label_smoothing, reduction="none"
    )
    return per_image.mean()


def balanced_weights(labels: npt.NDArray[np.int64], classes: int) -> torch.Tensor:
    """(K,) weights inverse to the class frequencies, whose mean over the rows is 1; 0 for a class without rows."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), counts * (counts > 0).sum(), out=np.zeros(classes), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a checkpoint's weights are; the content of model.json."""

    model: ModelConfig
    classes: Classes
    decode: DecodeConfig
    split_digest: str
    epoch: int
    version: str = __version__


def save_model(folder: Path, state: Tensors, card: ModelCard) -> None:
    """Write weights and card into an existing folder."""
    safetensors.torch.save_file(
        {k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "model.safetensors"
    )
    plain = {"format": FORMAT, **to_dict(card)}
    (folder / "model.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def load_card(folder: Path) -> ModelCard:
    """Read model.json."""
    path = folder / "model.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(path), "the card of a checkpoint", type(error).__name__, "Check the checkpoint's folder."
        ) from error
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(
            str(path), f"checkpoint format {FORMAT}", "another", "Use the mammoray version that wrote it."
        )
    return from_dict(ModelCard, values, str(path))


def load_weights(folder: Path) -> Tensors:
    """The tensors of model.safetensors, on the CPU."""
    tensors: Tensors = safetensors.torch.load_file(folder / "model.safetensors")
    return tensors


def load_model(folder: Path) -> tuple[DensityNet, ModelCard]:
    """The network of a checkpoint, in evaluation mode, and its card. Every weight must be there and fit."""
    card = load_card(folder)
    net = build(
        ModelConfig(arch=card.model.arch, channels=card.model.channels, dropout=card.model.dropout, pretrained=False),
        card.classes,
        0,
    )
    try:
        net.load_state_dict(load_weights(folder))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            str(folder),
            f"the weights of {card.model.arch}",
            str(error).split("\n")[0],
            "Check the checkpoint's folder.",
        ) from error
    return net.eval(), card


def save_optimizer(folder: Path, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the optimiser's tensors, and ``state`` (JSON values), beside the model."""
    tensors = {
        f"{i}.{k}": v.detach().cpu().contiguous()
        for i, slots in optimizer.state_dict()["state"].items()
        for k, v in slots.items()
    }
    safetensors.torch.save_file(tensors, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what :func:`save_optimizer` wrote; returns ``state``."""
    slots: dict[int, Tensors] = {}
    for name, tensor in safetensors.torch.load_file(folder / "optimizer.safetensors").items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return load_state(folder)


def load_state(folder: Path) -> dict[str, Any]:
    """The content of state.json."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state
