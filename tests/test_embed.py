import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mammoray import checkpoint, cli, embed, evaluate
from mammoray.config import NOTICE, DataConfig
from mammoray.errors import LeakError
from mammoray.recipe import EvaluateConfig
from tests.conftest import SMALL, FinishedRun
from tests.test_apply import quiet, request

pytestmark = pytest.mark.usefixtures("ray_session")
QUICK = EvaluateConfig(bootstrap=20)


@pytest.fixture(scope="module")
def embedded(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The features of all images of the run's data, those without a label among them."""
    outdir = tmp_path_factory.mktemp("features") / "out"
    return outdir, embed.run(request(finished_run, outdir, "allow"), QUICK, 0, quiet)


def test_a_row_has_what_is_known_of_the_image_and_float32_features(
    finished_run: FinishedRun, embedded: tuple[Path, dict[str, Any]]
) -> None:
    outdir, facts = embedded
    table = pd.read_parquet(outdir / "features.parquet")
    about = ["image_id", "patient_id", "laterality", "view", "label", "fold"]
    assert list(table.columns) == [*about, *(f"f_{i}" for i in range(facts["features"]))]
    assert (table.dtypes[len(about) :] == np.float32).all()
    catalog = pd.read_parquet(finished_run.source.outdir / "catalog.parquet").set_index("image_id")
    assert set(table["image_id"]) == set(catalog.index)
    assert table["fold"].tolist() == catalog.loc[table["image_id"], "fold"].fillna("new").tolist()


def test_the_head_makes_the_runs_own_probabilities_of_the_features(
    finished_run: FinishedRun, embedded: tuple[Path, dict[str, Any]]
) -> None:
    table = pd.read_parquet(embedded[0] / "features.parquet").set_index("image_id")
    own = pd.read_parquet(finished_run.source.outdir / "predictions.parquet").set_index("image_id")
    net, _ = checkpoint.load_model(finished_run.source.outdir / "checkpoints" / "best")
    x_NF = torch.from_numpy(table.loc[own.index].filter(regex="^f_").to_numpy(dtype=np.float32, copy=True))
    with torch.no_grad():
        p_NK = evaluate.softmax(net.log_probabilities_of(x_NF).numpy())
    assert np.allclose(p_NK, own[[f"p_{name}" for name in SMALL.class_names]], atol=1e-5)


def test_baselines_are_judged_on_the_test_patients_as_the_network_is(
    finished_run: FinishedRun, embedded: tuple[Path, dict[str, Any]]
) -> None:
    outdir, facts = embedded
    metrics = json.loads((outdir / "baselines.json").read_text())
    own = json.loads((finished_run.source.outdir / "metrics.json").read_text())["folds"]["test"]
    assert set(metrics) == {"network", "logistic regression", "nearest neighbours"}
    for judged in metrics.values():
        assert set(judged["folds"]) == {"test"}
        assert judged["folds"]["test"]["image"]["n"] == own["image"]["n"]
    assert metrics["network"]["folds"]["test"]["image"]["confusion"] == own["image"]["confusion"]
    assert "trained by" in facts["baselines"]["split"]
    lines = "\n".join(embed.headline(facts))
    assert "logistic regression" in lines and "kappa" in lines


def test_training_patients_are_refused_unless_told_otherwise(finished_run: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(LeakError, match="--seen allow"):
        embed.run(request(finished_run, tmp_path / "out", "refuse"), QUICK, 0, quiet)


def test_images_without_labels_and_too_few_patients_have_features_and_no_baselines(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    made = request(finished_run, tmp_path / "out", "allow", csv=None, data=DataConfig(dataset="files"))
    facts = embed.run(made, QUICK, 0, quiet)
    assert (tmp_path / "out" / "features.parquet").exists() and not (tmp_path / "out" / "baselines.json").exists()
    assert embed.headline(facts)[1] == "no baselines: No image has a label."
    few = embed.run(request(finished_run, tmp_path / "few", "leave_out"), QUICK, 0, quiet)
    assert few["baselines"]["split"] is None and "patients" in few["baselines"]["why"]
    assert json.loads((tmp_path / "few" / "embed.json").read_text()) == few


def test_the_command_line_shows_the_table_and_that_it_is_research(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(finished_run.source.outdir), "--dicom-root", str(finished_run.source.dicom_root)]
    words += ["--csv", str(finished_run.source.csv), "--outdir", str(tmp_path / "out"), "--bootstrap", "20"]
    words += ["--cache", str(finished_run.source.outdir.parent / "mammoray-cache"), "--seen", "allow"]
    assert cli.main(["embed", *words]) == 0
    out = capsys.readouterr().out
    assert "nearest neighbours" in out and NOTICE in out
