from dataclasses import replace as changed
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mammoray import freezing, learner, sample
from mammoray.config import Config, DecodeConfig
from mammoray.errors import ConfigError, ModelError
from mammoray.model import DENSITY
from mammoray.plain import replace
from mammoray.recipe import AugmentConfig, LossConfig, ModelConfig, OptimConfig, SampleConfig, SpeedConfig

CPU = torch.device("cpu")
SMALL = Config(
    decode=DecodeConfig(height=64, width=48),
    sample=SampleConfig(batch_size=8),
    model=ModelConfig(arch="test_resnet", pretrained=False, dropout=0.0),
    augment=AugmentConfig(gamma=0.2, noise=0.05, cutout=0.2),
    optim=OptimConfig(lr=1e-2, clip_grad=0.0, freeze_norm=True),
)
ROWS = 24


def targets() -> dict[str, npt.NDArray[Any]]:
    return {DENSITY: np.arange(ROWS, dtype=np.int64) % 4}


def batch(start: int = 0, stop: int = 8) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(1)
    images = rng.integers(1, 256, (ROWS, 64, 48), dtype=np.uint8)
    images[:, :, 30:] = 0
    return {"row": np.arange(start, stop), "image": images[start:stop]}


def make(config: Config = SMALL, rank: int = 0, workers: int = 1, own: dict[str, Any] | None = None) -> learner.Learner:
    made = learner.make(config, learner.blank(config), own or targets(), CPU, rank, workers)
    # The workers' way but for Ray's DDP, whose averaging the tests of train look at.
    freezing.apply(made.net, config.optim, 1)
    return made


def gradients(config: Config, rank: int = 0, workers: int = 1) -> dict[str, torch.Tensor]:
    """Of this worker's part of the batch; the optimiser's step does not matter."""
    made = make(config, rank, workers)
    first, last = sample.part(config.sample.batch_size, workers, rank, made.unit)
    learner.step(made, batch(first, last), 1, 0, 0.0)
    return {name: p.grad.clone() for name, p in made.net.named_parameters() if p.grad is not None}


