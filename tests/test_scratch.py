from __future__ import annotations

from pathlib import Path

import pytest

from mammoray import scratch, storage


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_nodes_see_what_others_wrote_and_miss_what_they_did_not(kind: str, s3: str, tmp_path: Path) -> None:
    place = str(tmp_path) if kind == "disk" else s3.replace("prefix", "scratch")
    for name in ("a", "b"):
        assert scratch.write(place, "token", name)[0] == ""
    writers = {"a": "node A", "b": "node B"}
    assert scratch.read(place, "token", writers) == ""
    assert scratch.read(place, "token", {**writers, "c": "node C"}) == "what node C wrote is not seen"
    for name in writers:
        assert scratch.remove(place, "token", name) == ""
    assert scratch.remove(place, "token", "a") != "", "it was there before"
    scratch.clear(place, "token")
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_bytes_is_not_seen_as_its_writers(tmp_path: Path) -> None:
    scratch.write(str(tmp_path), "token", "a")
    Path(storage.join(str(tmp_path), "mammoray-doctor-token/a")).write_text("b")
    assert scratch.read(str(tmp_path), "token", {"a": "node A"}) == "what node A wrote is not seen"


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert scratch.write(str(tmp_path / "none"), "token", "a")[0] == "no such folder"
    assert list(tmp_path.iterdir()) == []
