"""Accidents in the child processes that look at pixels are findings of their files, and of no others."""

from pathlib import Path

import pytest

from mammoray import catalog, inventory, rules
from mammoray.config import AuditConfig
from mammoray.errors import StorageError
from mammoray.synth import SynthSummary
from tests import sandbox_jobs, spoil


def test_a_crash_a_hang_and_an_exception_are_findings_of_their_files(
    rsna: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    data = spoil.copied(rsna, tmp_path / "set")
    rows = catalog.build(data.csv, data.root).rows.head(8)
    accidents = {1: "segfault", 3: "sleep", 5: "raise", 6: "exit"}
    sandbox_jobs.plant(data.root.parent, {rows["path"][i]: what for i, what in accidents.items()})
    config = AuditConfig(pixels=True, limit_seconds=4)
    taken = inventory.take(rows, str(data.root), config, function="tests.sandbox_jobs:look_with_accidents")
    bad = {i: error[2] for i, error in enumerate(taken["pixel_error"]) if error}
    assert set(bad) == set(accidents)
    assert "SIGSEGV" in bad[1]
    assert "none until then" in bad[3]
    assert "TypeError" in bad[5]
    assert [f.image_id for f in rules.unreadable(taken)] == [rows["image_id"][i] for i in accidents]


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_storage_that_answers_nothing_ends_it_and_makes_no_file_a_bad_one(rsna: SynthSummary, s3: str) -> None:
    rows = catalog.build(rsna.csv, rsna.root).rows.head(8)
    nobody = s3.split("endpoint_override=", maxsplit=1)[0] + "endpoint_override=127.0.0.1:9&scheme=http"
    with pytest.raises(StorageError, match="a storage that answers"):
        inventory.take(rows, nobody, AuditConfig())
