import json
from pathlib import Path

import pandas as pd
import pytest

from mammoray import crossval, pipeline
from mammoray.errors import ConfigError, RunFolderError
from mammoray.plain import replace
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, FinishedRun

pytestmark = pytest.mark.usefixtures("ray_session")


def test_crossval_tests_every_patient_once_and_those_of_a_fixed_test_set_never(
    irma: SynthSummary, tmp_path: Path
) -> None:
    everybody = pd.read_csv(irma.csv, dtype=str).query("Classification != '5'")
    locked = everybody["AccessionNumber"].iloc[[2, 7]].tolist()
    (tmp_path / "locked.csv").write_text("\n".join(["patient_id", *locked]) + "\n")
    parts = replace(SMALL.split, folds=3, test_file=tmp_path / "locked.csv")
    config = replace(SMALL, split=parts, train=replace(SMALL.train, epochs=1), classes="binary")
    source = pipeline.Source(csv=irma.csv, dicom_root=irma.root, outdir=tmp_path / "cv")
    metrics = crossval.run(source, config, Scale(), lambda line: None)
    predictions = pd.read_parquet(tmp_path / "cv" / "predictions.parquet")
    rows = pd.read_csv(tmp_path / "cv" / "fold-0" / "split.csv", dtype=str)
    assert sorted(predictions["image_id"]) == sorted(rows["image_id"])
    assert set(predictions["patient_id"]) == set(everybody["AccessionNumber"]) - set(locked)
    assert metrics["folds"]["test"]["image"]["n"] == len(rows)
    digests = {json.loads((tmp_path / "cv" / f"fold-{k}" / "run.json").read_text())["split_digest"] for k in range(3)}
    assert len(digests) == 3


class TestCrossvalRefuses:
    def source(self, data: SynthSummary, outdir: Path) -> pipeline.Source:
        return pipeline.Source(csv=data.csv, dicom_root=data.root, outdir=outdir)

    def test_a_single_split_or_fold(self, irma: SynthSummary, tmp_path: Path) -> None:
        for setting in ({"fold": 1}, {"split_file": tmp_path / "split.csv"}, {"val_share": 0.2}):
            config = replace(SMALL, split=replace(SMALL.split, **setting))
            with pytest.raises(ConfigError, match=r"--fold|--split-file|--val-share"):
                crossval.run(self.source(irma, tmp_path / "cv"), config, Scale(), lambda line: None)

    def test_the_folder_of_a_run(self, irma: SynthSummary, finished_run: FinishedRun) -> None:
        before = (finished_run.source.outdir / "metrics.json").read_bytes()
        with pytest.raises(RunFolderError, match=r"audit\.csv"):
            crossval.run(self.source(irma, finished_run.source.outdir), SMALL, Scale(), lambda line: None)
        assert (finished_run.source.outdir / "metrics.json").read_bytes() == before
