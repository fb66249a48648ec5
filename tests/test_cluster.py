"""Real clusters on loopback: ``ray start --head``, ``ray job submit``, ``ray://``, and addresses that do not answer."""

import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mammoray import cluster, train
from mammoray.config import Config
from mammoray.controller import read_history
from mammoray.errors import ClusterError
from mammoray.plain import replace, to_toml
from mammoray.scale import Scale
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, FinishedRun, Prepared
from tests.test_faults import LONG

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started as a person would."""

    gcs: str
    client: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    gcs, client, dashboard = free_port(), free_port(), free_port()
    # Unix socket paths have a limit of 107 characters: the session's folder must be near the root.
    folder = Path("/tmp") / f"mammoray-{os.getpid()}"
    home = tmp_path_factory.mktemp("home")
    # A cluster with token authentication, as Ray recommends; the token lies in the home folder.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
    }
    subprocess.run([str(BIN / "ray"), "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=3", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--temp-dir={folder}", "--dashboard-agent-listen-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    made = Head(f"127.0.0.1:{gcs}", f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}", environment)
    deadline = time.monotonic() + 120
    while not ready(made):
        assert process.poll() is None, (home / "log").read_text()
        assert time.monotonic() < deadline, (home / "log").read_text()
    yield made
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def ready(head: Head) -> bool:
    """Whether the client server and the agent for runtime environments behind it answer; ports open before that."""
    code = f"import ray; ray.init({head.client!r}, runtime_env={{'env_vars': {{'READY': '1'}}}})"
    return (
        subprocess.run([sys.executable, "-c", code], env=head.environment, capture_output=True, check=False).returncode
        == 0
    )


def start(head: Head, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, from the repository's root, as a user of this cluster."""
    return subprocess.run(
        [str(BIN / program), *words],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def flags(data: SynthSummary, folder: Path, settings: Config = SMALL) -> list[str]:
    config = folder / "settings.toml"
    config.write_text(to_toml(settings), encoding="utf-8")
    return [
        "--csv",
        str(data.csv),
        "--dicom-root",
        str(data.root),
        "--outdir",
        str(folder / "run"),
        "--config",
        str(config),
    ]


def facts(outdir: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((outdir / "run.json").read_text())
    return content


def curve(outdir: Path) -> list[tuple[float, float]]:
    records = [json.loads(line) for line in (outdir / "history.jsonl").read_text().splitlines()]
    return [(r["train_loss"] or 0.0, r["val_loss"]) for r in records]


def test_a_submitted_job_gives_the_split_and_the_curve_of_a_local_run(
    head: Head, finished_run: FinishedRun, rsna: SynthSummary, tmp_path: Path
) -> None:
    submit = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    script = ["--runtime-env", "jobs/runtime_env.yaml", "--", "python", "jobs/train.py", *flags(rsna, tmp_path)]
    done = start(head, *submit, *script, "--num-workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    local, submitted = finished_run.source.outdir, tmp_path / "run"
    assert facts(submitted)["split_digest"] == facts(local)["split_digest"]
    assert facts(submitted)["identity"] == facts(local)["identity"]
    assert (submitted / "split.csv").read_bytes() == (local / "split.csv").read_bytes()
    for got, expected in zip(curve(submitted), curve(local), strict=True):
        assert got == pytest.approx(expected, rel=1e-4)
    assert "test, per patient" in done.stdout


@pytest.mark.parametrize("kind", ["gcs", "client"])
def test_an_address_gives_the_split_of_a_local_run(
    kind: str, head: Head, finished_run: FinishedRun, rsna: SynthSummary, tmp_path: Path
) -> None:
    done = start(
        head, "mammoray", "train", *flags(rsna, tmp_path), "--address", getattr(head, kind), "--num-workers", "2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(tmp_path / "run")["split_digest"] == facts(finished_run.source.outdir)["split_digest"]
    assert "epoch 2/2" in done.stdout + done.stderr


@pytest.mark.parametrize("way", ["client", "job"])
def test_a_data_set_is_prepared_on_the_cluster(way: str, head: Head, rsna: SynthSummary, tmp_path: Path) -> None:
    words = flags(rsna, tmp_path)
    if way == "client":
        done = start(head, "mammoray", "prepare", *words, "--address", head.client)
    else:
        submit = ["job", "submit", "--address", head.dashboard, "--working-dir", ".", "--runtime-env"]
        done = start(head, "ray", *submit, "jobs/runtime_env.yaml", "--", "python", "jobs/prepare.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "prepare.json").read_text())
    assert summary["decoded"] == summary["images"] == summary["new"]
    assert "images/s" in done.stdout + done.stderr


@pytest.mark.parametrize("token", [None, "guessed"])
def test_the_job_server_runs_nothing_for_who_lacks_the_token(token: str | None, head: Head) -> None:
    entry = json.dumps({"entrypoint": "touch /tmp/never"}).encode()
    own = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", data=entry, headers=own, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code in (401, 403)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_submitted_training_that_is_stopped_then_killed_goes_on_to_the_curve_of_an_undisturbed_run(
    head: Head, prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    config = replace(LONG, train=replace(LONG.train, epochs=60))
    words = [*flags(rsna, tmp_path, config), "--cache", str(prepared.cache)]
    secret = "sesame-" + secrets.token_hex(8)
    head = dataclasses.replace(head, environment=head.environment | {"AWS_SECRET_ACCESS_KEY": secret})

    def submit(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            "job",
            "submit",
            "--address",
            head.dashboard,
            "--working-dir",
            ".",
            "--submission-id",
            name,
            *options,
        ]
        return start(
            head, "ray", *command, "--runtime-env", "jobs/runtime_env.yaml", "--", "python", "jobs/train.py", *words
        )

    def asked(verb: str, *name: str) -> str:
        done = start(head, "ray", "job", verb, "--address", head.dashboard, *name)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def trained(more: int) -> int:
        """Wait for so many more epochs; returns how many records there are."""
        before, deadline = len(read_history(tmp_path / "run")), time.monotonic() + 200
        while (now := len(read_history(tmp_path / "run"))) < before + more:
            assert time.monotonic() < deadline, asked("list")
            time.sleep(0.1)
        return now

    assert submit("stopped", "--no-wait").returncode == 0
    trained(3)
    asked("stop", "stopped")
    assert "was stopped" in asked("status", "stopped")
    log = asked("logs", "stopped")
    assert "a checkpoint was made" in log and "Traceback" not in log, log
    assert submit("killed", "--no-wait").returncode == 0
    before = trained(3)
    driver = next(p for p in psutil.process_iter() if "jobs/train.py" in _words(p) and str(tmp_path) in _words(p))
    driver.kill()
    done = submit("third")
    assert done.returncode == 0, done.stdout + done.stderr
    began = re.search(r"workers, from epoch (\d+)", done.stdout)
    assert began and before - 1 <= int(began[1]) <= 60, done.stdout
    assert "'killed' failed" in asked("status", "killed")
    assert secret not in asked("list"), "what a job's metadata shows"
    rows = prepared.rows.sort_values("image_id", ignore_index=True)
    whole = train.fit(rows, prepared.digest, config, Scale(), tmp_path / "whole", lambda line: None)
    expected = [(r["train_loss"] or 0.0, r["val_loss"]) for r in whole.history]
    for got, wanted in zip(curve(tmp_path / "run"), expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-4)


def _words(process: psutil.Process) -> str:
    try:
        # Of the program itself: Ray's supervisor of the job has the same words behind a shell.
        return " ".join(process.cmdline()) if "python" in process.name() else ""
    except psutil.Error:
        return ""


def test_an_error_on_the_cluster_arrives_as_the_same_one_line(head: Head, rsna: SynthSummary, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.csv")
    done = start(head, "mammoray", "train", *flags(rsna, tmp_path), "--csv", missing, "--address", head.client)
    assert done.returncode == 2, done.stderr
    assert f"error: {tmp_path / 'none.csv'}" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "ray://127.0.0.1"])
def test_an_address_that_does_not_answer_is_an_error_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"--address {address}"):
        cluster._check_reachable(address)
    assert time.monotonic() - started < 10


def test_a_dead_ray_address_in_the_environment_is_named(rsna: SynthSummary, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    words = [str(BIN / "mammoray"), "train", *flags(rsna, tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "RAY_ADDRESS 127.0.0.1" in done.stderr


def test_the_command_line_says_so_too(rsna: SynthSummary, tmp_path: Path) -> None:
    words = ["train", *flags(rsna, tmp_path), "--address", f"127.0.0.1:{free_port()}"]
    done = subprocess.run([str(BIN / "mammoray"), *words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr
