import json
from pathlib import Path

import pandas as pd
import pytest

from mammoray import checkpoint, model, origin, splitfile, storage
from mammoray.checkpoint import Snapshot
from mammoray.config import DecodeConfig
from mammoray.errors import CheckpointError, LeakError, RunFolderError, SplitError
from mammoray.recipe import ModelConfig

PATIENTS = {"010": "train", "11": "train", "12": "val", "13": "test"}


def split_of(patients: dict[str, str]) -> splitfile.Split:
    rows = pd.DataFrame(
        [(f"{patient}-{i}", patient, "A", fold) for patient, fold in patients.items() for i in range(2)],
        columns=list(splitfile.COLUMNS),
    )
    return splitfile.Split(rows=rows, digest=splitfile.digest(rows))


def write_checkpoint(folder: Path, digest: str, config: ModelConfig | None = None) -> Path:
    config = config or ModelConfig(arch="test_resnet", pretrained=False)
    net = model.build(ModelConfig(arch="test_resnet", pretrained=False), "cross_entropy", "density", 1)
    card = checkpoint.card_of(net, config, classes="density", decode=DecodeConfig(), split_digest=digest, epoch=1)
    folder.mkdir(parents=True)
    checkpoint.write(folder, Snapshot(card=card, model=net.state_dict()))
    return folder


def make_run(run: Path) -> Path:
    """A run's folder as far as it is looked at."""
    split = split_of(PATIENTS)
    write_checkpoint(run / "checkpoints" / "best", split.digest)
    splitfile.save(split, run, split.rows)
    catalog = split.rows.assign(path=[f"x/{name}.dcm" for name in split.rows["image_id"]], size=range(8))
    catalog.to_parquet(run / "catalog.parquet")
    return run


def rows(*patients: str, path: str = "y/0.dcm", size: int = 99) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": patients, "path": path, "size": size})


def folds(table: pd.DataFrame, run: Path) -> list[str]:
    return [str(fold) for fold in origin.folds(table, origin.find(run))]


