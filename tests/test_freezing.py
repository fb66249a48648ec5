from typing import Any

import pytest
import timm
import torch
from torch import nn

from mammoray import freezing, optim
from mammoray.errors import ModelError
from mammoray.recipe import OptimConfig
from tests.nets import SMALL, Net, moved, snapshot, train_step

STAGED = OptimConfig(freeze_epochs=1, stage_epochs=2)


def trained(net: nn.Module, config: OptimConfig, epoch: int) -> set[str]:
    """Names of what two steps of an epoch change."""
    freezing.apply(net, config, epoch)
    before, optimizer = snapshot(net), optim.build(net, config, fused=False)
    for seed in range(2):
        train_step(net, optimizer, seed)
    return moved(before, net)


def in_training(net: nn.Module, kind: type[nn.Module]) -> list[bool]:
    return [module.training for module in net.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("arch", [*timm.list_models("test_*"), "resnet14t"])
def test_every_parameter_is_in_one_stage_or_in_the_classifier(arch: str) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(arch, num_classes=4)
    parts = freezing.stages(backbone)
    listed = [name for part in parts for name in part] + sorted(freezing.classifier(backbone))
    assert sorted(listed) == sorted(name for name, _ in backbone.named_parameters())
    assert len(parts) >= 4
    assert len(freezing.classifier(backbone)) == 2


def test_the_norm_before_the_classifier_belongs_to_the_last_stage_and_the_stem_to_the_first() -> None:
    parts = freezing.stages(timm.create_model("test_convnext", num_classes=4))
    assert {"head.norm.weight", "stages.3.blocks.0.conv_dw.weight"} <= set(parts[-1])
    assert "stem.0.weight" in parts[0]
    assert len(parts) == 5


def test_both_classifiers_of_a_distilled_model_are_heads() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("levit_128", num_classes=4)
    assert {name.split(".")[0] for name in freezing.classifier(backbone)} == {"head", "head_dist"}


@pytest.mark.parametrize("arch", SMALL)
def test_in_a_frozen_epoch_only_the_heads_change_and_afterwards_all_does(arch: str) -> None:
    net = Net(arch)
    config = OptimConfig(freeze_epochs=1, lr=0.01)
    assert trained(net, config, 1) == freezing.heads(net)
    assert freezing.heads(net) == {"backbone." + n for n in freezing.classifier(net.backbone)} | {
        "side.weight",
        "side.bias",
    }
    # A bias in front of a batch norm, or a gain behind a dead unit, may have no gradient at all: nearly all is enough.
    names = set(net.state_dict())
    assert len(trained(net, config, 2)) > 0.9 * len(names)


def test_unfreezing_moves_batch_norm_statistics_too() -> None:
    net = Net("test_resnet")
    config = OptimConfig(freeze_epochs=1)
    assert not any("running" in name or "tracked" in name for name in trained(net, config, 1))
    assert {name for name in net.state_dict() if "running" in name} <= trained(net, config, 2)


@pytest.mark.parametrize("arch", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_stages_are_added_from_the_last_to_the_first_and_stay(arch: str) -> None:
    net = Net(arch)
    parts = freezing.stages(net.backbone)
    expected = freezing.heads(net)
    assert freezing.learning(net, STAGED, 1) == expected
    for i, part in enumerate(reversed(parts)):
        expected = expected | {f"backbone.{name}" for name in part}
        for epoch in (2 + 2 * i, 3 + 2 * i):
            assert freezing.learning(net, STAGED, epoch) == expected
    assert expected == {name for name, _ in net.named_parameters()}
    last = 1 + 2 * len(parts)
    assert all(freezing.learning(net, STAGED, epoch) == expected for epoch in range(last, last + 12))


def test_without_frozen_epochs_the_last_stage_learns_from_the_first_epoch_on() -> None:
    net = Net("test_resnet")
    names = freezing.learning(net, OptimConfig(stage_epochs=1), 1)
    assert "backbone.layer4.0.conv1.weight" in names
    assert "backbone.layer3.0.conv1.weight" not in names


def test_a_step_of_a_half_frozen_network_leaves_frozen_stages_and_their_statistics_as_they_are() -> None:
    net = Net("test_efficientnet")
    changed = trained(net, STAGED, 4)
    stages = {name.split(".")[2] for name in changed if name.startswith("backbone.blocks.")}
    assert stages == {"3", "4"}
    assert not {name for name in changed if name.startswith(("backbone.conv_stem", "backbone.bn1"))}
    assert "backbone.blocks.3.0.bn1.running_mean" in changed


def test_dropout_and_drop_path_are_off_in_frozen_stages_and_on_before_the_classifier() -> None:
    net = Net("test_convnext")
    freezing.apply(net, STAGED, 1)
    assert net.backbone.head.drop.training
    paths: type[Any] = type(net.backbone.stages[3].blocks[1].drop_path)
    assert len(in_training(net, paths)) > 2
    assert not any(in_training(net, paths))
    freezing.apply(net, STAGED, 2)
    assert net.backbone.stages[3].blocks[1].drop_path.training
    assert not net.backbone.stages[2].blocks[1].drop_path.training
    freezing.apply(net, STAGED, 99)
    assert all(in_training(net, nn.Module))


def test_frozen_features_are_the_same_in_training_and_in_validation() -> None:
    net = Net("test_efficientnet")
    freezing.apply(net, OptimConfig(freeze_epochs=1), 1)
    x_B1HW = torch.rand(2, 1, 64, 64)
    trained_features = net.backbone.forward_features(x_B1HW)
    net.eval()
    assert torch.equal(trained_features, net.backbone.forward_features(x_B1HW))


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_frozen_norms_neither_learn_nor_move_through_all_epochs(arch: str) -> None:
    net = Net(arch)
    norms = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms
    config = OptimConfig(freeze_norm=True, freeze_epochs=1, lr=0.01)
    for epoch in (1, 2):
        changed = trained(net, config, epoch)
        assert changed
        assert not {name for name in changed if name.rpartition(".")[0] in norms}
    assert not any(in_training(net, nn.BatchNorm2d))
    # Only the norm itself sleeps: the convolutions beside it learn, and dropout is on.
    assert all(module.training for module in net.modules() if not isinstance(module, nn.BatchNorm2d))
    assert any("conv" in name and name.startswith("backbone.") for name in changed)


def test_layer_norms_learn_although_batch_norms_are_frozen() -> None:
    net = Net("test_convnext")
    everything = {name for name, _ in net.named_parameters()}
    assert freezing.learning(net, OptimConfig(freeze_norm=True), 1) == everything


def test_apply_tells_when_other_parameters_learn_than_before() -> None:
    net = Net("test_resnet")
    assert [freezing.apply(net, STAGED, epoch) for epoch in range(1, 7)] == [True, True, False, True, False, True]
    assert not freezing.apply(Net("test_resnet"), OptimConfig(), 1)


def test_apply_brings_a_validated_network_back_to_training() -> None:
    net = Net("test_resnet").eval()
    freezing.apply(net, OptimConfig(), 1)
    assert all(in_training(net, nn.Module))


def test_a_weight_that_is_frozen_again_is_not_moved_by_an_old_gradient() -> None:
    net = Net("test_resnet")
    optimizer = optim.build(net, OptimConfig(), fused=False)
    train_step(net, optimizer, 0)
    freezing.apply(net, OptimConfig(freeze_epochs=1), 1)
    before = snapshot(net)
    optimizer.step()
    assert moved(before, net) == freezing.heads(net)


def test_a_model_without_known_stages_is_refused_before_the_first_epoch() -> None:
    with torch.device("meta"):
        nets = [Net("pit_ti_224"), Net("rdnet_tiny")]
    for net in nets:
        assert freezing.learning(net, OptimConfig(freeze_epochs=1), 1) == freezing.heads(net)
        with pytest.raises(ModelError, match="--stage-epochs"):
            freezing.learning(net, STAGED, 1)
