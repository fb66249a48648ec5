import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from mammoray import apply, checkpoint, cli, decode, model, storage
from mammoray.apply import Request
from mammoray.checkpoint import Snapshot
from mammoray.config import NOTICE, Classes, DataConfig, DecodeConfig, IngestConfig
from mammoray.errors import CatalogError, CheckpointError, ClusterError, IngestError, LeakError, RunFolderError
from mammoray.plain import replace
from mammoray.recipe import ApplyConfig, EvaluateConfig, ModelConfig, Seen
from mammoray.scale import Where
from mammoray.storage import Place
from mammoray.synth import SynthSummary
from tests.conftest import ARCH, SMALL, FinishedRun
from tests.run_factory import phantom

pytestmark = pytest.mark.usefixtures("ray_session")
P = [f"p_{name}" for name in "ABCD"]


def request(run: FinishedRun, outdir: Path, seen: Seen = "leave_out", **changes: Any) -> Request:
    return Request(
        **{
            "checkpoint": str(run.source.outdir),
            "csv": run.source.csv,
            "dicom_root": run.source.dicom_root,
            "outdir": outdir,
            "data": DataConfig(),
            "ingest": IngestConfig(shard_images=16, cache=str(run.source.outdir.parent / "mammoray-cache")),
            "how": ApplyConfig(seen=seen),
            "where": Where(),
            **changes,
        }
    )


def quiet(line: str) -> None:
    pass


def untrained(folder: Path, classes: Classes, size: DecodeConfig) -> Path:
    """A checkpoint alone, of a network that was never trained."""
    config = ModelConfig(arch=ARCH, pretrained=False)
    net = model.build(config, "cross_entropy", classes, 5)
    card = checkpoint.card_of(net, config, classes=classes, decode=size, split_digest="d" * 16, epoch=0)
    folder.mkdir()
    checkpoint.write(folder, Snapshot(card=card, model=net.state_dict()))
    return folder


