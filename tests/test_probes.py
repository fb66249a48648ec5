from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mammoray import probes


def test_facts_are_of_this_machine(tmp_path: Path) -> None:
    facts = probes.facts(str(tmp_path))
    folder, total, free = facts["disk"]
    assert folder == str(tmp_path) and 0 < free < total
    assert facts["open_files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert 1 <= facts["threads"] <= (os.cpu_count() or 1)
    assert None not in facts["versions"].values()


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PACKAGES", ("no-such-package",))
    assert probes.versions()["no-such-package"] is None


def test_the_digest_of_code_follows_every_byte_and_name_of_the_modules_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    seen = {probes.code_digest(tmp_path)}
    (tmp_path / "a.txt").write_text("x = 1\n")
    assert {probes.code_digest(tmp_path)} == seen
    (tmp_path / "a.py").write_text("x = 2\n")
    seen.add(probes.code_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    seen.add(probes.code_digest(tmp_path))
    assert len(seen) == 3


def test_gpus_are_those_that_the_drivers_program_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.gpus() == []
    program.write_text("#!/bin/sh\necho 'GPU One, 16384 MiB, 550.54'\n")
    program.chmod(0o755)
    assert probes.gpus() == ["GPU One, 16384 MiB, 550.54"]
    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert probes.gpus() == []
