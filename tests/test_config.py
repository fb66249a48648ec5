from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mammoray import config as configs
from mammoray.config import Config, ModelConfig, SampleConfig, Scale, SplitConfig, SynthConfig, TrainConfig
from mammoray.errors import ConfigError


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
    source = Path(configs.__file__).read_text(encoding="utf-8")
    for name in leaves(kind):
        declared = source.index(f"\n    {name}: ")
        following = source[declared + 1 :].split("\n", 2)[1]
        assert following.startswith('    """'), name


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
        lambda: TrainConfig(lr=0.0),
        lambda: TrainConfig(label_smoothing=1.0),
        lambda: ModelConfig(dropout=1.0),
        lambda: ModelConfig(channels=2),  # type: ignore[arg-type]
        lambda: Scale(num_workers=0),
        lambda: Config(sample=SampleConfig(sampler="balanced"), train=TrainConfig(class_weights=True)),
    ],
)
def test_settings_out_of_range_are_errors(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
