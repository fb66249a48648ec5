"""A node that is not like the others: what a run is told before it starts, and what ``mammoray doctor`` says of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from mammoray import nodes
from mammoray.synth import SynthSummary
from tests.ray_nodes import OWN_MOUNTS, ROOT, RayNodes

ODD = """
    mount -t tmpfs tmpfs "$1/hidden" && mkdir "$1/hidden/data" && echo other > "$1/hidden/data/1.dcm" || exit 1
    mount --bind "$1/read-only" "$1/read-only" && mount -o remount,ro,bind "$1/read-only" || exit 1
    shift
    ulimit -n 4096
    exec "$@"
"""


@dataclass(frozen=True)
class Odd:
    """A cluster of two nodes, and a folder with ``shared``, ``hidden`` and ``read-only``, as the second sees them."""

    cluster: RayNodes
    folder: Path

    def require_seen(self, call: str) -> str:
        """What ``nodes.require_seen`` says when it is called so, with the folder as F."""
        program = f"""
import ray
from mammoray import cluster, nodes
from mammoray.errors import ClusterError
F = {str(self.folder)!r}
with cluster.connect(None):
    assert len(nodes.alive()) == 2
    try:
        nodes.require_seen({call})
    except ClusterError as error:
        print(error)
"""
        done = self.cluster.run("-c", program)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    folder = tmp_path_factory.mktemp("odd")
    for name in ("shared", "hidden/data", "read-only"):
        (folder / name).mkdir(parents=True)
    for name in ("shared", "hidden/data", "read-only"):
        (folder / name / "1.dcm").write_text("an image")
    shutil.copytree(ROOT / "mammoray", folder / "other" / "mammoray")
    (folder / "other" / "mammoray" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    cluster = RayNodes(Path("/tmp") / f"mammoray-{os.getpid()}-odd")
    try:
        elsewhere = {"PYTHONPATH": str(folder / "other"), "GLOO_SOCKET_IFNAME": "none0"}
        cluster.add([*OWN_MOUNTS, "sh", "-c", ODD, "sh", str(folder)], elsewhere)
        yield Odd(cluster, folder)
    finally:
        cluster.close()


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if "other" not in file.parts)


@pytest.mark.cluster
class TestOddNode:
    def test_a_folder_that_all_nodes_share_is_accepted_and_nothing_is_left_in_it(self, odd: Odd) -> None:
        before = files(odd.folder)
        call = '{"--cache": f"{F}/shared", "--outdir": f"{F}/shared/new/run", "--s3": "s3://bucket"}'
        assert odd.require_seen(f'{call}, f"{{F}}/read-only", ["1.dcm"]') == ""
        assert files(odd.folder) == before

    @pytest.mark.parametrize(
        ("call", "path", "found"),
        [
            ('{"--cache": f"{F}/hidden"}', "--cache {}/hidden", "another folder, or none"),
            ('{"--outdir": f"{F}/hidden/new/run"}', "--outdir {}/hidden/new/run", "another folder, or none"),
            ('{"--cache": f"{F}/read-only"}', "--cache {}/read-only", "cannot write (OSError: Read-only file system)"),
            ('{}, f"{F}/hidden", ["data/1.dcm"]', "--dicom-root {}/hidden", "of 6 bytes instead of 8"),
        ],
    )
    def test_a_folder_that_a_node_does_not_share_is_an_error_with_node_path_and_remedy(
        self, odd: Odd, call: str, path: str, found: str
    ) -> None:
        said = odd.require_seen(call)
        assert said.startswith(f"{path.format(odd.folder)} on node ")
        assert found in said
        instead = "an s3:// URI" if path.startswith("--dicom-root") else "--storage s3://bucket/prefix"
        assert said.endswith(f"Use {instead}, or a file system that all nodes mount at this path.")
        assert not [name for name in files(odd.folder) if ".mammoray" in name]

    def test_files_that_a_node_lacks_are_named(self, odd: Odd) -> None:
        (odd.folder / "hidden" / "2.dcm").write_text("an image")
        said = odd.require_seen('{}, f"{F}/hidden", ["2.dcm"]')
        assert f"found no {odd.folder}/hidden/2.dcm (FileNotFoundError" in said

    @pytest.mark.parametrize("verb", ["prepare", "train"])
    def test_a_run_ends_at_once_when_a_node_does_not_see_its_folders(
        self, odd: Odd, rsna: SynthSummary, verb: str
    ) -> None:
        outdir = odd.folder / "hidden" / verb
        words = ["--csv", str(rsna.csv), "--dicom-root", str(rsna.root), "--outdir", str(outdir)]
        done = odd.cluster.run("-m", "mammoray.cli", verb, *words, "--address", odd.cluster.address)
        assert done.returncode == 2, done.stdout
        flag = {"prepare": f"--cache {odd.folder}/hidden/mammoray-cache", "train": f"--outdir {outdir}"}[verb]
        assert f"error: {flag} on node " in done.stderr
        assert not (odd.folder / "hidden" / "mammoray-cache").exists(), "nothing was decoded"

    def test_the_doctor_fails_with_what_is_wrong_there(self, odd: Odd) -> None:
        words = ("doctor", "--json", "--storage", str(odd.folder / "hidden"), "--limit-seconds", "40")
        done = odd.cluster.run("-m", "mammoray.cli", *words)
        assert done.returncode == 1, done.stderr
        found = {(line["check"], line["level"]): line for line in json.loads(done.stdout)}
        assert "0.0.9" in found["mammoray", "FAIL"]["found"]
        assert "wrote is not seen" in found["storage", "FAIL"]["found"]
        assert "GLOO_SOCKET_IFNAME" in found["gloo", "FAIL"]["remedy"]
        assert found["open files", "WARN"]["found"].startswith("at most 4096 on ")
        assert ("clock", "OK") in found and ("network", "OK") in found
        for line in found.values():
            assert bool(line["remedy"]) == (line["level"] != "OK")
        assert not [name for name in files(odd.folder) if "doctor" in name]


@pytest.mark.usefixtures("ray_session")
class TestOneNode:
    def test_nothing_is_asked_of_a_cluster_of_one_node(self) -> None:
        nodes.require_seen({"--cache": "/proc/none"}, "/none", ["1.dcm"])

    def test_a_call_that_fails_or_takes_too_long_is_an_answer(self) -> None:
        node = nodes.alive()[0]
        answer = nodes.ask(importlib.metadata.version, {node: ("no-such-package",)})[node]
        assert answer.problem.startswith("PackageNotFoundError: ") and not answer.late
        late = nodes.ask(subprocess.check_call, {node: (["sleep", "30"],)}, limit=0.5)[node]
        assert late == nodes.Answer(problem="no answer within 0.5 s", late=True)

    def test_a_node_answers_while_all_its_cpus_are_taken(self) -> None:
        node = nodes.alive()[0]
        busy = ray.remote(num_cpus=node.cpus)(subprocess.check_call).remote(["sleep", "60"])
        while ray.available_resources().get("CPU"):
            time.sleep(0.1)
        assert nodes.ask(importlib.metadata.version, {node: ("ray",)})[node].value == ray.__version__
        assert ray.available_resources().get("CPU") is None, "the CPUs are still taken"
        ray.cancel(busy, force=True)
