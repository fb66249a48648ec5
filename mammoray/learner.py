"""What learns on one worker: network, optimiser, and the step from a batch to changed weights.

What a step computes is a function of (weights, settings, batch, epoch, step): the random state is set anew for each, so
that a training goes on from any step as it would have gone.

Shapes: ``B`` images of the global batch, ``S`` of this worker's part of it, ``K`` classes, ``H, W`` pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray.train.torch
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3

from mammoray import augment, changes, freezing, losses, model, optim, sample, tasks
from mammoray.config import Config
from mammoray.errors import ConfigError, ModelError
from mammoray.model import DENSITY, DensityNet, Tensors

_STREAM = 3  # Keeps dropout's draws apart from those of the row order and the augmentation.
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(kw_only=True, slots=True)
class Learner:
    """What a worker holds while it trains."""

    config: Config
    """Of the present epoch."""
    net: DensityNet
    wrapped: torch.nn.Module
    """The network that gradients go through: ``net``, or DDP around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    weights_K: torch.Tensor | None
    targets: Arrays
    """Of all training rows: the class, and what the auxiliary tasks want."""
    device: torch.device
    rank: int
    workers: int
    steps: int
    """In an epoch."""

    @property
    def judged(self) -> DensityNet:
        """The network that is validated and kept."""
        judged: DensityNet = self.net if self.ema is None else self.ema.module
        return judged

    @property
    def unit(self) -> int:
        """Images of a batch that may not be divided."""
        return 2 if mixes(self.config) else 1


def mixes(config: Config) -> bool:
    """Whether neighbours in a batch are mixed."""
    return config.augment.augment and config.augment.mixup > 0


def blank(config: Config) -> DensityNet:
    """The network as ``config`` wants it, on the CPU, with weights that wait to be replaced.

    Raises
    ------
    ModelError
        The architecture cannot do what is asked for.
    """
    net = model.build(model.without_start(config.model), config.loss.loss, config.classes, config.seed)
    if config.speed.grad_checkpointing:
        try:
            net.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError, TypeError) as error:
            found = f"none in {config.model.arch}"
            raise ModelError("--grad-checkpointing", "a model with it", found, "Leave it out.") from error
    return net


def targets_of(rows: pd.DataFrame, config: Config) -> Arrays:
    """The class of each row, and what the auxiliary tasks want of it; each (N,), in the order of the rows.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``target``, the index of the class, and the columns of the tasks.
    """
    return {DENSITY: rows["target"].to_numpy(dtype=np.int64), **tasks.targets(rows, config.model.auxiliary)}


def make(
    config: Config, net: DensityNet, targets: Arrays, device: torch.device, rank: int = 0, workers: int = 1
) -> Learner:
    """A learner around a network of :func:`blank`.

    Raises
    ------
    ConfigError, ModelError
        A setting that this device or network does not have.
    """
    speed = config.speed
    set_arithmetic(speed.tf32)
    if speed.sync_batchnorm:
        if device.type != "cuda":
            remedy = "Leave it out on CPUs, or use --freeze-norm or a network without batch norm."
            raise ConfigError("--sync-batchnorm", "GPUs", device.type, remedy)
        net = convert_sync_batchnorm(net)
    net = net.to(device, memory_format=torch.channels_last) if speed.channels_last else net.to(device)  # type: ignore[call-overload]
    labels = targets[DENSITY]
    weights = losses.class_weights(labels, len(config.class_names), config.loss, config.sample.beta)
    ema = optim.ema_of(net, config.optim)
    if speed.compile:
        net.compile()
    return Learner(
        config=config,
        net=net,
        wrapped=net,
        optimizer=optim.build(net, config.optim, speed.fused),
        scaler=torch.amp.GradScaler(device.type, enabled=speed.precision == "fp16"),
        ema=ema,
        weights_K=None if weights is None else weights.to(device),
        targets=targets,
        device=device,
        rank=rank,
        workers=workers,
        steps=sample.steps_per_epoch(len(labels), config.sample.batch_size),
    )


