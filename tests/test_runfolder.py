"""Reading a finished run's folder: what is missing, damaged or from another run is refused by name and place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammoray.errors import RunFolderError
from mammoray.runfolder import read_run
from tests.run_factory import FILES, edit_json, make_epoch, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunFolderError) as caught:
        read_run(run)
    assert caught.value.where == str(run / name)
    assert caught.value.found == "no such file"


@pytest.mark.parametrize("name", [name for name in FILES if name != "audit.csv"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff{", b"[1, 2"])
def test_damaged_file_is_named(run: Path, name: str, content: bytes) -> None:
    if (name, content) == ("config.toml", b""):
        pytest.skip("an empty TOML file is a config of defaults")
    (run / name).write_bytes(content)
    with pytest.raises(RunFolderError, match=re.escape(name)):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [
        ("run.json", lambda d: d.pop("device"), "run.json"),
        ("run.json", lambda d: d.update(decoded="many"), "run.json: decoded"),
        ("run.json", lambda d: d.update(limits="text"), "run.json: limits"),
        ("split.json", lambda d: d["folds"].pop("val"), "split.json: folds"),
        ("split.json", lambda d: d.update(digest="other"), "split.json"),
        ("audit.json", lambda d: d["by_reason"][1].pop("count"), "audit.json: by_reason[1]"),
        (
            "metrics.json",
            lambda d: d["folds"]["test"]["image"]["kappa"].update(low="x"),
            "metrics.json: folds.test.image.kappa.low",
        ),
        (
            "metrics.json",
            lambda d: d["folds"]["val"]["image"]["confusion"].pop(),
            "metrics.json: folds.val.image.confusion",
        ),
        (
            "metrics.json",
            lambda d: d["folds"]["val"]["image"]["per_class"].pop("C"),
            "metrics.json: folds.val.image.per_class",
        ),
        ("metrics.json", lambda d: d.update(classes=["AB", "CD"]), "metrics.json"),
    ],
)
def test_wrong_content_is_named_by_its_place(run: Path, name: str, change: Callable[[Any], object], where: str) -> None:
    edit_json(run / name, change)
    with pytest.raises(RunFolderError) as caught:
        read_run(run)
    assert caught.value.where == str(run / where)


@pytest.mark.parametrize(("train_on", "fold"), [("train", "val"), ("train_and_val", "test")])
def test_the_figures_of_the_patients_that_were_kept_apart_must_be_there(run: Path, train_on: str, fold: str) -> None:
    (run / "config.toml").write_text(f'[train]\ntrain_on = "{train_on}"\n')
    read_run(run)
    edit_json(run / "metrics.json", lambda d: d["folds"].pop(fold))
    with pytest.raises(RunFolderError, match=rf"metrics\.json: folds: expected the fold {fold}"):
        read_run(run)


def test_history_with_a_torn_line_is_named_by_line(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(RunFolderError, match=r"history\.jsonl line 21"):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "column"),
    [("predictions.parquet", "p_C"), ("examples.parquet", "pixels"), ("augmented.parquet", "variant")],
)
def test_missing_column_is_named(run: Path, name: str, column: str) -> None:
    pd.read_parquet(run / name).drop(columns=column).to_parquet(run / name)
    with pytest.raises(RunFolderError, match=f"{name}.*none named {column}"):
        read_run(run)


@pytest.mark.parametrize("name", ["examples.parquet", "augmented.parquet"])
def test_image_with_too_few_pixels_is_named(run: Path, name: str) -> None:
    images = pd.read_parquet(run / name).assign(height=97)
    images.to_parquet(run / name)
    with pytest.raises(RunFolderError, match=f"{name}: image_id {images['image_id'].iloc[0]}: expected 97 x 72 pixels"):
        read_run(run)


def test_runs_of_older_versions_have_no_augmented_images(run: Path) -> None:
    assert len(read_run(run).augmented) == 8
    (run / "augmented.parquet").unlink()
    assert read_run(run).augmented == []
    (run / "augmented.parquet").write_bytes(b"[1, 2")
    with pytest.raises(RunFolderError, match=r"augmented\.parquet"):
        read_run(run)


@pytest.mark.parametrize(("key", "value"), [("collapse", "text"), ("collapse", [1]), ("collapse_cause", 5)])
def test_wrong_signs_of_a_collapse_are_named_by_line(run: Path, key: str, value: object) -> None:
    (run / "history.jsonl").write_text(json.dumps({**make_epoch(3), key: value}) + "\n")
    with pytest.raises(RunFolderError, match=rf"history\.jsonl line 1: {key}"):
        read_run(run)
