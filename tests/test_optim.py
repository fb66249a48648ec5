import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args, get_type_hints

import pytest
import safetensors.torch
import timm
import torch
from timm.optim import param_groups_layer_decay

from mammoray import freezing, optim
from mammoray.errors import CheckpointError, ConfigError, ModelError
from mammoray.recipe import OptimConfig
from tests.nets import SMALL, Net, moved, snapshot, train_step

Kind = Literal["adamw", "sgd", "nadamw", "lamb", "lion"]
KINDS: tuple[Kind, ...] = get_args(get_type_hints(OptimConfig)["optimizer"])
LR = 0.01


def by_name(optimizer: torch.optim.Optimizer, key: str) -> dict[str, Any]:
    return {name: group[key] for group in optimizer.param_groups for name in group["param_names"]}


def scales(net: Net, **settings: Any) -> dict[str, float]:
    return by_name(optim.build(net, OptimConfig(lr=LR, **settings), fused=False), "lr_scale")


def plateau(history: Sequence[float | None], patience: int = 2, min_delta: float = 0.0) -> int:
    return optim.drops(history, patience, min_delta)


@pytest.mark.parametrize("arch", [*SMALL, "test_vit"])
def test_every_parameter_is_in_one_group_frozen_or_not(arch: str) -> None:
    net = Net(arch)
    freezing.apply(net, OptimConfig(freeze_epochs=1), 1)
    optimizer = optim.build(net, OptimConfig(layer_decay=0.8), fused=False)
    inside = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(inside) == sorted(id(parameter) for parameter in net.parameters())


def test_the_order_of_groups_and_parameters_is_the_same_each_time() -> None:
    first, second = (
        [group["param_names"] for group in optim.build(Net("test_resnet"), OptimConfig(), fused=False).param_groups]
        for _ in range(2)
    )
    assert first == second
    assert len(first) == 2


def test_weight_decay_is_on_matrices_and_kernels_only_and_not_where_the_model_says_so() -> None:
    net = Net("test_vit")
    decay = by_name(optim.build(net, OptimConfig(weight_decay=0.1), fused=False), "weight_decay")
    for name, parameter in net.named_parameters():
        excluded = parameter.ndim <= 1 or name in ("backbone.pos_embed", "backbone.cls_token")
        assert decay[name] == (0.0 if excluded else 0.1), name
    assert "backbone.pos_embed" in decay


def test_layer_decay_gives_the_scales_of_timm_growing_from_the_stem_to_the_head() -> None:
    net = Net("test_convnext")
    found = scales(net, layer_decay=0.7)
    for group in param_groups_layer_decay(net.backbone, layer_decay=0.7):
        members = {id(parameter) for parameter in group["params"]}
        for name, parameter in net.named_parameters():
            assert id(parameter) not in members or found[name] == pytest.approx(group["lr_scale"]), name
    layers = freezing.grouped(net.backbone, coarse=False)
    by_layer = [{found[f"backbone.{name}"] for name in layer} for layer in layers]
    assert all(len(layer) == 1 for layer in by_layer)
    ordered = [layer.pop() for layer in by_layer]
    assert all(later == pytest.approx(earlier / 0.7) for earlier, later in pairwise(ordered))
    assert ordered[-1] == 1.0
    assert found["side.weight"] == 1.0


def test_the_heads_have_their_own_rate_whatever_the_layer_decay() -> None:
    net = Net("test_resnet")
    for decay in (1.0, 0.5):
        found = scales(net, head_lr=10 * LR, layer_decay=decay)
        assert {found[name] for name in freezing.heads(net)} == {10.0}
        assert max(scale for name, scale in found.items() if name not in freezing.heads(net)) <= 1.0
    assert set(scales(net).values()) == {1.0}


