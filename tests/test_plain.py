from pathlib import Path

import pytest

from mammoray import plain
from mammoray.config import Config, SplitConfig
from mammoray.errors import ConfigError
from mammoray.recipe import ModelConfig, OptimConfig, TrainConfig


def test_toml_gives_back_an_equal_config(tmp_path: Path) -> None:
    config = Config(
        classes="binary",
        seed=7,
        split=SplitConfig(folds=4, fold=2, split_file=Path("split.csv")),
        model=ModelConfig(arch="resnet50", weights=Path("w.safetensors"), auxiliary=("view", "age")),
        optim=OptimConfig(lr=1.0),
        train=TrainConfig(epochs=3, trackers=()),
    )
    file = tmp_path / "config.toml"
    file.write_text(plain.to_toml(config), encoding="utf-8")
    assert plain.load_toml(file) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour"),
        ("[train]\nlearning_rate = 1.0", "learning_rate"),
        ('[optim]\nlr = "fast"', "lr"),
        ('[model]\nauxiliary = "view"', "auxiliary"),
        ('[model]\nauxiliary = ["weight"]', "--auxiliary"),
        ("[train]\nepochs = true", "epochs"),
        ('[decode]\nwindow = "nice"', "--window"),
        ("train = 3", "train"),
        ("seed = ", "TOML"),
    ],
)
def test_a_wrong_config_file_is_an_error_that_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=named):
        plain.load_toml(file)


def test_a_missing_config_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        plain.load_toml(tmp_path / "none.toml")


def test_the_digest_depends_on_values_alone() -> None:
    assert plain.digest(Config()) == plain.digest(Config(seed=0))
    assert plain.digest(Config()) != plain.digest(Config(seed=1))