VARIANTS = {
    "plain": SMALL,
    "weights": replace(SMALL, loss=LossConfig(class_weights="sqrt", label_smoothing=0.1, soft_labels=0.5)),
    "focal": replace(SMALL, loss=LossConfig(loss="focal")),
    "corn": replace(SMALL, loss=LossConfig(loss="corn")),
    "coral": replace(SMALL, loss=LossConfig(loss="coral")),
    "mixup": replace(SMALL, augment=AugmentConfig(mixup=0.4, noise=0.02)),
    "binary": replace(SMALL, classes="density", loss=LossConfig(loss="corn", label_smoothing=0.05)),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("workers", [2, 3])
def test_the_mean_of_the_workers_gradients_is_the_gradient_of_one(name: str, workers: int) -> None:
    config = VARIANTS[name]
    whole = gradients(config)
    parts = [gradients(config, rank, workers) for rank in range(workers)]
    assert whole.keys() == parts[0].keys()
    for key, gradient in whole.items():
        mean = torch.stack([part[key] for part in parts]).mean(dim=0)
        assert torch.allclose(mean, gradient, rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize("name", ["plain", "mixup", "coral"])
def test_accumulated_passes_give_the_gradient_of_one(name: str) -> None:
    config = VARIANTS[name]
    whole = gradients(config)
    parts = gradients(replace(config, optim=changed(config.optim, accumulate=3)))
    for key, gradient in whole.items():
        assert torch.allclose(parts[key], gradient, rtol=1e-4, atol=1e-6), key


def test_grad_checkpointing_gives_the_same_gradient() -> None:
    config = replace(SMALL, speed=SpeedConfig(grad_checkpointing=True))
    made = learner.blank(config)
    assert made.backbone.grad_checkpointing
    whole, saved = gradients(SMALL), gradients(config)
    for key, gradient in whole.items():
        assert torch.allclose(saved[key], gradient, rtol=1e-4, atol=1e-6), key


def losses_of(made: learner.Learner, steps: int, start: int = 0) -> list[float]:
    values = []
    for number in range(start, start + steps):
        first = number % 3 * 8
        values.append(float(learner.step(made, batch(first, first + 8), 1, number, 0.01).mean()))
    return values


RICH = replace(
    SMALL,
    model=changed(SMALL.model, dropout=0.3, drop_path=0.2),
    optim=OptimConfig(lr=1e-2, ema=0.9, clip_grad=1.0, layer_decay=0.8, head_lr=2e-2),
)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "nadamw", "lamb", "lion"])
def test_a_learner_that_was_restored_goes_on_bit_for_bit(optimizer: str) -> None:
    config = replace(RICH, optim=changed(RICH.optim, optimizer=optimizer))  # type: ignore[arg-type]
    through = make(config)
    losses_of(through, 3)
    kept = learner.state(through)
    expected = losses_of(through, 3, 3)
    resumed = make(config)
    learner.restore(resumed, *kept)
    assert losses_of(resumed, 3, 3) == expected
    for (name, a), b in zip(through.judged.state_dict().items(), resumed.judged.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_state_is_a_copy_that_later_steps_do_not_change() -> None:
    made = make(RICH)
    losses_of(made, 1)
    judged, training, _ = learner.state(made)
    before = {name: tensor.clone() for name, tensor in {**judged, **training}.items()}
    losses_of(made, 2, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in {**judged, **training}.items())


def test_the_random_state_follows_from_seed_epoch_step_and_rank() -> None:
    config = replace(SMALL, model=changed(SMALL.model, dropout=0.5))
    first = losses_of(make(config), 1)
    torch.manual_seed(99)
    assert losses_of(make(config), 1) == first
    assert losses_of(make(replace(config, seed=1)), 1) != first


def test_with_ema_the_average_is_judged_and_trails_the_weights() -> None:
    made = make(RICH)
    start = {name: p.clone() for name, p in made.net.named_parameters()}
    losses_of(made, 10)
    learner.end_epoch(made)
    assert made.judged is not made.net
    far = {name: float((p - start[name]).norm()) for name, p in made.net.named_parameters()}
    near = {name: float((p - start[name]).norm()) for name, p in made.judged.named_parameters()}
    assert sum(near.values()) < sum(far.values())
    for own, other in zip(made.net.buffers(), made.judged.buffers(), strict=True):
        assert torch.equal(own, other)


class TestArithmetic:
    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_lower_precision_is_used_and_comes_near_fp32(self, precision: str) -> None:
        config = replace(SMALL, speed=SpeedConfig(precision=precision))  # type: ignore[arg-type]
        exact, rough = losses_of(make(SMALL), 3), losses_of(make(config), 3)
        assert rough != exact
        assert rough == pytest.approx(exact, rel=0.05)

    def test_fp16_scales_the_loss_and_keeps_the_scale_in_the_state(self) -> None:
        made = make(replace(SMALL, speed=SpeedConfig(precision="fp16")))
        losses_of(made, 2)
        assert learner.state(made)[2]["scaler"]["scale"] > 1
        assert make().scaler.state_dict() == {}

    def test_channels_last_is_the_layout_of_weights_and_images(self) -> None:
        made = make(replace(SMALL, speed=SpeedConfig(channels_last=True)))
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in made.net.parameters() if p.ndim == 4)
        x = learner.to_unit(made, torch.zeros(2, 64, 48, dtype=torch.uint8))
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert losses_of(made, 2) == pytest.approx(losses_of(make(), 2), rel=1e-3)

    def test_tf32_is_set_as_asked(self) -> None:
        for wanted in (True, False):
            make(replace(SMALL, speed=SpeedConfig(tf32=wanted)))
            assert torch.backends.cuda.matmul.allow_tf32 is wanted
            assert torch.backends.cudnn.allow_tf32 is wanted

    def test_a_compiled_network_learns_the_same(self) -> None:
        made = make(replace(SMALL, speed=SpeedConfig(compile=True)))
        assert losses_of(made, 2) == pytest.approx(losses_of(make(), 2), rel=1e-3)
        assert made.net._compiled_call_impl is not None
        assert set(learner.state(made)[0]) == set(make().net.state_dict())

    def test_the_fused_optimiser_is_used_where_asked(self) -> None:
        made = make(replace(SMALL, speed=SpeedConfig(fused=True)))
        assert all(group["fused"] for group in made.optimizer.param_groups)
        assert losses_of(made, 2) == pytest.approx(losses_of(make(), 2), rel=1e-3)

    def test_synchronised_batch_norm_wants_gpus(self) -> None:
        with pytest.raises(ConfigError, match="--sync-batchnorm"):
            make(replace(SMALL, speed=SpeedConfig(sync_batchnorm=True)))

    def test_grad_checkpointing_where_there_is_none_is_an_error(self) -> None:
        config = replace(SMALL, model=ModelConfig(arch="vgg11", pretrained=False))
        with pytest.raises(ModelError, match="--grad-checkpointing"):
            learner.blank(replace(config, speed=SpeedConfig(grad_checkpointing=True)))


