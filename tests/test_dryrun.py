import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammoray import catalog, dryrun, learner, model, pipeline, split
from mammoray.config import Config
from mammoray.errors import ClusterError, ConfigError, MammorayError, ModelError, RunFolderError
from mammoray.footprint import Footprint
from mammoray.plain import replace
from mammoray.recipe import ModelConfig, OptimConfig
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, FinishedRun, Prepared

pytestmark = pytest.mark.usefixtures("ray_session")


def plan(data: SynthSummary, outdir: Path, config: Config = SMALL, scale: Scale | None = None) -> list[str]:
    source = pipeline.Source(csv=data.csv, dicom_root=data.root, outdir=outdir)
    said: list[str] = []
    assert pipeline.dry_run(source, config, scale or Scale(), said.append)
    return said


def test_the_plan_states_true_numbers_and_writes_nothing(rsna: SynthSummary, tmp_path: Path) -> None:
    config = replace(SMALL, optim=OptimConfig(accumulate=2))
    said = plan(rsna, tmp_path / "runs" / "a", config, Scale(num_workers=2))
    facts = {line.split("  ")[0]: line for line in said}
    data = catalog.build(rsna.csv, rsna.root)
    counts = split.counts(split.make(data.rows, config.split, "density", 0), data.rows)["folds"]
    for fold, part in counts.items():
        assert f"{part['images']} images ({part['patients']} patients)" in facts[fold]
        for name, n in part["classes"].items():
            assert f"{name} {n['images']} ({n['patients']})" in facts[fold]
    labelled = int(data.rows["label"].notna().sum())
    assert f"0 of {labelled} in the cache; {labelled} to decode" in facts["files"]
    assert f"{model.parameters(learner.blank(config)):,} parameters" in facts["network"]
    assert facts["batch"].endswith("12 images, 6 on a worker, 3 at a time")
    steps = -(-counts["train"]["images"] // 12)
    assert f"{steps} an epoch of {counts['train']['images']} images, {2 * steps} in 2 epochs" in facts["steps"]
    assert "2, with 1 CPU each; the cluster has 1 node, 4 CPUs, 0 GPUs" in facts["workers"]
    assert not list(tmp_path.iterdir())


def test_a_final_model_learns_from_the_validation_images_until_its_last_epoch(
    rsna: SynthSummary, tmp_path: Path
) -> None:
    final = replace(SMALL.train, epochs=9, stop_epoch=1, train_on="train_and_val")
    said = plan(rsna, tmp_path / "a", replace(SMALL, train=final))
    data = catalog.build(rsna.csv, rsna.root)
    counts = split.counts(split.make(data.rows, SMALL.split, "density", 0), data.rows)["folds"]
    images = counts["train"]["images"] + counts["val"]["images"]
    assert any(f"{-(-images // 12)} an epoch of {images} images, {-(-images // 12)} in 1 epoch" in one for one in said)


def test_a_full_cache_is_recognised_and_stays_as_it_is(rsna: SynthSummary, prepared: Prepared, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path(prepared.cache).rglob("*")}

    index = next(Path(prepared.cache).rglob("index"))
    kept = index.read_bytes()
    index.unlink()  # One that is behind is not brought up to date either.
    before = state()
    data = catalog.build(rsna.csv, rsna.root)
    found = dryrun.files(data.rows[data.rows["label"].notna()], data.root, SMALL, prepared.cache)
    assert found["missing"] == found["tried"] == found["seconds"] == 0
    assert found["held"] == found["then"] == sum(p.stat().st_size for p in Path(prepared.cache).rglob("*.arrow"))
    assert state() == before
    index.write_bytes(kept)


def test_files_that_cannot_be_decoded_are_noticed_and_the_size_of_the_cache_is_foreseen(
    rsna: SynthSummary, prepared: Prepared, tmp_path: Path
) -> None:
    data = catalog.build(rsna.csv, rsna.root)
    rows = data.rows[data.rows["label"].notna()]
    found = dryrun.files(rows, data.root, SMALL, str(tmp_path / "none"))
    real = sum(p.stat().st_size for p in Path(prepared.cache).rglob("*.arrow"))
    assert found["then"] == pytest.approx(real, rel=0.5)
    assert found["failed"] == 0
    assert found["seconds"] > 0
    copy = Path(shutil.copytree(rsna.root, tmp_path / "copy"))
    for path in rows["path"].iloc[: len(rows) // 2]:
        (copy / path).write_bytes(b"no DICOM")
    found = dryrun.files(rows, str(copy), SMALL, str(tmp_path / "none"))
    assert found["failed"] == 4
    assert "4 OF 8 TRIED CANNOT BE DECODED" in dryrun._said_files(found)


@pytest.mark.parametrize(
    ("error", "config", "scale"),
    [
        (ClusterError, SMALL, Scale(cpus_per_worker=8.0)),
        (ConfigError, replace(SMALL, optim=OptimConfig(accumulate=7)), Scale(num_workers=2)),
        (ModelError, replace(SMALL, model=ModelConfig(arch="efficientnet_b99", pretrained=False)), Scale()),
        (MammorayError, replace(SMALL, split=replace(SMALL.split, folds=20)), Scale()),
    ],
)
def test_what_would_end_the_run_early_is_found(
    error: type[Exception], config: Config, scale: Scale, rsna: SynthSummary, tmp_path: Path
) -> None:
    with pytest.raises(error):
        plan(rsna, tmp_path / "run", config, scale)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_run_may_not_take_is_found(
    rsna: SynthSummary, finished_run: FinishedRun, tmp_path: Path
) -> None:
    outdir = finished_run.source.outdir
    assert "already holds this run" in plan(rsna, outdir)[-1]
    with pytest.raises(RunFolderError, match="another run"):
        plan(rsna, outdir, replace(SMALL, seed=5))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="can be written"):
        plan(rsna, tmp_path / "file" / "run")


def test_what_an_interrupted_run_has_behind_it_is_not_counted_again() -> None:
    cost = Footprint(
        parameters=1, learning=1, images=12, together=12, weights=4, gradients=4, optimizer=8, activations=100,
        checkpoint=12, step=2.0, look=0.5,
    )  # fmt: skip

    def seconds(done: int) -> dict[str, Any]:
        rows = pd.DataFrame({"fold": ["train"] * 24 + ["val"] * 4})
        return dryrun._schedule(rows, replace(SMALL, train=replace(SMALL.train, epochs=5)), Scale(), done, cost)

    assert seconds(0)["seconds"] == {"epoch": 6.0, "training": 5 * 6.0 + 2.0}
    assert seconds(3)["seconds"] == {"epoch": 6.0, "training": 2 * 6.0}