def test_set_rate_keeps_the_ratios_of_the_groups() -> None:
    optimizer = optim.build(Net("test_resnet"), OptimConfig(lr=LR, head_lr=0.1, layer_decay=0.5), fused=False)
    assert by_name(optimizer, "lr")["side.weight"] == pytest.approx(0.1)
    optim.set_rate(optimizer, LR / 2)
    rates, shares = by_name(optimizer, "lr"), by_name(optimizer, "lr_scale")
    assert all(rates[name] == LR / 2 * shares[name] for name in rates)
    assert rates["side.weight"] == pytest.approx(0.05)


def test_layer_decay_of_a_model_without_known_layers_is_an_error() -> None:
    with torch.device("meta"):
        net = Net("pit_ti_224")
    with pytest.raises(ModelError, match="leave --layer-decay at 1"):
        optim.build(net, OptimConfig(layer_decay=0.9), fused=False)
    assert set(scales(net).values()) == {1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_every_kind_of_optimiser_and_a_rate_of_zero_none(kind: Kind) -> None:
    net = Net("test_resnet")
    optimizer = optim.build(net, OptimConfig(optimizer=kind, lr=LR), fused=False)
    optim.set_rate(optimizer, 0.0)
    before = snapshot(net)
    train_step(net, optimizer, 0)
    assert {name for name in moved(before, net) if "running" not in name and "tracked" not in name} == set()
    optim.set_rate(optimizer, LR)
    train_step(net, optimizer, 1)
    # Behind a norm that begins at zero there is no gradient yet.
    pushed = {name for name, parameter in net.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert len(pushed) > 20
    assert pushed <= moved(before, net)


def test_lamb_leaves_the_clipping_of_gradients_to_its_own_setting() -> None:
    net = Net("test_resnet")
    optimizer = optim.build(net, OptimConfig(optimizer="lamb", lr=LR), fused=False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    tensors, _ = optim.state_tensors(optimizer)
    torch.testing.assert_close(tensors["exp_avg.side.weight"], torch.full((2, 4), 0.5))


def test_sgd_has_nesterov_momentum_and_may_go_without() -> None:
    assert optim.build(Net("test_resnet"), OptimConfig(optimizer="sgd"), fused=False).defaults["nesterov"]
    plain = optim.build(Net("test_resnet"), OptimConfig(optimizer="sgd", momentum=0.0), fused=False)
    assert plain.defaults["momentum"] == 0.0


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_fused_form_takes_the_same_step(kind: Kind) -> None:
    plain, fused = Net("test_resnet"), Net("test_resnet")
    for net, form in ((plain, False), (fused, True)):
        optimizer = optim.build(net, OptimConfig(optimizer=kind, lr=LR), fused=form)
        train_step(net, optimizer, 0)
        assert bool(optimizer.param_groups[0]["fused"]) == form
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nadamw", "lamb", "lion"])
def test_fused_without_a_fused_form_is_an_error_that_names_the_flag(kind: Kind) -> None:
    with pytest.raises(ConfigError, match=f"--fused: .*adamw, sgd.*{kind}"):
        optim.build(Net("test_resnet"), OptimConfig(optimizer=kind), fused=True)


def curve(config: OptimConfig, steps: int, epochs: int, drops: int = 0) -> list[float]:
    return [optim.rate(config, step, steps, epochs, drops) for step in range(steps * epochs)]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0, 2.5, 4.0, 9.0])
@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_the_warm_up_climbs_by_equal_steps_to_the_peak(
    warmup: float, schedule: Literal["cosine", "plateau", "constant"]
) -> None:
    config = OptimConfig(lr=LR, warmup_epochs=warmup, schedule=schedule)
    rates = curve(config, 10, 4)
    climbing = round(warmup * 10)
    assert rates[:climbing] == pytest.approx([LR * (i + 1) / climbing for i in range(min(climbing, 40))])
    assert max(rates) <= LR
    if schedule == "cosine":
        assert rates.count(LR) == (climbing <= 40)
    else:
        assert all(value == LR for value in rates[climbing:])


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_cosine_falls_from_the_peak_to_just_above_its_floor(floor: float) -> None:
    rates = curve(OptimConfig(lr=LR, warmup_epochs=1, min_lr=floor), 50, 10)
    falling = rates[49:]
    assert all(later < earlier for earlier, later in pairwise(falling))
    assert floor * LR < rates[-1] < (floor + 1e-4) * LR
    middle = falling[len(falling) // 2]
    assert middle == pytest.approx(LR * (1 + floor) / 2, rel=0.02)


def test_a_plateau_lowers_the_rate_by_its_factor_but_not_below_its_floor() -> None:
    config = OptimConfig(lr=LR, schedule="plateau", plateau_factor=0.5, min_lr=0.2, warmup_epochs=0)
    assert [optim.rate(config, 5, 10, 10, drops) / LR for drops in range(4)] == pytest.approx([1, 0.5, 0.25, 0.2])


def test_a_plateau_is_as_many_epochs_as_the_patience_and_then_counts_anew() -> None:
    assert [plateau([1.0] * n) for n in range(1, 8)] == [0, 0, 1, 1, 2, 2, 3]
    assert plateau([1.0, 0.9, 1.1, 1.0, 1.2, 1.1]) == 0
    assert plateau([1.0, 0.9, 0.8, 0.7, 2.0, 0.7, 0.7]) == 2


def test_the_number_of_drops_never_falls_as_the_history_grows() -> None:
    torch.manual_seed(0)
    history = [float(value) for value in torch.rand(60)]
    counts = [plateau(history[:n]) for n in range(len(history) + 1)]
    assert all(0 <= later - earlier <= 1 for earlier, later in pairwise(counts))
    assert counts[-1] > 5


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
def test_an_epoch_without_a_score_is_no_improvement(nothing: float | None) -> None:
    assert optim.stale([0.5, nothing, nothing], 0.0) == 2
    assert optim.stale([nothing, nothing], 0.0) == 2
    assert optim.stale([nothing, 0.1], 0.0) == 0
    assert plateau([0.5, nothing, nothing]) == 1


def test_an_improvement_is_more_than_the_least_difference_above_the_last_improvement() -> None:
    assert optim.stale([0.5, 0.5], 0.0) == 1
    assert optim.stale([0.5, 0.51], 0.0) == 0
    assert optim.stale([0.5, 0.55], 0.1) == 1
    # Small gains add up: 0.62 is more than 0.1 above 0.5, although not above 0.58.
    assert optim.stale([0.5, 0.55, 0.58, 0.62], 0.1) == 0
    assert optim.stale([], 0.0) == 0


FORMS = [(kind, "plain") for kind in KINDS]
FORMS += [("adamw", "fused"), ("sgd", "fused"), ("lamb", "channels_last"), ("adamw", "channels_last")]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_loaded_optimiser_goes_on_bit_by_bit(kind: Kind, form: str) -> None:
    frozen = kind != "lamb"  # Which is refused with a frozen backbone.
    config = OptimConfig(optimizer=kind, lr=1e-3, layer_decay=0.9, freeze_epochs=int(frozen))
    layout = torch.channels_last if form == "channels_last" else torch.contiguous_format

    def fresh() -> tuple[Net, torch.optim.Optimizer]:
        net: Net = Net("test_efficientnet").to(memory_format=layout)
        return net, optim.build(net, config, fused=form == "fused")

    def go(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
        # A frozen backbone has no state in the first two steps.
        freezing.apply(net, config, 1 if step < 2 else 2)
        optim.set_rate(optimizer, optim.rate(config, step, 2, 4, 0))
        train_step(net, optimizer, step)

    straight, first = fresh()
    saved, kept = {}, {}
    for step in range(5):
        go(straight, first, step)
        if step in (1, 3):
            tensors, values = optim.state_tensors(first)
            saved[step] = safetensors.torch.save(tensors), json.dumps(values), snapshot(straight)
            kept[step] = tensors, {name: tensor.clone() for name, tensor in tensors.items()}
    assert [any("backbone.conv_stem" in name for name in kept[stop][0]) for stop in kept] == [not frozen, True]
    for stop, (state, numbers, weights) in saved.items():
        resumed, second = fresh()
        resumed.load_state_dict(weights)
        read = safetensors.torch.load(state)
        optim.load_state(second, read, json.loads(numbers))
        for step in range(stop + 1, 5):
            go(resumed, second, step)
        assert moved(snapshot(straight), resumed) == set()
        # Neither who saves nor who loads goes on in the same memory.
        for tensors in (kept[stop][0], read):
            assert all(torch.equal(tensors[name], tensor) for name, tensor in kept[stop][1].items())


def test_the_state_of_lamb_has_the_steps_that_it_counts_by_group() -> None:
    net = Net("test_resnet")
    optimizer = optim.build(net, OptimConfig(optimizer="lamb"), fused=False)
    for seed in range(3):
        train_step(net, optimizer, seed)
    tensors, values = optim.state_tensors(optimizer)
    assert [float({**tensors, **values}[f"step.#{i}"]) for i in range(2)] == [3.0, 3.0]  # type: ignore[arg-type]


def test_a_state_of_another_optimiser_or_network_is_refused() -> None:
    net = Net("test_resnet")
    optimizer = optim.build(net, OptimConfig(), fused=False)
    train_step(net, optimizer, 0)
    tensors, values = optim.state_tensors(optimizer)
    with pytest.raises(CheckpointError, match=r"SGD.*AdamW"):
        optim.load_state(optim.build(net, OptimConfig(optimizer="sgd"), fused=False), tensors, values)
    with pytest.raises(CheckpointError, match="none of them"):
        optim.load_state(optim.build(Net("test_convnext"), OptimConfig(), fused=False), tensors, values)
    cut = {name: tensor[:1] if tensor.ndim else tensor for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match="shape"):
        optim.load_state(optim.build(net, OptimConfig(), fused=False), cut, values)


def test_the_average_follows_its_formula_and_copies_counters() -> None:
    net, config = Net("test_resnet"), OptimConfig(ema=0.6, lr=LR)
    optimizer, ema = optim.build(net, config, fused=False), optim.ema_of(net, config)
    assert ema is not None
    expected = {name: value.double() for name, value in snapshot(net).items()}
    for step in range(1, 7):
        train_step(net, optimizer, step)
        optim.update_ema(ema, net, step)
        decay = min(0.6, 1 - step**-0.75)
        for name, value in net.state_dict().items():
            averaged = decay * expected[name] + (1 - decay) * value.double()
            expected[name] = averaged if value.is_floating_point() else value.double()
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert int(ema.module.backbone.bn1.num_batches_tracked) == 6


def test_a_resumed_average_goes_on_bit_by_bit() -> None:
    net, config = Net("test_efficientnet"), OptimConfig(ema=0.9, lr=LR)
    optimizer, straight = optim.build(net, config, fused=False), optim.ema_of(net, config)
    resumed = None
    assert straight is not None
    for step in range(1, 6):
        train_step(net, optimizer, step)
        optim.update_ema(straight, net, step)
        if step == 2:
            resumed = optim.ema_of(Net("test_efficientnet", seed=1), config)
            assert resumed is not None
            resumed.module.load_state_dict(straight.module.state_dict())
        elif resumed is not None:
            optim.update_ema(resumed, net, step)
    assert resumed is not None
    assert moved(snapshot(straight.module), resumed.module) == set()


def test_the_average_is_a_network_that_predicts_and_does_not_learn() -> None:
    net = Net("test_resnet").train()
    ema = optim.ema_of(net, OptimConfig(ema=0.9))
    assert ema is not None
    assert not any(module.training for module in ema.module.modules())
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert torch.equal(ema.module(torch.ones(1, 1, 64, 64)), net.eval()(torch.ones(1, 1, 64, 64)))
    assert optim.ema_of(net, OptimConfig()) is None


def test_timm_still_has_every_optimiser_of_the_settings() -> None:
    assert set(KINDS) <= set(timm.optim.list_optimizers())