@pytest.fixture(scope="module")
def scored(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Scores of the patients that the run has not learned from, those without a label among them."""
    outdir = tmp_path_factory.mktemp("scores") / "out"
    return outdir, apply.score(request(finished_run, outdir), "images", quiet)


def test_scores_of_test_images_are_those_of_the_run_itself(
    finished_run: FinishedRun, scored: tuple[Path, dict[str, Any]]
) -> None:
    got = pd.read_parquet(scored[0] / "predictions.parquet")
    own = pd.read_parquet(finished_run.source.outdir / "predictions.parquet")
    own = own[own["fold"] == "test"].set_index("image_id")
    test = got[got["fold"] == "test"].set_index("image_id")
    assert set(got["fold"]) == {"test", "new"}
    assert len(own) == len(test) > 0
    assert np.allclose(test.loc[own.index, P], own[P], atol=1e-6)
    assert test.loc[own.index, "label"].tolist() == own["label"].tolist()
    assert got.loc[got["fold"] == "new", "label"].isna().all(), "patients without a label are scored too"
    assert list(got.columns) == list(pd.read_parquet(finished_run.source.outdir / "predictions.parquet").columns)


def test_a_network_on_a_storage_gives_the_same_and_results_go_there(
    finished_run: FinishedRun, scored: tuple[Path, dict[str, Any]], s3: str, tmp_path: Path
) -> None:
    shared = storage.join(s3, tmp_path.name)
    for entry in storage.walk(str(finished_run.source.outdir)):
        storage.upload(finished_run.source.outdir / entry.path, storage.join(shared, f"run/{entry.path}"))
    made = replace(
        request(finished_run, tmp_path / "scores"), checkpoint=storage.join(shared, "run"), where=Where(storage=shared)
    )
    assert apply.score(made, "images", quiet) == scored[1]
    for entry in storage.walk(str(scored[0])):
        copied = storage.read(storage.join(shared, f"scores/{entry.path}"))
        assert copied == (tmp_path / "scores" / entry.path).read_bytes()
    same = pd.read_parquet(tmp_path / "scores" / "predictions.parquet")
    pd.testing.assert_frame_equal(same, pd.read_parquet(scored[0] / "predictions.parquet"))
    with pytest.raises(LeakError, match=rf"s3://bucket/some/prefix/{tmp_path.name}/run"):
        apply.score(replace(made, outdir=tmp_path / "more", how=ApplyConfig()), "images", quiet)
    assert not (tmp_path / "more").exists()


def test_breasts_and_patients_are_means_of_their_images_and_csv_says_the_same(
    scored: tuple[Path, dict[str, Any]],
) -> None:
    outdir, facts = scored
    images = pd.read_parquet(outdir / "predictions.parquet")
    for name, keys in (("patients", ["patient_id"]), ("breasts", ["patient_id", "laterality"])):
        table = pd.read_parquet(outdir / f"{name}.parquet").set_index(keys)
        assert np.allclose(table[P], images.groupby(keys)[P].mean().loc[table.index])
        assert table["images"].sum() == len(images)
        assert len(table) == facts[name]
        text = pd.read_csv(outdir / f"{name}.csv", dtype={"patient_id": str}).set_index(keys)
        assert np.allclose(text[P], table[P]) and text["predicted"].equals(
            table["predicted"].astype(text["predicted"].dtype)
        )
    assert facts["breasts"] == 2 * facts["patients"]


def test_the_summary_says_what_was_used_how_many_and_that_it_is_research(
    finished_run: FinishedRun, scored: tuple[Path, dict[str, Any]]
) -> None:
    outdir, facts = scored
    assert json.loads((outdir / "predict.json").read_text()) == facts
    assert "not a medical device" in facts["notice"]
    run = json.loads((finished_run.source.outdir / "run.json").read_text())
    assert facts["checkpoint"]["split_digest"] == run["split_digest"]
    assert facts["checkpoint"]["decode"]["height"] == SMALL.decode.height
    assert set(facts["versions"]) == {"mammoray", "ray", "torch", "timm"}
    assert facts["decoded"] == facts["images"] == sum(fold["images"] for fold in facts["folds"].values())
    assert any("another id" in limit for limit in facts["limits"])


def test_patients_whom_the_network_has_learned_from_are_refused_unless_told_otherwise(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    catalog = pd.read_parquet(finished_run.source.outdir / "catalog.parquet")
    seen = catalog[catalog["fold"].isin(["train", "val"])]
    of = f"{seen['patient_id'].nunique()} of {catalog['patient_id'].nunique()} patients"
    with pytest.raises(LeakError, match=of):
        apply.score(request(finished_run, tmp_path / "out", "refuse"), "images", quiet)
    assert not (tmp_path / "out").exists()
    every = apply.score(request(finished_run, tmp_path / "out", "allow"), "images", quiet)
    assert set(every["folds"]) == {"train", "val", "test", "new"} and every["images"] == len(catalog)


def test_a_copy_of_training_images_without_their_table_is_recognised(finished_run: FinishedRun, tmp_path: Path) -> None:
    catalog = pd.read_parquet(finished_run.source.outdir / "catalog.parquet")
    name = catalog.loc[catalog["fold"] == "train", "path"].iloc[0]
    file = next(Path(finished_run.source.dicom_root).rglob(Path(name).name))
    (tmp_path / "new" / "x").mkdir(parents=True)
    shutil.copy(file, tmp_path / "new" / "x")
    with pytest.raises(LeakError, match="1 of 1 patients"):
        apply.score(request(finished_run, tmp_path / "out", csv=None, dicom_root=tmp_path / "new"), "images", quiet)


@pytest.fixture
def bare(rsna: SynthSummary, tmp_path: Path) -> Path:
    """Two folders of images and one image beside them, without a table."""
    patients = sorted(path for path in Path(rsna.root).rglob("*") if path.is_dir() and any(path.glob("*.dcm")))[:2]
    for i, patient in enumerate(patients):
        shutil.copytree(patient, tmp_path / "bare" / f"p{i}")
    shutil.copy(next(patients[0].glob("*.dcm")), tmp_path / "bare" / "single.dcm")
    return tmp_path / "bare"


def test_any_folder_is_scored_as_its_checkpoint_decodes_and_by_its_classes(
    finished_run: FinishedRun, bare: Path, tmp_path: Path
) -> None:
    size = DecodeConfig(height=64, width=48, depth=16, window="percentile", crop="none")
    folder = untrained(tmp_path / "alone", "binary", size)
    said: list[str] = []
    made = request(finished_run, tmp_path / "out", "refuse", checkpoint=str(folder), csv=None, dicom_root=bare)
    facts = apply.score(made, "images", said.append)
    assert facts["layout"] == "files" and set(facts["folds"]) == {"unknown"} and facts["patients"] == 3
    assert any("stands alone" in limit for limit in facts["limits"]), "what cannot be known is said"
    assert any("stands alone" in line for line in said)
    images = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("image_id")
    assert set(images["laterality"]) == {"L", "R"} and {"CC", "MLO"} <= set(images["view"]), "of the headers"
    assert images["label"].isna().all() and set(images["predicted"]) <= {"AB", "CD"}
    net, _ = checkpoint.load_model(folder)
    for name, row in images.iterrows():
        pixels = decode.decode(str(bare / str(name)), size, str(name)).pixels
        with torch.no_grad():
            x = model.to_unit(torch.from_numpy(pixels.astype(np.uint16)))[None, None]
            p = net.log_probabilities(x).exp()[0].numpy()
        assert np.allclose(row[["p_AB", "p_CD"]].to_numpy(dtype=float), p, atol=1e-5)


def test_damaged_files_are_listed_and_end_nothing(finished_run: FinishedRun, bare: Path, tmp_path: Path) -> None:
    files = sorted(bare.glob("p0/*.dcm"))
    files[0].write_bytes(files[0].read_bytes()[:-9000])
    files[1].write_bytes(b"no DICOM at all")
    made = request(finished_run, tmp_path / "out", "allow", csv=None, dicom_root=bare)
    facts = apply.score(made, "images", quiet)
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert facts["failed"] == len(failures) == 2
    assert set(failures["path"]) == {f"p0/{file.name}" for file in files[:2]}
    assert set(pd.read_csv(tmp_path / "out" / "audit.csv")["file"]) >= set(failures["path"])
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == facts["images"] - 2
    for file in bare.rglob("*.dcm"):
        file.write_bytes(b"no DICOM at all")
    with pytest.raises(IngestError, match=r"failures\.csv"):
        apply.score(made, "images", quiet)


def test_each_view_counts_alike_where_that_is_asked_for(finished_run: FinishedRun, bare: Path, tmp_path: Path) -> None:
    first = min(bare.glob("p0/*.dcm"))
    shutil.copy(first, first.with_name("again.dcm"))
    made = request(finished_run, tmp_path / "out", "allow", csv=None, dicom_root=bare)
    apply.score(made, "views", quiet)
    images = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    expected = images.groupby(["patient_id", "laterality", "view"])[P].mean().groupby("patient_id").mean()
    patients = pd.read_parquet(tmp_path / "out" / "patients.parquet").set_index("patient_id")
    assert np.allclose(patients[P], expected.loc[patients.index])


def test_metrics_of_the_test_patients_are_those_of_the_run(finished_run: FinishedRun, tmp_path: Path) -> None:
    config = EvaluateConfig(bootstrap=SMALL.evaluate.bootstrap)
    metrics = apply.judge(request(finished_run, tmp_path / "out"), config, SMALL.seed, quiet)
    own = json.loads((finished_run.source.outdir / "metrics.json").read_text())["folds"]["test"]
    assert set(metrics["folds"]) == {"test"}, "patients without a label are not judged"
    for level in ("image", "patient"):
        assert metrics["folds"]["test"][level]["confusion"] == own[level]["confusion"]
        for name in ("kappa", "accuracy", "auc"):
            assert metrics["folds"]["test"][level][name] == pytest.approx(own[level][name], abs=1e-6)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    every = apply.judge(request(finished_run, tmp_path / "all", "allow"), replace(config, breasts=True), 0, quiet)
    assert set(every["folds"]) == {"train", "val", "test"}, "what was learned from is judged apart"
    assert "breast" in every["folds"]["test"]
    lines = apply.headline(every)
    assert any(line.startswith("train") and "[" in line for line in lines)
    assert any("not what it can do" in line for line in lines)


@pytest.mark.parametrize("average", ["images", "views"])
def test_a_side_that_nobody_knows_is_in_no_breast_and_that_is_said(
    average: str, finished_run: FinishedRun, tmp_path: Path
) -> None:
    (tmp_path / "png" / "x").mkdir(parents=True)
    PIL.Image.frombytes("L", (80, 96), phantom(0.5, 1, 96, 80)).save(tmp_path / "png" / "x" / "1.png")
    made = request(finished_run, tmp_path / "out", "refuse", csv=None, dicom_root=tmp_path / "png")
    facts = apply.score(replace(made, data=DataConfig(dataset="files")), average, quiet)
    assert (facts["patients"], facts["breasts"]) == (1, 0)
    assert any("side of 1 images is not known" in limit for limit in facts["limits"])
    assert list(pd.read_parquet(tmp_path / "out" / "breasts.parquet").columns)[-4:] == P


def test_gpus_that_are_not_there_are_an_error(finished_run: FinishedRun, bare: Path, tmp_path: Path) -> None:
    made = request(finished_run, tmp_path / "out", csv=None, dicom_root=bare)
    with pytest.raises(ClusterError, match="--gpu yes"):
        apply.score(replace(made, how=ApplyConfig(seen="allow", gpu="yes")), "images", quiet)


def test_nothing_can_be_judged_without_labels(finished_run: FinishedRun, bare: Path, tmp_path: Path) -> None:
    made = request(finished_run, tmp_path / "out", "allow", csv=None, dicom_root=bare)
    with pytest.raises(CatalogError):
        apply.judge(made, EvaluateConfig(), 0, quiet)
    flat = replace(made, data=DataConfig(dataset="files"))
    with pytest.raises(CatalogError, match="labels to judge by"):
        apply.judge(flat, EvaluateConfig(), 0, quiet)


def test_the_folder_of_a_run_is_not_written_into(finished_run: FinishedRun, tmp_path: Path) -> None:
    before = (finished_run.source.outdir / "predictions.parquet").read_bytes()
    with pytest.raises(RunFolderError, match="--outdir"):
        apply.score(request(finished_run, finished_run.source.outdir), "images", quiet)
    assert (finished_run.source.outdir / "predictions.parquet").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="can be written"):
        apply.score(request(finished_run, tmp_path / "file" / "out"), "images", quiet)


class _Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_pickle_in_place_of_a_checkpoints_file_is_refused_and_does_not_run(
    name: str, finished_run: FinishedRun, bare: Path, tmp_path: Path
) -> None:
    folder = untrained(tmp_path / "alone", "density", SMALL.decode)
    torch.save({"a": _Evil(tmp_path / "ran")}, folder / name)
    made = request(finished_run, tmp_path / "out", checkpoint=str(folder), csv=None, dicom_root=bare)
    with pytest.raises(CheckpointError, match=name):
        apply.score(replace(made, how=ApplyConfig()), "images", quiet)
    assert not (tmp_path / "ran").exists()
    torch.load(io.BytesIO((folder / name).read_bytes()), weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have run"


def test_the_command_line_says_scores_and_that_they_are_research(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(finished_run.source.outdir), "--dicom-root", str(finished_run.source.dicom_root)]
    cache: Place = finished_run.source.outdir.parent / "mammoray-cache"
    words += ["--csv", str(finished_run.source.csv), "--cache", str(cache), "--outdir", str(tmp_path / "out")]
    assert cli.main(["predict", *words]) == 2
    assert "--seen" in capsys.readouterr().err
    assert cli.main(["predict", *words, "--seen", "leave_out"]) == 0
    assert NOTICE in capsys.readouterr().out
    assert (
        cli.main(["evaluate", *words[:-1], str(tmp_path / "judged"), "--seen", "leave_out", "--bootstrap", "20"]) == 0
    )
    out = capsys.readouterr().out
    assert "kappa" in out and NOTICE in out
