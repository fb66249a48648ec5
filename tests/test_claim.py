import json
from pathlib import Path

import pytest

from mammoray import claim
from mammoray.errors import RunFolderError
from mammoray.mirror import Mirror


def finish(outdir: Path) -> None:
    marker = outdir / "run.json"
    claim.write_json(marker, {**json.loads(marker.read_text()), "finished": True})
    (outdir / "metrics.json").write_text("{}")


def test_only_the_same_run_may_go_on_and_it_keeps_its_checkpoints(tmp_path: Path) -> None:
    outdir = tmp_path / "a" / "run"
    assert not claim.is_finished(outdir, "one")
    assert not outdir.exists(), "looking writes nothing"
    claim.take(Mirror(outdir, None), "one")
    (outdir / "checkpoints").mkdir()
    (outdir / "history.jsonl").write_text("{}\n")
    assert not claim.is_finished(outdir, "one")
    claim.take(Mirror(outdir, None), "one")
    assert (outdir / "checkpoints").is_dir()
    with pytest.raises(RunFolderError, match="another run"):
        claim.is_finished(outdir, "two")
    finish(outdir)
    assert claim.is_finished(outdir, "one")


def test_a_run_without_an_epoch_gives_way_to_another_with_all_it_left(tmp_path: Path) -> None:
    claim.take(Mirror(tmp_path, None), "one")
    (tmp_path / "checkpoints").mkdir()
    assert not claim.is_finished(tmp_path, "two")
    claim.take(Mirror(tmp_path, None), "two")
    assert not (tmp_path / "checkpoints").exists()


def test_a_place_that_cannot_be_a_folder_is_refused_without_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    claim.require_writable(tmp_path / "new" / "run")
    with pytest.raises(RunFolderError, match="no folder"):
        claim.require_writable(tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
