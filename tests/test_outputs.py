"""The output folder of a verb that is done in one go, and its copy, on a path and on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from mammoray import outputs, storage
from mammoray.errors import RunFolderError, StorageError

OWN = ("scores.csv", "notes.json")


def names(shared: str) -> set[str]:
    copy = storage.join(shared, "out")
    return {entry.path for entry in storage.walk(copy)} if storage.is_folder(copy) else set()


def put(outdir: Path, *files: str) -> None:
    for name in files:
        (outdir / name).write_text(name)


def test_what_was_written_is_in_the_copy_and_what_was_not_is_no_longer(shared: str, tmp_path: Path) -> None:
    with outputs.written(tmp_path / "out", OWN, shared, alone=True):
        put(tmp_path / "out", *OWN)
        assert names(shared) == set(), "nothing that is half done"
    assert names(shared) == set(OWN)
    # From another machine, whose folder is empty.
    with outputs.written(tmp_path / "elsewhere" / "out", OWN, shared, alone=True):
        put(tmp_path / "elsewhere" / "out", "scores.csv")
    assert names(shared) == {"scores.csv"}


def test_what_was_written_before_an_error_is_in_the_copy_and_nothing_is_lost(shared: str, tmp_path: Path) -> None:
    storage.upload(Path(__file__), storage.join(shared, "out/notes.json"))
    with pytest.raises(ZeroDivisionError), outputs.written(tmp_path / "out", OWN, shared):
        put(tmp_path / "out", "scores.csv")
        raise ZeroDivisionError
    assert names(shared) == set(OWN)


@pytest.mark.parametrize("where", ["folder", "copy"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(where: str, shared: str, tmp_path: Path) -> None:
    if where == "copy":
        storage.upload(Path(__file__), storage.join(shared, "out/checkpoints/best/model.json"))
    else:
        (tmp_path / "out").mkdir()
        put(tmp_path / "out", "thesis.tex")
    before = names(shared)
    with (
        pytest.raises(RunFolderError, match=r"thesis\.tex|found checkpoints") as error,
        outputs.written(tmp_path / "out", OWN, shared, alone=True),
    ):
        pytest.fail("it was taken")
    assert "endpoint" not in str(error.value)
    assert names(shared) == before
    with outputs.written(tmp_path / "out", OWN, shared):  # Of a verb that is at home beside others.
        put(tmp_path / "out", *OWN)
    assert names(shared) == before | set(OWN)


def test_without_a_storage_and_where_it_is_the_folder_itself_nothing_is_copied(tmp_path: Path) -> None:
    for shared in (None, str(tmp_path)):
        with outputs.written(tmp_path / "out", OWN, shared, alone=True):
            put(tmp_path / "out", "scores.csv")
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["scores.csv"]


def test_a_storage_that_does_not_answer_is_said_at_once(s3: str, tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="storage that answers"),
        outputs.written(tmp_path / "out", OWN, s3.replace("bucket", "another"), alone=True),
    ):
        pytest.fail("it was taken")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFolderError, match="a folder that can be written"),
        outputs.written(tmp_path / "file" / "out", OWN, None),
    ):
        pytest.fail("it was taken")
