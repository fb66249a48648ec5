from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mammoray import model as models
from mammoray.errors import ModelError
from mammoray.recipe import ModelConfig

RANDOM = ModelConfig(arch="test_resnet", pretrained=False)


def build(config: ModelConfig = RANDOM, loss: str = "cross_entropy", seed: int = 0) -> models.DensityNet:
    return models.build(config, loss, "density", seed)


@pytest.mark.parametrize("arch", ["efficientnet_b0", "resnet50"])
def test_the_usual_architectures_take_grey_images(arch: str) -> None:
    net = build(ModelConfig(arch=arch, pretrained=False)).eval()
    assert net(torch.rand(2, 1, 64, 48))[models.DENSITY].shape == (2, 4)
    binary = models.build(ModelConfig(arch=arch, pretrained=False, channels=3), "cross_entropy", "binary", 0).eval()
    assert binary(torch.rand(2, 1, 64, 48))[models.DENSITY].shape == (2, 2)


def test_the_seed_decides_the_initial_weights() -> None:
    first, same, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_an_unknown_architecture_is_an_error_that_suggests_others() -> None:
    with pytest.raises(ModelError, match=r"resnet_big.*resnet"):
        build(ModelConfig(arch="resnet_big"))


def test_no_model_hub_is_an_error_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"--weights FILE, or --no-pretrained"):
        build(ModelConfig(arch="test_resnet"))


@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_weights_file_is_loaded_whole_but_for_the_classifier(tmp_path: Path, form: str, channels: int) -> None:
    import timm

    torch.manual_seed(5)
    given = timm.create_model("test_resnet", num_classes=10, in_chans=3).state_dict()
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(given, file)
    else:
        torch.save({"state_dict": given} if form == "wrapped" else given, file)
    config = ModelConfig(arch="test_resnet", weights=file, channels=channels)  # type: ignore[arg-type]
    own = build(config).backbone.state_dict()
    assert own["fc.weight"].shape[0] == 4
    for name, tensor in given.items():
        if name == "conv1.0.weight" and channels == 1:
            assert torch.allclose(own[name], tensor.sum(dim=1, keepdim=True))
        elif not name.startswith("fc."):
            assert torch.equal(own[name], tensor), name


def test_weights_of_another_architecture_are_an_error_that_lists_the_differences(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(build(RANDOM).backbone.state_dict(), file)
    with pytest.raises(ModelError, match=r"missing.*unknown"):
        build(ModelConfig(arch="test_convnext", weights=file))
    with pytest.raises(ModelError, match="no file"):
        build(ModelConfig(arch="test_resnet", weights=tmp_path / "none.pth"))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))  # type: ignore[return-value]


def test_a_weights_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ModelError):
        build(ModelConfig(arch="test_resnet", weights=tmp_path / "w.pth"))
    assert not (tmp_path / "evil").exists()


class TestHeads:
    @pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 4), ("focal", 4), ("corn", 3), ("coral", 3)])
    def test_the_loss_decides_the_outputs_and_probabilities_add_up_to_one(self, loss: str, outputs: int) -> None:
        net = build(loss=loss).eval()
        x = torch.rand(2, 1, 64, 48)
        assert net(x)[models.DENSITY].shape == (2, outputs)
        assert torch.allclose(net.log_probabilities(x).exp().sum(dim=1), torch.ones(2), atol=1e-5)
        assert net.log_probabilities(x).shape == (2, 4)

    def test_coral_has_one_score_and_its_thresholds_learn(self) -> None:
        net = build(loss="coral")
        difference = net(torch.rand(3, 1, 64, 48))[models.DENSITY].diff(dim=1)
        assert torch.allclose(difference, net.thresholds.diff().expand(3, -1), atol=1e-6)
        assert net.thresholds.requires_grad

    @pytest.mark.parametrize("arch", ["test_resnet", "test_convnext", "test_efficientnet"])
    def test_auxiliary_heads_leave_the_density_as_it_was(self, arch: str) -> None:
        plain = build(ModelConfig(arch=arch, pretrained=False)).eval()
        tasks = build(ModelConfig(arch=arch, pretrained=False, auxiliary=("view", "laterality", "age"))).eval()
        tasks.load_state_dict(plain.state_dict(), strict=False)
        x = torch.rand(2, 1, 64, 48)
        outputs = tasks(x)
        assert torch.allclose(outputs[models.DENSITY], plain(x)[models.DENSITY], atol=1e-5)
        assert {name: tuple(v.shape) for name, v in outputs.items()} == {
            models.DENSITY: (2, 4),
            "view": (2, 3),
            "laterality": (2, 2),
            "age": (2, 1),
        }

    def test_an_architecture_that_has_no_features_for_them_is_an_error(self) -> None:
        # Its classifiers are two, and their mean is the output.
        arch = "deit_tiny_distilled_patch16_224"
        with pytest.raises(ModelError, match="--auxiliary"):
            build(ModelConfig(arch=arch, pretrained=False, auxiliary=("view",)))

    def test_drop_path_leaves_blocks_out_in_training_only(self) -> None:
        net = build(ModelConfig(arch="test_resnet", pretrained=False, dropout=0.0, drop_path=0.9))
        x = torch.rand(64, 1, 64, 48)
        x[:] = x[:1]
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().weight.data.fill_(1.0)  # Residual branches begin with zero.
        assert float(net(x)[models.DENSITY].std(dim=0).max()) > 1e-3
        assert float(net.eval()(x)[models.DENSITY].std(dim=0).max()) < 1e-4

    def test_drop_path_where_there_is_none_is_an_error(self) -> None:
        with pytest.raises(ModelError, match="--drop-path 0"):
            build(ModelConfig(arch="vgg11", pretrained=False, drop_path=0.1))


def test_a_checkpoint_s_folder_gives_its_weights(tmp_path: Path) -> None:
    given = build(ModelConfig(arch="test_resnet", pretrained=False, auxiliary=("age",)), loss="coral", seed=5)
    safetensors.torch.save_file(given.state_dict(), tmp_path / "model.safetensors")
    own = build(ModelConfig(arch="test_resnet", weights=tmp_path))
    for name, tensor in given.backbone.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(own.backbone.state_dict()[name], tensor), name


def test_sixteen_bit_images_become_unit_floats() -> None:
    x = torch.from_numpy(np.array([0, 65535], dtype=np.uint16))
    assert models.to_unit(x).tolist() == [0.0, 1.0]
    assert models.to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
