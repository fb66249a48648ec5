import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammoray import checkpoint, controller, optim, pipeline, plain, split, train
from mammoray import config as configs
from mammoray.config import SplitConfig
from mammoray.errors import ConfigError, IngestError, MammorayError, ModelError, RunFolderError, SplitError
from mammoray.plain import replace
from mammoray.recipe import TrainConfig
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, FinishedRun

pytestmark = pytest.mark.usefixtures("ray_session")


def run(data: SynthSummary, outdir: Path, config: configs.Config = SMALL, workers: int = 1) -> dict[str, Any]:
    source = pipeline.Source(csv=data.csv, dicom_root=data.root, outdir=outdir)
    return pipeline.run(source, config, Scale(num_workers=workers), lambda line: None)


class TestRunFolder:
    def test_it_holds_what_the_architecture_promises(self, finished_run: FinishedRun) -> None:
        outdir = finished_run.source.outdir
        names = {p.relative_to(outdir).as_posix() for p in outdir.rglob("*") if p.is_file()}
        files = {"model.safetensors", "model.json", "training.safetensors", "state.json"}
        assert names == {
            "config.toml", "run.json", "catalog.parquet", "split.csv", "split.json", "audit.json", "audit.csv",
            "history.jsonl", "predictions.parquet", "examples.parquet", "augmented.parquet", "metrics.json",
            "report.html", *(name for name in names if name.startswith("tensorboard/events.out.")),
            *(f"checkpoints/{which}/{name}" for which in ("best", "last") for name in files),
            "checkpoints/finished",
        }  # fmt: skip

    def test_config_toml_is_the_whole_config(self, finished_run: FinishedRun) -> None:
        assert plain.load_toml(finished_run.source.outdir / "config.toml") == finished_run.config

    def test_one_digest_stands_in_split_run_and_checkpoint(self, finished_run: FinishedRun) -> None:
        outdir = finished_run.source.outdir
        rows = pd.read_csv(outdir / "split.csv", dtype=str)
        found = {
            split.digest(rows),
            json.loads((outdir / "split.json").read_text())["digest"],
            json.loads((outdir / "run.json").read_text())["split_digest"],
            checkpoint.read_card(outdir / "checkpoints" / "best").split_digest,
        }
        assert len(found) == 1

    def test_every_held_out_image_is_predicted_once_and_no_training_image(self, finished_run: FinishedRun) -> None:
        outdir = finished_run.source.outdir
        rows = pd.read_csv(outdir / "split.csv", dtype=str)
        predictions = pd.read_parquet(outdir / "predictions.parquet")
        held_out = rows[rows["fold"] != "train"]
        assert sorted(predictions["image_id"]) == sorted(held_out["image_id"])
        assert set(predictions["patient_id"]).isdisjoint(rows.loc[rows["fold"] == "train", "patient_id"])

    def test_metrics_are_those_of_the_predictions(self, finished_run: FinishedRun) -> None:
        outdir = finished_run.source.outdir
        predictions = pd.read_parquet(outdir / "predictions.parquet")
        metrics = json.loads((outdir / "metrics.json").read_text())
        test = predictions[predictions["fold"] == "test"]
        assert metrics["folds"]["test"]["image"]["accuracy"]["value"] == pytest.approx(
            (test["label"] == test["predicted"]).mean()
        )
        assert metrics["learned"] == [controller.read_history(outdir)[0], controller.read_history(outdir)[-1]]

    def test_unlabelled_images_are_counted_and_left_out(self, finished_run: FinishedRun, rsna: SynthSummary) -> None:
        outdir = finished_run.source.outdir
        blank = pd.read_csv(rsna.csv)["density"].isna().sum()
        catalog = pd.read_parquet(outdir / "catalog.parquet")
        assert blank > 0
        assert catalog["fold"].isna().sum() == blank
        assert json.loads((outdir / "split.json").read_text())["unlabelled"]["images"] == blank
        assert "images without a density label" in (outdir / "audit.csv").read_text()

    def test_progress_names_every_stage_in_order(self, finished_run: FinishedRun) -> None:
        text = "\n".join(finished_run.said)
        stages = ["catalog:", "split: digest", "decode:", "epoch 0/2", "epoch 1/2", "epoch 2/2", "evaluate:"]
        assert [text.index(stage) for stage in stages] == sorted(text.index(stage) for stage in stages)
        assert "untrained" in text

    def test_the_same_command_again_only_reads(self, finished_run: FinishedRun, rsna: SynthSummary) -> None:
        outdir = finished_run.source.outdir
        before = {p: p.read_bytes() for p in outdir.rglob("*") if p.is_file()}
        assert run(rsna, outdir, workers=2) == json.loads((outdir / "metrics.json").read_text())
        assert {p: p.read_bytes() for p in outdir.rglob("*") if p.is_file()} == before

    def test_a_deleted_report_is_written_again(self, finished_run: FinishedRun, rsna: SynthSummary) -> None:
        page = finished_run.source.outdir / "report.html"
        before = page.read_bytes()
        page.unlink()
        run(rsna, finished_run.source.outdir)
        assert page.read_bytes() == before

    def test_other_files_under_the_same_names_are_another_run(
        self, finished_run: FinishedRun, rsna: SynthSummary, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(rsna.root, tmp_path / "copy"))
        with pytest.raises(RunFolderError, match="other files"):
            run(replace(rsna, root=copy), finished_run.source.outdir)

    def test_a_damaged_marker_is_an_error(self, rsna: SynthSummary, tmp_path: Path) -> None:
        for text in ("[]", "{", "{}"):
            (tmp_path / "run.json").write_text(text)
            with pytest.raises(RunFolderError, match="damaged"):
                run(rsna, tmp_path)

    def test_a_folder_of_another_run_is_refused(self, finished_run: FinishedRun, rsna: SynthSummary) -> None:
        other = replace(SMALL, train=TrainConfig(epochs=3))
        with pytest.raises(RunFolderError, match="another run"):
            run(rsna, finished_run.source.outdir, other)

    def test_a_folder_with_other_files_is_refused(self, rsna: SynthSummary, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("")
        with pytest.raises(RunFolderError, match="other files"):
            run(rsna, tmp_path)


def test_the_irma_layout_runs_unchanged_with_two_classes(irma: SynthSummary, tmp_path: Path) -> None:
    config = replace(SMALL, classes="binary", train=replace(SMALL.train, epochs=1))
    metrics = run(irma, tmp_path / "run", config)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    audit = pd.read_csv(tmp_path / "run" / "audit.csv")
    assert metrics["classes"] == ["AB", "CD"]
    assert facts["layout"] == "irma"
    assert any("accession" in limit for limit in facts["limits"])
    assert "class 5 is excluded" in set(audit["reason"])
    assert "AB" in (tmp_path / "run" / "report.html").read_text()


class TestBadInput:
    @pytest.fixture
    def copy(self, irma: SynthSummary, tmp_path: Path) -> SynthSummary:
        folder = Path(shutil.copytree(irma.table.parent, tmp_path / "copy"))
        return replace(irma, csv=folder / irma.table.name, root=folder / irma.root.name)

    def spoil(self, data: SynthSummary, count: int) -> list[Path]:
        table = pd.read_csv(data.csv, dtype=str)
        usable = [a for a, c in zip(table["AccessionNumber"], table["Classification"], strict=True) if c != "5"]
        files = [sorted((data.root / exam).glob("*.dcm"))[0] for exam in usable[:count]]
        for file in files:
            file.write_bytes(file.read_bytes()[:2000])
        return files

    def test_too_many_undecodable_files_fail_the_run_and_are_all_listed(
        self, copy: SynthSummary, tmp_path: Path
    ) -> None:
        spoiled = self.spoil(copy, 12)
        with pytest.raises(IngestError, match=r"95% .*12 failed.*audit\.csv"):
            run(copy, tmp_path / "run")
        audit = pd.read_csv(tmp_path / "run" / "audit.csv")
        listed = audit[audit["reason"] == "the file cannot be decoded"]
        assert sorted(listed["file"]) == sorted(f.relative_to(copy.root).as_posix() for f in spoiled)
        assert listed["found"].notna().all()

    def test_one_undecodable_file_is_listed_and_the_run_goes_on(self, copy: SynthSummary, tmp_path: Path) -> None:
        (file,) = self.spoil(copy, 1)
        config = replace(SMALL, train=replace(SMALL.train, epochs=1))
        run(copy, tmp_path / "run", config)
        audit = pd.read_csv(tmp_path / "run" / "audit.csv")
        assert file.relative_to(copy.root).as_posix() in set(audit["file"])
        assert json.loads((tmp_path / "run" / "run.json").read_text())["failed"] == 1

    def test_a_class_with_too_few_patients_is_an_error_before_anything_is_decoded(
        self, copy: SynthSummary, tmp_path: Path
    ) -> None:
        table = pd.read_csv(copy.csv, dtype=str)
        keep = table[table["Classification"] != "4"]
        pd.concat([keep, table[table["Classification"] == "4"].head(2)]).to_csv(copy.csv, index=False)
        with pytest.raises(SplitError, match="2 of class D"):
            run(copy, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_no_error_leaves_a_folder_that_stands_in_the_way(self, copy: SynthSummary, tmp_path: Path) -> None:
        self.spoil(copy, 12)
        for _ in range(2):
            with pytest.raises(IngestError):
                run(copy, tmp_path / "run")

    def test_weights_that_cannot_be_had_are_an_error_before_anything_is_decoded(
        self, copy: SynthSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="--no-pretrained"):
            run(copy, tmp_path / "run", replace(SMALL, model=replace(SMALL.model, pretrained=True)))
        assert not (tmp_path / "mammoray-cache").exists()
        # The remedy is another setting, and so another run: it must not be refused the folder.
        run(copy, tmp_path / "run", replace(SMALL, train=replace(SMALL.train, epochs=1)))

    def test_a_missing_csv_is_an_error(self, copy: SynthSummary, tmp_path: Path) -> None:
        with pytest.raises(MammorayError, match="--csv"):
            run(replace(copy, csv=tmp_path / "none.csv"), tmp_path / "run")


def test_a_final_model_learns_from_the_validation_patients_and_is_judged_on_the_test_patients_alone(
    rsna: SynthSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[pd.DataFrame] = []
    fit = train.fit

    def told(rows: pd.DataFrame, *rest: Any, **more: Any) -> train.Fitted:
        seen.append(rows)
        return fit(rows, *rest, **more)

    monkeypatch.setattr(train, "fit", told)
    settings = replace(SMALL.train, epochs=3, stop_epoch=2, train_on="train_and_val", keep=2)
    config, outdir = replace(SMALL, train=settings), tmp_path / "run"
    metrics = run(rsna, outdir, config)
    ids = pd.read_csv(outdir / "split.csv", dtype=str).groupby("fold")["image_id"].apply(sorted)
    learned = seen[0].groupby("fold")["image_id"].apply(list)
    assert learned["train"] == sorted([*ids["train"], *ids["val"]])
    assert learned["val"] == ids["val"]
    history = controller.read_history(outdir)
    steps = -(-len(learned["train"]) // config.sample.batch_size)
    rates = [optim.rate(config.optim, epoch * steps - 1, steps, 3, 0) for epoch in (1, 2)]
    assert [record["lr"] for record in history] == [0.0, *rates]
    assert checkpoint.read_card(outdir / "checkpoints" / "best").epoch == 2
    assert checkpoint.read_card(outdir / "checkpoints" / "epoch-001").epoch == 1
    predictions = pd.read_parquet(outdir / "predictions.parquet")
    assert sorted(predictions["image_id"]) == ids["test"]
    assert set(metrics["folds"]) == {"test"}
    assert "learned from too" in pipeline.headline(metrics)[-1]
    facts = json.loads((outdir / "run.json").read_text())
    assert facts["best_epoch"] == 2
    assert any("--train-on train_and_val" in limit for limit in facts["limits"])
    page = (outdir / "report.html").read_text(encoding="utf-8")
    assert "validation images were learned from" in page and "epoch 2 of 2" in page


def test_a_final_model_without_test_patients_is_refused(irma: SynthSummary, tmp_path: Path) -> None:
    settings = replace(SMALL.train, train_on="train_and_val")
    with pytest.raises(ConfigError, match="test patients"):
        run(irma, tmp_path / "run", replace(SMALL, split=SplitConfig(val_share=0.3), train=settings))
    assert not (tmp_path / "run").exists()


def test_a_setting_without_effect_is_told_before_anything_else(rsna: SynthSummary, tmp_path: Path) -> None:
    said: list[str] = []
    source = pipeline.Source(csv=tmp_path / "none.csv", dicom_root=rsna.root, outdir=tmp_path / "run")
    config = replace(SMALL, sample=replace(SMALL.sample, alpha=0.5))
    with pytest.raises(MammorayError, match="--csv"):
        pipeline.run(source, config, Scale(), said.append)
    assert said == ["note: --alpha has no effect: --sampler is natural"]


def test_a_hold_out_without_a_test_set_is_judged_on_the_validation_patients_and_says_so(
    irma: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    source = pipeline.Source(csv=irma.csv, dicom_root=irma.root, outdir=tmp_path / "run")
    config = replace(SMALL, split=SplitConfig(val_share=0.3), train=replace(SMALL.train, epochs=1))
    metrics = pipeline.run(source, config, Scale(num_workers=1), lambda line: None)
    assert set(metrics["folds"]) == {"val"}
    assert pipeline.headline(metrics)[0].startswith("val, per image")
    page = (source.outdir / "report.html").read_text(encoding="utf-8")
    assert "validation patients" in page and "No patients were set aside for a test" in page
    assert "test patients" not in page