def test_a_run_and_its_checkpoint_are_one_origin(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert origin.find(run) == origin.find(run / "checkpoints" / "best")
    assert origin.find(run).folds == PATIENTS


@pytest.mark.parametrize("below", ["", "checkpoints/best"])
def test_a_run_on_a_storage_is_the_same_origin(below: str, s3: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "checkpoints" / "best" / "training.safetensors").write_bytes(b"much that is not needed")
    place = storage.join(s3, f"origin {tmp_path.name}")
    for entry in storage.walk(str(run)):
        storage.upload(run / entry.path, storage.join(place, entry.path))
    with origin.opened(storage.join(place, below) if below else place) as found:
        assert (found.digest, found.card, found.folds) == tuple(
            getattr(origin.find(run), name) for name in ("digest", "card", "folds")
        )
        assert found.files == origin.find(run).files and found.grouped_by == origin.find(run).grouped_by
        assert found.place == storage.shown(storage.join(place, below) if below else place)
        assert not (found.folder / "training.safetensors").exists()
    assert not found.folder.exists()


def test_a_checkpoint_alone_on_a_storage_and_one_that_is_not_there(s3: str, tmp_path: Path) -> None:
    alone = write_checkpoint(tmp_path / "alone", "d" * 16)
    place = storage.join(s3, tmp_path.name)
    for entry in storage.walk(str(alone)):
        storage.upload(alone / entry.path, storage.join(place, f"alone/{entry.path}"))
    with origin.opened(storage.join(place, "alone")) as found:
        assert found.folds is None and found.digest == origin.find(alone).digest
    with (
        pytest.raises(CheckpointError, match=r"neither checkpoints/best nor model\.json") as error,
        origin.opened(storage.join(place, "nothing")),
    ):
        pass
    assert f"--checkpoint s3://bucket/some/prefix/{tmp_path.name}/nothing" in str(error.value)
    assert "endpoint" not in str(error.value)


def test_the_fold_of_a_patient_is_that_of_the_split_by_the_id_as_it_stands(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert folds(rows("010", "12", "13", "10"), run) == ["train", "val", "test", "new"]


def test_a_file_is_recognised_by_name_and_size_where_the_patient_is_called_otherwise(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert folds(rows("other", path="elsewhere/12-0.dcm", size=4), run) == ["val"]
    assert folds(rows("other", path="elsewhere/12-0.dcm", size=5), run) == ["new"]
    known = pd.concat([rows("p", path="a/12-0.dcm", size=4), rows("p", path="a/unknown.dcm")], ignore_index=True)
    assert folds(known, run) == ["val", "val"], "one known image makes the patient known"


def test_names_and_sizes_that_many_files_share_tell_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    catalog = pd.read_parquet(run / "catalog.parquet")
    catalog.assign(path=[f"{i}/1.dcm" for i in range(8)], size=7).to_parquet(run / "catalog.parquet")
    assert folds(rows("other", path="new/1.dcm", size=7), run) == ["new"]


def test_a_checkpoint_alone_knows_of_nobody_and_says_so(tmp_path: Path) -> None:
    found = origin.find(write_checkpoint(tmp_path / "alone", "d" * 16))
    table = rows("010", "13")
    table = table.assign(fold=origin.folds(table, found))
    assert table["fold"].tolist() == ["unknown", "unknown"]
    assert origin.choose(table, found, "refuse") is table
    with pytest.raises(CheckpointError, match=r"--seen leave_out.*the split.csv of its run"):
        origin.choose(table, found, "leave_out")
    assert "not known" in origin.limits(found, "patient_id")[0]


def test_patients_who_were_learned_from_are_refused_left_out_or_allowed(tmp_path: Path) -> None:
    found = origin.find(make_run(tmp_path / "run"))
    table = rows("010", "010", "12", "13", "new")
    table = table.assign(fold=origin.folds(table, found))
    with pytest.raises(LeakError, match=r"2 of 4 patients \(3 of 5 images\).*010, 12"):
        origin.choose(table, found, "refuse")
    assert origin.choose(table, found, "leave_out")["patient_id"].tolist() == ["13", "new"]
    assert len(origin.choose(table, found, "allow")) == 5
    with pytest.raises(LeakError, match="2 of 2 patients"):
        origin.choose(table[:3], found, "leave_out")


def test_a_split_that_is_not_the_checkpoints_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    other = split_of({**PATIENTS, "13": "train"})
    splitfile.save(other, run, other.rows)
    with pytest.raises(CheckpointError, match=other.digest):
        origin.find(run)
    (run / "split.csv").write_text("image_id,patient_id\n")
    with pytest.raises(SplitError, match="header"):
        origin.find(run)


def test_a_folder_without_a_checkpoint_and_a_damaged_catalog_are_errors(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for place, found in ((tmp_path, "neither"), (tmp_path / "none", "no such folder")):
        with pytest.raises(CheckpointError, match=f"--checkpoint.*{found}"):
            origin.find(place)
    (run / "catalog.parquet").write_bytes(b"no table")
    with pytest.raises(RunFolderError, match=r"catalog\.parquet"):
        origin.find(run)
    (run / "checkpoints" / "best" / "model.safetensors").unlink()
    (run / "catalog.parquet").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        origin.find(run)


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "a woman with another id is not recognised" in origin.limits(origin.find(run), "patient_id")[0]
    assert "by patient_id and these rows are by folder" in origin.limits(origin.find(run), "folder")[0]
    config = ModelConfig(arch="test_resnet", weights=Path("other.safetensors"))
    started = origin.find(write_checkpoint(tmp_path / "started", "d" * 16, config))
    assert "weights from a file" in origin.limits(started, "patient_id")[1]
    assert json.loads((run / "split.json").read_text())["grouped_by"] == "patient_id"


def test_a_file_that_was_learned_from_is_known_whatever_patient_a_table_gives_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    learned = pd.read_parquet(run / "catalog.parquet").iloc[0]
    assert folds(rows("13", path=learned["path"], size=int(learned["size"])), run) == ["train"]