def set_arithmetic(tf32: bool) -> None:
    """Let matrix products and convolutions on a GPU round fp32 factors to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def share_cores(workers: int, cpus: float = 0.0) -> None:
    """Compute with as many threads as a worker has cores; Ray would give each a single one.

    Parameters
    ----------
    workers : int
        On this node: each takes its share of all cores, unless ``cpus`` is given.
    cpus : float
        That were asked for each worker, or 0. Others may be beside this group of workers then, such as other trials of
        a search, and threads that wait for each other's cores are slower than fewer of them.
    """
    if cpus:
        torch.set_num_threads(max(1, int(cpus)))
        return
    # A container may have fewer cores than the machine; macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // workers))


def begin_epoch(learner: Learner, epoch: int) -> None:
    """Set which weights learn in this epoch, and by which settings; DDP is made anew where the weights change."""
    learner.config = changes.at(learner.config, epoch)
    optim.set_decay(learner.optimizer, learner.config.optim.weight_decay)
    changed = freezing.apply(learner.net, learner.config.optim, epoch)
    if changed or learner.wrapped is learner.net:
        learner.wrapped = learner.net  # Frees the old one, whose hooks would go on averaging.
        if learner.workers > 1:
            learner.wrapped = ray.train.torch.prepare_model(learner.net, move_to_device=False)


def autocast(learner: Learner) -> AbstractContextManager[Any]:
    """The arithmetic of forward passes."""
    kind = model.autocast_kind(learner.config.speed.precision)
    return torch.autocast(learner.device.type, dtype=kind, enabled=kind is not None)


def to_device(learner: Learner, image_BHW: npt.NDArray[Any]) -> torch.Tensor:
    """Images on the device, as the unsigned integers they travel as: (B, H, W)."""
    images = torch.from_numpy(image_BHW)
    if learner.device.type == "cuda":
        images = images.pin_memory()
    return images.to(learner.device, non_blocking=True)


def to_unit(learner: Learner, image_BHW: torch.Tensor) -> torch.Tensor:
    """Float images in 0 to 1, (B, 1, H, W)."""
    x_B1HW = model.to_unit(image_BHW).unsqueeze(1)
    return x_B1HW.contiguous(memory_format=torch.channels_last) if learner.config.speed.channels_last else x_B1HW


def step(learner: Learner, batch: Arrays, epoch: int, number: int, rate: float) -> torch.Tensor:
    """One optimiser step.

    Parameters
    ----------
    batch : dict
        This worker's part of the global batch: ``image`` (S, H, W) uint8 or uint16, ``row`` (S,) int64.
    epoch, number : int
        Which step this is, of which epoch.
    rate : float
        The learning rate.

    Returns
    -------
    (S,) float32 tensor on the device
        The loss of each image.
    """
    config = learner.config
    optim.set_rate(learner.optimizer, rate)
    learner.optimizer.zero_grad(set_to_none=True)
    _seed(learner, epoch, number)
    images = to_device(learner, batch["image"])
    start, stop = sample.part(config.sample.batch_size, learner.workers, learner.rank, learner.unit)
    drawn = augment.draw(config.sample.batch_size, config.augment, config.seed, epoch, number).part(start, stop)
    done = []
    for first, last, pass_over in _passes(learner, stop - start):
        with pass_over:
            loss_S = _losses(learner, images[first:last], batch["row"][first:last], drawn.part(first, last))
            # Of the global batch: DDP takes the mean over workers.
            share = loss_S.sum() * (learner.workers / config.sample.batch_size)
            learner.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
        done.append(loss_S.detach())
    if config.optim.clip_grad:
        learner.scaler.unscale_(learner.optimizer)
        torch.nn.utils.clip_grad_norm_(learner.net.parameters(), config.optim.clip_grad)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        optim.update_ema(learner.ema, learner.net, (epoch - 1) * learner.steps + number + 1)
    return torch.cat(done)


def _seed(learner: Learner, epoch: int, number: int) -> None:
    words = [learner.config.seed, _STREAM, epoch, number, learner.rank]
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def _passes(learner: Learner, images: int) -> Iterator[tuple[int, int, AbstractContextManager[Any]]]:
    """Which images go through the network together; gradients are exchanged after the last of them."""
    parts = learner.config.optim.accumulate
    for part in range(parts):
        quiet = learner.workers > 1 and part < parts - 1
        inside = learner.wrapped.no_sync() if quiet else contextlib.nullcontext()  # type: ignore[operator]
        yield *sample.part(images, parts, part, learner.unit), inside


def _losses(learner: Learner, images: torch.Tensor, rows: npt.NDArray[np.int64], drawn: augment.Drawn) -> torch.Tensor:
    config = learner.config
    x_B1HW = to_unit(learner, images)
    label_B = torch.from_numpy(learner.targets[DENSITY][rows]).to(learner.device)
    target_BK = losses.targets(label_B, len(config.class_names), config.loss)
    if config.augment.augment:
        x_B1HW = augment.apply(x_B1HW, drawn)
        if mixes(config):
            x_B1HW, target_BK = augment.mix(x_B1HW, target_BK, drawn)
    with autocast(learner):
        outputs = learner.wrapped(x_B1HW)
    total = losses.per_image(outputs[DENSITY].float(), target_BK, config.loss, learner.weights_K)
    for task in config.model.auxiliary:
        wanted = torch.from_numpy(learner.targets[task][rows])
        if config.augment.augment:
            wanted = tasks.flipped(task, wanted, torch.from_numpy(drawn.mirror_x))
        own = tasks.per_image(task, outputs[task].float(), wanted.to(learner.device))
        total = total + config.loss.auxiliary_weight * own
    return total


def end_epoch(learner: Learner) -> None:
    """Give all workers the mean of their running statistics: DDP leaves each with its own until the next step."""
    for module in learner.net.modules():
        for buffer in module.buffers(recurse=False) if module.training and learner.workers > 1 else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(learner.workers)
    if learner.ema is not None:
        for own, other in zip(learner.net.buffers(), learner.ema.module.buffers(), strict=True):
            other.copy_(own)


@torch.no_grad()
def evaluate(learner: Learner, image_BHW: npt.NDArray[Any]) -> Arrays:
    """Log-probabilities of the classes, (B, K), and the outputs of the auxiliary heads, float32.

    The bare network is used, not the wrapped one: workers have unequal numbers of batches, and DDP would wait.
    """
    net = learner.judged
    with autocast(learner):
        outputs = net(to_unit(learner, to_device(learner, image_BHW)))
    logs = losses.log_probabilities(outputs[DENSITY].float(), net.loss)
    found: Tensors = {DENSITY: logs, **{task: outputs[task].float() for task in learner.config.model.auxiliary}}
    return {name: values.cpu().numpy() for name, values in found.items()}


# What a training needs to go on ------------------------------------------------------------------------------------


def state(learner: Learner) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Weights that are judged; other tensors and JSON values that the training goes on from. Copies, on the CPU."""
    tensors, values = optim.state_tensors(learner.optimizer)
    training = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    own = learner.net.state_dict()
    if learner.ema is not None:
        training |= {f"net.{name}": tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
    judged = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in learner.judged.state_dict().items()}
    return judged, training, {"optimizer": values, "scaler": learner.scaler.state_dict()}


def restore(learner: Learner, judged: Tensors, training: Tensors, values: dict[str, Any]) -> None:
    """Take back what :func:`state` gave."""
    learner.judged.load_state_dict(judged)
    own = {name.removeprefix("net."): t for name, t in training.items() if name.startswith("net.")}
    learner.net.load_state_dict(own or judged)
    slots = {name.removeprefix("optimizer."): t for name, t in training.items() if name.startswith("optimizer.")}
    optim.load_state(learner.optimizer, slots, values["optimizer"])
    if values["scaler"]:
        learner.scaler.load_state_dict(values["scaler"])
