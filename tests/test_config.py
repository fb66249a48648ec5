import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mammoray import config as configs
from mammoray import recipe, scale
from mammoray.config import Config, SplitConfig, SynthConfig
from mammoray.errors import ConfigError
from mammoray.recipe import (
    AugmentConfig,
    CollapseConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)
from mammoray.scale import Scale


def leaves(kind: type[Any]) -> list[str]:
    instance = kind()
    return [
        name
        for f in fields(kind)
        for name in (leaves(type(getattr(instance, f.name))) if is_dataclass(getattr(instance, f.name)) else [f.name])
    ]


def test_field_names_are_unique_over_all_sections_because_they_are_flags() -> None:
    names = leaves(Config) + leaves(Scale)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", [Config, Scale, SynthConfig])
def test_every_setting_has_a_description(kind: type[Any]) -> None:
    source = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (configs, recipe, scale))
    for name in leaves(kind):
        # Not the section of the same name in Config.
        assert re.search(rf'\n    {name}: (?!\w+ = field).*\n    """', source), name


@pytest.mark.parametrize(
    "make",
    [
        lambda: SplitConfig(folds=2),
        lambda: SplitConfig(fold=5),
        lambda: SplitConfig(val_share=0.0),
        lambda: SplitConfig(val_share=0.5, test_share=0.5),
        lambda: SplitConfig(test_share=0.2),
        lambda: SplitConfig(val_share=0.2, fold=1),
        lambda: SplitConfig(val_share=0.2, test_share=0.2, test_file=Path("test.csv")),
        lambda: SplitConfig(split_file=Path("split.csv"), test_file=Path("test.csv")),
        lambda: SplitConfig(split_file=Path("split.csv"), val_share=0.2),
        lambda: SplitConfig(test_patients="leave_out"),
        lambda: SampleConfig(batch_size=1),
        lambda: TrainConfig(epochs=0),
        lambda: TrainConfig(epochs=3, stop_epoch=4),
        lambda: TrainConfig(stop_epoch=-1),
        lambda: TrainConfig(train_on="test"),  # type: ignore[arg-type]
        lambda: TrainConfig(train_on="train_and_val", patience=3),
        lambda: TrainConfig(trackers=("paper",)),  # type: ignore[arg-type]
        lambda: OptimConfig(lr=0.0),
        lambda: OptimConfig(head_lr=0.0),
        lambda: OptimConfig(layer_decay=1.5),
        lambda: OptimConfig(accumulate=0),
        lambda: OptimConfig(optimizer="lamb", freeze_epochs=1),
        lambda: OptimConfig(optimizer="adam"),  # type: ignore[arg-type]
        lambda: LossConfig(label_smoothing=1.0),
        lambda: AugmentConfig(flip_vertical=1.5),
        lambda: AugmentConfig(mixup=-0.1),
        lambda: SampleConfig(beta=1.0),
        lambda: CollapseConfig(collapse_share=0.0),
        lambda: ModelConfig(auxiliary=("view", "view")),
        lambda: ModelConfig(auxiliary=("weight",)),  # type: ignore[arg-type]
        lambda: ModelConfig(dropout=1.0),
        lambda: ModelConfig(channels=2),  # type: ignore[arg-type]
        lambda: Config(sample=SampleConfig(sampler="balanced"), loss=LossConfig(class_weights="sqrt")),
        lambda: Config(model=ModelConfig(auxiliary=("laterality",))),
        lambda: Config(model=ModelConfig(auxiliary=("view",)), augment=AugmentConfig(mixup=0.2)),
    ],
)
def test_settings_out_of_range_are_errors(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_two_corrections_of_one_imbalance_are_allowed_where_they_are_meant() -> None:
    both = LossConfig(class_weights="sqrt", double_correction=True)
    assert Config(sample=SampleConfig(sampler="sqrt"), loss=both).loss == both
