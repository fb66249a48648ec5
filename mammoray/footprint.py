"""What a training step costs in memory and time, measured by doing a few of them on random images.

Memory is counted and not guessed: on two images, all tensors that a forward and a backward pass make, and the most of
them that are alive at once. What is alive for each image then holds for any number of images.

Shapes: ``N`` training rows, ``B, H, W`` a batch of images.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mammoray import learner, sample
from mammoray.config import Config, DecodeConfig
from mammoray.learner import Arrays, Learner
from mammoray.model import DENSITY
from mammoray.plain import replace

_TINY = 2  # Images of the step whose memory is counted; batch norm wants two.
# What would take longer is timed on fewer images; not sooner, because a step has costs that are not of its images.
_SECONDS = 10.0
_STEPS = 3
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What a worker needs for its part of a step.

    Attributes
    ----------
    parameters, learning : int
        Weights of the network, and those of them that learn in the first epoch.
    images, together : int
        Of a step, on the worker with the most of them; and those of them that go through the network together.
    weights, gradients, optimizer, activations : int
        Bytes at the peak of a step. Weights with their moving average, gradients with DDP's copy of them.
    checkpoint : int
        Bytes of a checkpoint.
    step, look : float
        Seconds of a step, and of the validation of one image.
    """

    parameters: int
    learning: int
    images: int
    together: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    checkpoint: int
    step: float
    look: float


def measure(
    config: Config, targets: Arrays, workers: int, side_by_side: int, device: torch.device = CPU, cpus: float = 0.0
) -> Footprint:
    """Do some steps as one of ``workers`` would, with its share of this machine's cores, or with ``cpus``.

    Parameters
    ----------
    config : Config
    targets : dict of (N,) arrays
        Of the training rows, as of :class:`mammoray.learner.Learner`.
    workers, side_by_side : int
        In all, and on one machine.
    device : torch.device
        That the steps are timed on; their memory is counted on the CPU, where it is the same.

    Raises
    ------
    ConfigError, ModelError
        As of :func:`mammoray.learner.make`.
    """
    learner.share_cores(side_by_side, cpus)
    images, together = largest(config, workers)
    one_image = activations(config, targets)
    plain = _eager(config, device)
    tiny = _learner(plain, targets, _TINY, 1, device)
    learning = sum(p.numel() for p in tiny.net.parameters() if p.requires_grad)
    learner.begin_epoch(tiny, config.train.last_epoch)  # When most of the weights learn.
    _once(tiny, _TINY)  # Kernels are chosen, and the optimiser's state is made.
    pace = min(_timed(lambda: _once(tiny, _TINY), device) for _ in range(_STEPS)) / _TINY
    state = learner.state(tiny)
    weights = _bytes(tiny.net.state_dict().values())
    return Footprint(
        parameters=sum(p.numel() for p in tiny.net.parameters()),
        learning=learning,
        images=images,
        together=together,
        weights=weights * (1 if tiny.ema is None else 2),
        gradients=_bytes(p.grad for p in tiny.net.parameters() if p.grad is not None) * (1 if workers == 1 else 2),
        optimizer=_bytes(v for s in tiny.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)),
        activations=one_image * together,
        checkpoint=_bytes([*state[0].values(), *state[1].values()]),
        step=_step_seconds(plain, targets, images, pace, device),
        look=_look_seconds(tiny, max(1, min(2 * images, int(_SECONDS / pace)))),
    )


def largest(config: Config, workers: int) -> tuple[int, int]:
    """Images of the largest part of a batch that a worker has, and of the largest pass that it does with them.

    Examples
    --------
    >>> largest(Config(), 3)
    (6, 6)
    """
    unit = 2 if learner.mixes(config) else 1
    images = _most(config.sample.batch_size, workers, unit)
    return images, _most(images, config.optim.accumulate, unit)


def _most(images: int, parts: int, unit: int) -> int:
    ends = [sample.part(images, parts, part, unit) for part in range(parts)]
    return max(last - first for first, last in ends)


def activations(config: Config, targets: Arrays) -> int:
    """Bytes that one image takes at the peak of a pass, beside the weights and their gradients.

    Parameters
    ----------
    config : Config
    targets : dict of (N,) arrays
        Of the training rows.
    """
    # bf16 has the same size as fp16, and wants no scaling of the loss, which must see gradients.
    precision = "fp32" if config.speed.precision == "fp32" else "bf16"
    own = _learner(_eager(replace(config, speed=replace(config.speed, precision=precision)), CPU), targets, _TINY, 1)
    learner.begin_epoch(own, config.train.last_epoch)
    for parameter in own.net.parameters():
        if parameter.requires_grad:
            # Gradients are counted for themselves: here each goes as soon as it is there.
            parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
    with _Living([*own.net.parameters(), *own.net.buffers()]) as living:
        _once(own, _TINY)
    peak: int = living.peak
    return peak // _TINY


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made while it is on, as long as they live, and their peak.

    Parameters
    ----------
    known : iterable of Tensor
        Tensors from before, whose views do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if size and place not in self.counted:
            self.counted.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self.counted.discard(place)
        self.now -= size


def _eager(config: Config, device: torch.device) -> Config:
    """The same without what takes minutes to begin, or cannot be here."""
    synchronised = config.speed.sync_batchnorm and device.type == "cuda"
    return replace(config, speed=replace(config.speed, compile=False, sync_batchnorm=synchronised))


def _learner(config: Config, targets: Arrays, images: int, passes: int, device: torch.device = CPU) -> Learner:
    """One that is alone and has all images of a step."""
    config = replace(
        config,
        sample=replace(config.sample, batch_size=images),
        optim=replace(config.optim, accumulate=passes),
    )
    own = learner.make(config, learner.blank(config), targets, device)
    learner.begin_epoch(own, 1)
    return own


def _once(own: Learner, images: int) -> None:
    learner.step(own, _batch(own.config.decode, own.targets, images), 1, 0, own.config.optim.lr)


def _batch(decode: DecodeConfig, targets: Arrays, images: int) -> Arrays:
    rng = np.random.default_rng(0)
    dtype = np.uint8 if decode.depth == 8 else np.uint16
    pixels: npt.NDArray[Any] = rng.integers(0, 2**decode.depth, (images, decode.height, decode.width), dtype=dtype)
    return {"image": pixels, "row": np.arange(images) % len(targets[DENSITY])}


def _step_seconds(config: Config, targets: Arrays, images: int, pace: float, device: torch.device) -> float:
    """Seconds of a step, by one of fewer images in as large passes where it would take long by ``pace``."""
    unit = 2 if learner.mixes(config) else 1
    some = min(images, max(_TINY, int(_SECONDS / pace) // unit * unit))
    passes = max(1, config.optim.accumulate * some // images)
    own = _learner(config, targets, some, passes, device)
    learner.begin_epoch(own, config.train.last_epoch)
    _once(own, some)
    # The median: on a busy machine a single step may take several times as long as the others.
    return statistics.median(_timed(lambda: _once(own, some), device) for _ in range(_STEPS)) * images / some


def _look_seconds(own: Learner, images: int) -> float:
    own.judged.eval()
    pixels = _batch(own.config.decode, own.targets, images)["image"]
    learner.evaluate(own, pixels)
    return _timed(lambda: learner.evaluate(own, pixels), own.device) / images


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
