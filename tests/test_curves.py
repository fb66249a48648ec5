import json
from pathlib import Path

import pytest

from mammoray import curves, plain
from mammoray.config import Config, DataConfig, IngestConfig, SplitConfig
from mammoray.recipe import ModelConfig

PRIVATE = Config(
    data=DataConfig(quarantine=Path("/archive/of/clinic/bad.csv")),
    split=SplitConfig(split_file=Path("/archive/of/clinic/split.csv")),
    ingest=IngestConfig(cache="s3://clinic/cache"),
    model=ModelConfig(weights=Path("/archive/w.safetensors")),
)


def test_train_and_val_of_one_metric_share_a_group() -> None:
    record = {"train_accuracy": 0.5, "val_accuracy": 0.25, "val_view_loss": 1.0, "train_grad_norm": 2.0, "val_auc": 0.5}
    assert curves.points(record) == {
        "accuracy/train": 0.5,
        "accuracy/val": 0.25,
        "view_loss/val": 1.0,
        "train/grad_norm": 2.0,
        "metrics/auc": 0.5,
    }


@pytest.mark.parametrize("absent", [{}, {"train_loss": None}])
def test_the_loss_has_the_same_tag_in_an_epoch_without_training(absent: dict[str, None]) -> None:
    assert curves.points({"epoch": 0, **absent, "val_loss": 1.5}) == {"loss/val": 1.5}


def test_only_finite_numbers_become_points() -> None:
    record = {"val_kappa": float("nan"), "val_loss": float("inf"), "note": "collapsed", "classes": [1, 2], "stop": True}
    assert curves.points(record) == {"stop": 1.0}


def test_dictionaries_become_groups() -> None:
    record = {"val_f1": {"A": 0.5, "D": 0.0}, "lr": {"head": 1.0}, "val_patient": {"kappa": 0.75}}
    assert curves.points(record) == {"f1/A": 0.5, "f1/D": 0.0, "learning_rate/head": 1.0, "patient/kappa": 0.75}


def test_no_folder_and_no_storage_is_in_the_parameters() -> None:
    flat = curves.parameters(PRIVATE, {"outdir": Path("/archive/of/clinic/run"), "workers": 2})
    assert flat["split.split_file"] == "split.csv"
    assert flat["data.quarantine"] == "bad.csv"
    assert flat["run.workers"] == 2
    assert not [value for value in flat.values() if "clinic" in str(value) or "archive" in str(value)]


def test_parameters_are_the_settings_of_config_toml() -> None:
    settings = plain.to_dict(Config())
    flat = curves.parameters(Config(), {})
    assert flat["optim.lr"] == settings["optim"]["lr"]
    assert len(flat) == sum(len(one) if isinstance(one, dict) else 1 for one in settings.values())


def test_ids_of_several_trackers_are_kept_beside_each_other(tmp_path: Path) -> None:
    assert curves.read_id(tmp_path, "mlflow") is None
    curves.keep_id(tmp_path, "mlflow", "a")
    curves.keep_id(tmp_path, "wandb", "b")
    curves.keep_id(tmp_path, "mlflow", "c")
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"mlflow": "c", "wandb": "b"}
    assert curves.read_id(tmp_path, "mlflow") == "c"