def test_sixteen_bit_images_travel_as_they_are() -> None:
    made = make()
    images = learner.to_device(made, np.full((2, 64, 48), 65535, dtype=np.uint16))
    assert images.dtype == torch.uint16
    assert float(learner.to_unit(made, images).max()) == 1.0


def test_auxiliary_heads_learn_beside_the_density_and_missing_answers_do_not_count() -> None:
    config = replace(SMALL, model=changed(SMALL.model, auxiliary=("view", "age")), augment=AugmentConfig(augment=False))
    own = {
        **targets(),
        "view": np.where(np.arange(ROWS) < 4, -1, 0),
        "age": np.full(ROWS, np.nan, dtype=np.float32),
    }
    made = make(config, own=own)
    weight_of = {name: made.net.get_parameter(f"auxiliary.{name}.weight") for name in ("view", "age")}
    before = weight_of["age"].detach().clone()
    first = float(learner.step(made, batch(), 1, 0, 0.01).mean())
    assert np.isfinite(first)
    view = weight_of["view"].grad
    assert view is not None
    assert float(view.abs().sum()) > 0
    age = weight_of["age"].grad
    assert age is None or float(age.abs().sum()) == 0
    assert torch.allclose(before, weight_of["age"], rtol=1e-2)
    heavy = replace(config, loss=LossConfig(auxiliary_weight=5.0))
    assert float(learner.step(make(heavy, own=own), batch(), 1, 0, 0.01).mean()) > first


def test_mirrored_images_change_sides() -> None:
    config = replace(
        SMALL,
        decode=changed(SMALL.decode, orient="none"),
        model=changed(SMALL.model, auxiliary=("laterality",)),
        loss=LossConfig(auxiliary_weight=100.0),
        augment=AugmentConfig(
            flip_horizontal=1.0, flip_vertical=0.0, rotation=0.0, zoom=0.0, shift=0.0, contrast=0.0, brightness=0.0
        ),
    )
    left = {**targets(), "laterality": np.zeros(ROWS, dtype=np.int64)}
    right = {**targets(), "laterality": np.ones(ROWS, dtype=np.int64)}
    plain = replace(config, augment=changed(config.augment, augment=False))
    flipped = batch()
    flipped["image"] = np.ascontiguousarray(flipped["image"][:, :, ::-1])
    mirrored = learner.step(make(config, own=left), batch(), 1, 0, 0.0)
    by_hand = learner.step(make(plain, own=right), flipped, 1, 0, 0.0)
    assert torch.allclose(mirrored, by_hand, rtol=1e-4)
