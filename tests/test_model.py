from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mammoray import model as models
from mammoray.config import DecodeConfig, ModelConfig
from mammoray.errors import CheckpointError, ModelError

RANDOM = ModelConfig(arch="test_resnet", pretrained=False)


def card(config: ModelConfig = RANDOM) -> models.ModelCard:
    return models.ModelCard(model=config, classes="density", decode=DecodeConfig(), split_digest="d" * 16, epoch=3)


@pytest.mark.parametrize("arch", ["efficientnet_b0", "resnet50"])
def test_the_usual_architectures_take_grey_images(arch: str) -> None:
    net = models.build(ModelConfig(arch=arch, pretrained=False), "density", 0).eval()
    assert net(torch.rand(2, 1, 64, 48)).shape == (2, 4)
    binary = models.build(ModelConfig(arch=arch, pretrained=False, channels=3), "binary", 0).eval()
    assert binary(torch.rand(2, 1, 64, 48)).shape == (2, 2)


def test_the_seed_decides_the_initial_weights() -> None:
    first, same, other = (models.build(RANDOM, "density", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_an_unknown_architecture_is_an_error_that_suggests_others() -> None:
    with pytest.raises(ModelError, match=r"resnet_big.*resnet"):
        models.build(ModelConfig(arch="resnet_big"), "density", 0)


def test_no_model_hub_is_an_error_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"--weights FILE, or --no-pretrained"):
        models.build(ModelConfig(arch="test_resnet"), "density", 0)


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
    own = models.build(config, "density", 0).backbone.state_dict()
    assert own["fc.weight"].shape[0] == 4
    for name, tensor in given.items():
        if name == "conv1.0.weight" and channels == 1:
            assert torch.allclose(own[name], tensor.sum(dim=1, keepdim=True))
        elif not name.startswith("fc."):
            assert torch.equal(own[name], tensor), name


def test_weights_of_another_architecture_are_an_error_that_lists_the_differences(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(models.build(RANDOM, "density", 0).backbone.state_dict(), file)
    with pytest.raises(ModelError, match=r"missing.*unknown"):
        models.build(ModelConfig(arch="test_convnext", weights=file), "density", 0)
    with pytest.raises(ModelError, match="no file"):
        models.build(ModelConfig(arch="test_resnet", weights=tmp_path / "none.pth"), "density", 0)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))  # type: ignore[return-value]


def test_a_weights_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ModelError):
        models.build(ModelConfig(arch="test_resnet", weights=tmp_path / "w.pth"), "density", 0)
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_gives_back_network_and_card(tmp_path: Path) -> None:
    net = models.build(RANDOM, "density", 4)
    models.save_model(tmp_path, net.state_dict(), card())
    loaded, read = models.load_model(tmp_path)
    x = torch.rand(2, 1, 64, 48)
    assert read == card()
    assert torch.equal(loaded(x), net.eval()(x))


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = models.build(RANDOM, "density", 0).state_dict()
    models.save_model(tmp_path, state, card(ModelConfig(arch="test_convnext", pretrained=False)))
    with pytest.raises(CheckpointError, match="test_convnext"):
        models.load_model(tmp_path)
    del state["backbone.fc.bias"]
    models.save_model(tmp_path, state, card())
    with pytest.raises(CheckpointError):
        models.load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 1"):
        models.load_model(tmp_path)
    with pytest.raises(CheckpointError):
        models.load_model(tmp_path / "none")


def test_the_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def steps(net: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int) -> None:
        for step in range(start, start + count):
            torch.manual_seed(step)
            net.train()(torch.rand(4, 1, 32, 32)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    nets = [models.build(RANDOM, "density", 0) for _ in range(3)]
    first, through, resumed = (torch.optim.AdamW(net.parameters(), lr=1e-2) for net in nets)
    steps(nets[1], through, 4, 0)
    steps(nets[0], first, 2, 0)
    models.save_model(tmp_path, nets[0].state_dict(), card())
    models.save_optimizer(tmp_path, first, {"history": [1]})
    nets[2].load_state_dict(models.load_weights(tmp_path))
    assert models.load_optimizer(tmp_path, resumed) == {"history": [1]}
    steps(nets[2], resumed, 2, 2)
    for a, b in zip(nets[1].parameters(), nets[2].parameters(), strict=True):
        assert torch.equal(a, b)


def test_class_weights_average_to_one_over_the_rows() -> None:
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    weights = models.balanced_weights(labels, 4)
    assert float(weights[labels].mean()) == pytest.approx(1.0)
    assert weights[3] == 0
    assert float(weights[0] / weights[2]) == pytest.approx(6.0)


def test_the_mean_of_the_workers_losses_is_the_loss_of_the_global_batch() -> None:
    logits, target = torch.randn(8, 4), torch.tensor([0, 0, 0, 1, 2, 3, 3, 1])
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7])
    whole = models.loss(logits, target, weights, 0.1)
    halves = [models.loss(logits[i : i + 4], target[i : i + 4], weights, 0.1) for i in (0, 4)]
    assert float(whole) == pytest.approx(float(sum(halves) / 2), rel=1e-6)


def test_sixteen_bit_images_become_unit_floats() -> None:
    x = torch.from_numpy(np.array([0, 65535], dtype=np.uint16))
    assert models.to_unit(x).tolist() == [0.0, 1.0]
    assert models.to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
