import json
from pathlib import Path

import pytest
import torch

from mammoray import checkpoint, model
from mammoray.checkpoint import ModelCard, Snapshot
from mammoray.config import DecodeConfig
from mammoray.errors import CheckpointError
from mammoray.recipe import ModelConfig

RANDOM = ModelConfig(arch="test_resnet", pretrained=False)


def network(loss: str = "cross_entropy", config: ModelConfig = RANDOM) -> model.DensityNet:
    return model.build(config, loss, "density", 4)


def card(net: model.DensityNet, config: ModelConfig = RANDOM) -> ModelCard:
    return checkpoint.card_of(net, config, classes="density", decode=DecodeConfig(), split_digest="d" * 16, epoch=3)


def written(folder: Path, net: model.DensityNet, config: ModelConfig = RANDOM) -> Path:
    checkpoint.write(folder, Snapshot(card=card(net, config), model=net.state_dict()))
    return folder


@pytest.mark.parametrize("loss", ["cross_entropy", "corn", "coral"])
def test_a_checkpoint_gives_back_network_and_card(tmp_path: Path, loss: str) -> None:
    config = ModelConfig(arch="test_resnet", pretrained=False, auxiliary=("view",))
    net = network(loss, config)
    loaded, read = checkpoint.load_model(written(tmp_path, net, config))
    x = torch.rand(2, 1, 64, 48)
    assert read == card(net, config)
    assert torch.equal(loaded.log_probabilities(x), net.eval().log_probabilities(x))


def test_it_holds_tensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, network())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.json",
        "model.safetensors",
        "state.json",
        "training.safetensors",
    ]
    assert set(json.loads((tmp_path / "model.json").read_text())) >= {
        "format", "version", "model", "classes", "decode", "mean", "std", "split_digest", "epoch", "loss",
    }  # fmt: skip


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = network()
    other = ModelConfig(arch="test_convnext", pretrained=False)
    checkpoint.write(tmp_path, Snapshot(card=card(net, other), model=net.state_dict()))
    with pytest.raises(CheckpointError, match=r"missing.*unknown"):
        checkpoint.load_model(tmp_path)
    state = net.state_dict()
    del state["backbone.fc.bias"]
    checkpoint.write(tmp_path, Snapshot(card=card(net), model=state))
    with pytest.raises(CheckpointError, match=r"1 missing \(backbone.fc.bias\)"):
        checkpoint.load_model(tmp_path)


def test_damaged_and_foreign_files_are_errors(tmp_path: Path) -> None:
    written(tmp_path, network())
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match=r"format 2, found format 99"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        checkpoint.load_model(tmp_path / "none")


def test_every_difference_is_listed(tmp_path: Path) -> None:
    net = network()
    wanted = {
        "decode": DecodeConfig(height=256, window="none"),
        "model": ModelConfig(arch="resnet18", dropout=0.5),
        "classes": "binary",
        "split_digest": "e" * 16,
    }
    with pytest.raises(CheckpointError) as caught:
        checkpoint.require_equal(tmp_path, card(net), wanted)
    for part in (
        "decode.height 256",
        "decode.window none",
        "model.arch resnet18",
        "classes binary",
        "split_digest eee",
    ):
        assert part in caught.value.expected, part
    for part in ("decode.height 512", "decode.window voi", "model.arch test_resnet", "classes density"):
        assert part in caught.value.found, part
    assert "dropout" not in str(caught.value), "it changes no weight's meaning"
    checkpoint.require_equal(tmp_path, card(net), {"decode": DecodeConfig(), "model": ModelConfig(arch="test_resnet")})


def test_a_weights_file_with_code_in_it_does_not_run(tmp_path: Path) -> None:
    written(tmp_path, network())
    torch.save({"a": _Evil()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        checkpoint.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, ("ran",))
