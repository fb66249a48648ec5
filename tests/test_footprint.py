import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mammoray import footprint, learner
from mammoray.config import Config
from mammoray.footprint import Footprint
from mammoray.model import DENSITY
from mammoray.plain import replace
from mammoray.recipe import AugmentConfig, ModelConfig, OptimConfig, SampleConfig, SpeedConfig
from tests.conftest import SMALL

TARGETS = {DENSITY: np.arange(20, dtype=np.int64) % 4}


def measure(config: Config = SMALL, workers: int = 1) -> Footprint:
    return footprint.measure(config, TARGETS, workers, side_by_side=99)  # One thread: other tests run beside.


def test_sizes_are_those_of_the_network_its_optimiser_and_its_checkpoint() -> None:
    cost, net = measure(), learner.blank(SMALL)
    own = 4 * sum(p.numel() for p in net.parameters())
    assert cost.parameters == cost.learning == own // 4
    assert cost.gradients == own
    assert own <= cost.weights < 1.01 * own
    assert 2 * own <= cost.optimizer < 2.01 * own, "Adam keeps two numbers a weight"
    assert cost.checkpoint == cost.weights + cost.optimizer
    assert cost.step > 0 and cost.look > 0


def test_an_average_doubles_the_weights_and_frozen_ones_do_not_learn_at_first() -> None:
    plain, rich = measure(), measure(replace(SMALL, optim=OptimConfig(ema=0.9, freeze_epochs=1)))
    assert rich.weights == 2 * plain.weights
    assert rich.learning < rich.parameters
    assert rich.gradients == plain.gradients, "they learn in the end"


def test_memory_grows_with_the_batch_and_falls_with_accumulation_and_workers() -> None:
    large = replace(SMALL, sample=SampleConfig(batch_size=24))
    parts = replace(large, optim=OptimConfig(accumulate=3))
    plain, more, less, shared = measure(), measure(large), measure(parts), measure(large, workers=2)
    assert more.activations == 2 * plain.activations
    assert less.activations == more.activations // 3
    assert shared.activations == plain.activations
    assert shared.gradients == 2 * plain.gradients, "DDP has a copy"


def test_memory_falls_with_checkpointing_and_with_half_precision() -> None:
    plain = footprint.activations(SMALL, TARGETS)
    assert footprint.activations(replace(SMALL, speed=SpeedConfig(grad_checkpointing=True)), TARGETS) < 0.8 * plain
    for precision in ("bf16", "fp16"):
        speed = SpeedConfig(precision=precision)
        assert footprint.activations(replace(SMALL, speed=speed), TARGETS) < 0.9 * plain


@pytest.mark.parametrize("again", [False, True])
def test_the_count_is_the_peak_of_what_lives(again: bool) -> None:
    x = torch.ones(1000, requires_grad=True)

    def chain(y: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            y = y.exp().neg()
        return y

    with footprint._Living([x]) as living:
        y = checkpoint(chain, x, use_reentrant=False) if again else chain(x)
        before = living.now
        y.sum().backward()  # type: ignore[no-untyped-call]
    # exp keeps its result, neg nothing: ten tensors, or only the last one where they are made again.
    assert before == (4000 if again else 4000 * 11)
    assert living.peak >= 4000 * 10
    del y
    assert living.now == 4000, "the gradient"


def test_the_largest_part_of_a_batch_and_its_largest_pass() -> None:
    config = replace(SMALL, sample=SampleConfig(batch_size=16), optim=OptimConfig(accumulate=4))
    assert footprint.largest(config, 3) == (6, 2)
    mixed = replace(config, augment=AugmentConfig(mixup=0.2), optim=OptimConfig(accumulate=2))
    assert footprint.largest(mixed, 3) == (6, 4)


def test_a_compiled_network_and_16_bit_images_are_measured_too() -> None:
    config = replace(
        SMALL,
        decode=replace(SMALL.decode, depth=16),
        speed=SpeedConfig(compile=True, precision="fp16"),
        model=ModelConfig(arch="test_resnet", pretrained=False),
    )
    assert measure(config).activations > 0
