"""The checkpoint format: a folder of safetensors and JSON, into and out of which no pickle goes.

``model.safetensors`` has the weights that are evaluated, ``model.json`` what they are. For a training to go on from it,
it also has ``training.safetensors`` (the weights that learn, where they are others, and the optimiser's tensors) and
``state.json`` (where the training stands: epoch, step, history, and the optimiser's numbers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError

from mammoray import __version__
from mammoray.config import Classes, DecodeConfig
from mammoray.errors import CheckpointError
from mammoray.model import DensityNet, Tensors, build, without_start
from mammoray.plain import from_dict, to_dict
from mammoray.recipe import ModelConfig

FORMAT = 2
_CHECK = "Check the checkpoint's folder."


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a checkpoint's weights are; the content of model.json."""

    model: ModelConfig
    """Architecture, input channels, auxiliary heads."""
    loss: Literal["cross_entropy", "focal", "corn", "coral"]
    """How the outputs are read."""
    classes: Classes
    decode: DecodeConfig
    """What the images were made by, their size among it."""
    mean: float
    """The normalisation: grey values, 0 to 1, less ``mean``, over ``std``."""
    std: float
    split_digest: str
    """Of the split by whose training patients the network learned."""
    epoch: int
    version: str = __version__


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A checkpoint in memory, on the CPU, ready to be written by another thread."""

    card: ModelCard
    model: Tensors
    training: Tensors = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


def card_of(net: DensityNet, model: ModelConfig, **facts: Any) -> ModelCard:
    """The card of a network; ``facts`` are the other fields."""
    return ModelCard(model=model, loss=net.loss, mean=float(net.mean), std=float(net.std), **facts)  # type: ignore[arg-type]


def to_cpu(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies that later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into an existing folder.

    Raises
    ------
    OSError
        Such as a full disk.
    """
    card = {"format": FORMAT, **to_dict(snapshot.card)}
    _write_tensors(folder / "model.safetensors", snapshot.model)
    _write_tensors(folder / "training.safetensors", snapshot.training)
    (folder / "state.json").write_text(json.dumps(snapshot.state) + "\n", encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _write_tensors(file: Path, tensors: Tensors) -> None:
    # Not save_file, which makes a full disk an error of its own kind, without a number.
    file.write_bytes(safetensors.torch.save(tensors))


def read_card(folder: Path) -> ModelCard:
    """Read model.json.

    Raises
    ------
    CheckpointError
        There is none, or it is of another format.
    """
    path = folder / "model.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), "the card of a checkpoint", type(error).__name__, _CHECK) from error
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found != FORMAT:
        remedy = "Use the mammoray version that wrote it."
        raise CheckpointError(str(path), f"checkpoint format {FORMAT}", f"format {found}", remedy)
    return from_dict(ModelCard, values, str(path))


def read_tensors(folder: Path, name: Literal["model", "training"] = "model") -> Tensors:
    """The tensors of model.safetensors or training.safetensors, on the CPU.

    Raises
    ------
    CheckpointError
        The file is missing or damaged.
    """
    file = folder / f"{name}.safetensors"
    try:
        tensors: Tensors = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(file), "a file of weights", f"{type(error).__name__}: {error}", _CHECK) from error
    return tensors


def read_state(folder: Path) -> dict[str, Any]:
    """The content of state.json.

    Raises
    ------
    CheckpointError
        The file is missing or damaged.
    """
    file = folder / "state.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(file), "the state of a training", type(error).__name__, _CHECK) from error
    return state


def load_model(folder: Path) -> tuple[DensityNet, ModelCard]:
    """The network of a checkpoint, in evaluation mode, and its card. Every weight must be there and fit.

    Raises
    ------
    CheckpointError
        It cannot be read, or its weights are not those of its architecture.
    """
    card = read_card(folder)
    net = build(without_start(card.model), card.loss, card.classes, 0)
    load_into(net, folder)
    require_equal(folder, card, {"mean": float(net.mean), "std": float(net.std)})
    return net.eval(), card


def load_into(net: DensityNet, folder: Path) -> None:
    """Load a checkpoint's evaluated weights into a network; every one must be there and fit.

    Raises
    ------
    CheckpointError
        With the names that are missing, unknown or of another shape.
    """
    given, own = read_tensors(folder), net.state_dict()
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "unknown": sorted(given.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & given.keys() if own[k].shape != given[k].shape),
    }
    found = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in problems.items() if names)
    if found:
        raise CheckpointError(str(folder), "the weights of its architecture", found, _CHECK)
    net.load_state_dict(given)


def require_equal(folder: Path, card: ModelCard, wanted: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose card says something else than ``wanted``: fields of the card and their values.

    Raises
    ------
    CheckpointError
        With every difference, field by field.
    """
    have = {name: getattr(card, name) for name in wanted}
    differences = _differences("", to_plain(have), to_plain(wanted))
    if differences:
        expected = ", ".join(f"{name} {want}" for name, (_, want) in differences.items())
        found = ", ".join(f"{name} {own}" for name, (own, _) in differences.items())
        remedy = "Use the settings and the split that it was trained with, or another checkpoint."
        raise CheckpointError(f"the checkpoint {folder}", expected, found, remedy)


def to_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a card, as JSON holds them; what decides nothing about the weights is left out."""
    plain = {name: to_dict(value) if hasattr(value, "__slots__") else value for name, value in values.items()}
    if "model" in plain:
        plain["model"] = {k: v for k, v in plain["model"].items() if k in ("arch", "channels", "auxiliary")}
    return plain


def _differences(prefix: str, have: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(have.keys() | want.keys()):
        own, wanted = have.get(name), want.get(name)
        if isinstance(own, dict) and isinstance(wanted, dict):
            found |= _differences(f"{prefix}{name}.", own, wanted)
        elif own != wanted:
            found[prefix + name] = (own, wanted)
    return found
