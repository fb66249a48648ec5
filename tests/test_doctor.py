"""``mammoray doctor`` of one node, and of two that are well; odd ones are in test_nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mammoray import cli, doctor, probes
from mammoray.errors import ConfigError
from mammoray.verdicts import Verdict
from tests.ray_nodes import RayNodes

CHECKS = ["cluster", "versions", "CPUs", "/dev/shm", "object store", "disk", "open files", "GPUs"]
DOCTOR = ["-m", "mammoray.cli", "doctor"]


@pytest.mark.usefixtures("ray_session")
class TestOneNode:
    def test_every_check_has_a_line_and_what_is_not_well_has_a_remedy(self, tmp_path: Path) -> None:
        lines = doctor.examine(str(tmp_path), 60.0)
        assert [line.check for line in lines] == [*CHECKS, "storage", "network"]
        assert all(bool(line.remedy) == (line.level != "OK") for line in lines)
        assert list(tmp_path.iterdir()) == [], "the probe is gone"

    def test_more_cpus_by_ray_than_the_machine_has_are_a_warning(self) -> None:
        found = {line.check: line for line in doctor.examine(None, 60.0)}
        assert found["CPUs"].level == ("WARN" if probes.threads() < 4 else "OK")
        assert found["CPUs"].found.startswith("4 CPUs by Ray")
        assert "storage" not in found

    @pytest.mark.parametrize(
        ("place", "found", "remedy"),
        [
            ("/proc", "Error", "Make it"),
            ("/none", "no such folder", "Make it"),
            ("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http", "no answer within 5 s", "the credentials"),
        ],
    )
    def test_storage_that_cannot_be_used_is_a_failure_that_says_why(self, place: str, found: str, remedy: str) -> None:
        line = stored(place, 5.0)
        assert line.level == "FAIL"
        assert found in line.found and remedy in line.remedy
        assert "endpoint" not in line.found, "what stands behind the question mark may be secret"


def failures(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    """Of ``doctor --json``; but a full disk of the machine that the tests run on is not what they are about."""
    lines: list[dict[str, str]] = json.loads(done.stdout)
    assert done.returncode == any(line["level"] == "FAIL" for line in lines), done.stdout + done.stderr
    return [line for line in lines if line["level"] == "FAIL" and line["check"] != "disk"]


def stored(place: str, limit: float = 60.0) -> Verdict:
    return next(line for line in doctor.examine(place, limit) if line.check == "storage")


@pytest.fixture(scope="module")
def pair(s3: str) -> Iterator[RayNodes]:
    """Two nodes, and the credentials of the bucket in their environment."""
    cluster = RayNodes(Path("/tmp") / f"mammoray-{os.getpid()}-pair")
    try:
        cluster.add()
        yield cluster
    finally:
        cluster.close()


@pytest.mark.cluster
class TestTwoNodes:
    def test_a_bucket_that_is_not_there_fails_on_both_nodes(self, pair: RayNodes, s3: str) -> None:
        (line,) = failures(pair.run(*DOCTOR, "--json", "--storage", s3.replace("bucket", "another")))
        assert line["found"] == "s3://another/some/prefix: OSError on each of 2 nodes"
        assert line["remedy"].startswith("Check its address")

    def test_nodes_that_are_well_make_status_0_and_reach_each_other(self, pair: RayNodes, s3: str) -> None:
        done = pair.run(*DOCTOR, "--storage", s3, "--address", pair.address)
        found = {line[6:19].strip(): line for line in done.stdout.splitlines()}
        full = found["disk"].startswith("FAIL")
        assert done.returncode == full, done.stdout + done.stderr
        assert list(found)[:-1] == [*CHECKS, "storage", "clock", "network", "gloo"]
        assert "2 nodes, 2 CPUs" in found["cluster"]
        assert "all 2 nodes reach each other" in found["network"]
        assert "2 processes add up 16 MB in" in found["gloo"]
        assert done.stdout.splitlines()[-1].endswith("1 failure" if full else "0 failures")

    def test_a_node_that_does_not_answer_is_a_failure_and_no_hang(self, pair: RayNodes) -> None:
        raylet = pair.raylets()[1]
        raylet.send_signal(signal.SIGSTOP)
        try:
            done = pair.run(*DOCTOR, "--json", "--limit-seconds", "20")
        finally:
            raylet.send_signal(signal.SIGCONT)
        assert done.returncode == 1, done.stdout + done.stderr
        found = {line["check"]: line for line in json.loads(done.stdout)}
        assert found["node"]["level"] == "FAIL"
        assert found["node"]["found"].endswith(": no answer within 20 s")
        assert found["versions"]["level"] == "OK", "the other node was looked at"

    def test_a_node_without_this_code_is_named_and_it_can_be_brought_along(
        self, pair: RayNodes, tmp_path: Path
    ) -> None:
        # The interpreter may have it installed: this one is found first.
        (tmp_path / "mammoray.py").write_text("raise ModuleNotFoundError(\"No module named 'mammoray'\")\n")
        pair.add(environment={"PYTHONPATH": str(tmp_path)})
        alone, along = (pair.run(*DOCTOR, "--json", *more) for more in ([], ["--address", pair.address]))
        (line,) = failures(alone)
        assert "ModuleNotFoundError: No module named 'mammoray" in line["found"]
        assert "--address" in line["remedy"]
        assert failures(along) == []


def test_no_cluster_at_the_address_is_status_2() -> None:
    words = [sys.executable, "-m", "mammoray.cli", "doctor", "--address", "127.0.0.1:1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a Ray cluster that answers" in done.stderr


@pytest.mark.parametrize("words", [["--storage", "s3://key:secret@bucket"], ["--limit-seconds", "0"]])
def test_wrong_settings_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        cli.parse("doctor", words)
