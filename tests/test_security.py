"""Secrets stay where they were given, ports where they are told, and files from elsewhere are never programs."""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from mammoray import cache, checkpoint, cli, model
from mammoray.config import DecodeConfig
from mammoray.errors import CheckpointError, IngestError, ModelError
from mammoray.plain import replace, to_toml
from mammoray.recipe import ModelConfig
from mammoray.synth import SynthSummary
from tests.conftest import SMALL

pytestmark = pytest.mark.cluster

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-key-6Jq1",
    "AWS_SESSION_TOKEN": "planted-session-6Jq1",
    "RAY_AUTH_TOKEN": "planted-token-6Jq1-of-the-length-that-ray-asks-for",
    "WANDB_API_KEY": "planted-wandb-6Jq1",
}


@pytest.fixture
def near_the_root() -> Iterator[Path]:
    """A short path for Ray's session, whose sockets have names of 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as folder:
        yield Path(folder)


def environment(session: Path, home: Path, **more: str) -> dict[str, str]:
    """The environment of a user without any Ray of their own yet."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return own | {"RAY_TMPDIR": str(session), "HOME": str(home), **more}


def holding(folder: Path, *texts: str) -> list[str]:
    """Files in which one of these texts stands."""
    wanted = [text.encode() for text in texts]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [str(path.relative_to(folder)) for path in files if any(text in path.read_bytes() for text in wanted)]


@pytest.mark.long
def test_no_secret_of_the_environment_comes_into_a_run_its_output_or_rays_logs(
    rsna: SynthSummary, s3: str, near_the_root: Path, tmp_path: Path
) -> None:
    settings, outdir = tmp_path / "settings.toml", tmp_path / "out" / "run"
    quick = replace(SMALL, train=replace(SMALL.train, epochs=1), ingest=replace(SMALL.ingest, cache=f"{s3}&region=x"))
    settings.write_text(to_toml(quick), encoding="utf-8")
    words = ["--csv", str(rsna.csv), "--dicom-root", str(rsna.root), "--outdir", str(outdir), "--config", str(settings)]
    done = subprocess.run(
        [sys.executable, "-m", "mammoray.cli", "train", *words],
        env=environment(near_the_root, tmp_path, RAY_AUTH_MODE="token", **PLANTED),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"config.toml", "run.json", "history.jsonl", "report.html"} <= {path.name for path in outdir.iterdir()}
    assert any(outdir.rglob("*.safetensors")) and any(outdir.rglob("events.out.*"))
    secrets = PLANTED.values()
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
    assert holding(outdir.parent, *secrets) == []
    assert any(near_the_root.rglob("*.log"))
    assert holding(near_the_root, *secrets) == []
    assert list(outdir.rglob("*.pkl")) == []


SECRET = "hunter-2-of-a-uri"
URIS = [
    f"s3://AKIAEXAMPLE:{SECRET}@bucket/prefix",
    f"s3://bucket/prefix?region=eu-west-1&secret_key={SECRET}",
    f"abfs://container@account.dfs.core.windows.net/x?client_secret={SECRET}",
    f"https://account.blob.core.windows.net/x?sv=2024&sig={SECRET}",
]


VERBS = ["train", "prepare", "crossval", "tune", "audit"]
PLACES = [(verb, flag) for verb in VERBS for flag in ("--csv", "--dicom-root", "--cache")]
PLACES.remove(("audit", "--cache"))


@pytest.mark.parametrize(
    ("verb", "flag", "uri"),
    [*((*place, URIS[0]) for place in PLACES), *(("train", "--cache", uri) for uri in URIS[1:])],
)
def test_a_uri_with_a_secret_is_refused_unseen_and_unwritten(
    verb: str, flag: str, uri: str, rsna: SynthSummary, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"--csv": str(rsna.csv), "--dicom-root": str(rsna.root), "--outdir": str(tmp_path / "out"), flag: uri}
    status = cli.main([verb, *(word for pair in words.items() for word in pair)])
    shown = "".join(capfd.readouterr())
    assert status == 2
    assert SECRET not in shown and flag in shown and "environment" in shown
    assert holding(tmp_path, SECRET) == []


LOOK = """
import psutil, ray
from mammoray import cluster
with cluster.connect(None):
    node = ray._private.worker.global_worker.node
    port = int(node.address_info["webui_url"].rpartition(":")[2])
    every = [c for p in psutil.Process().children(recursive=True) for c in p.net_connections("inet")]
    print("dashboard at", *{c.laddr.ip for c in every if c.status == "LISTEN" and c.laddr.port == port})
    print("mode", __import__("os").environ["RAY_AUTH_MODE"])
"""


@pytest.mark.long
def test_a_local_session_has_its_dashboard_and_job_server_on_loopback_and_asks_for_a_token(
    near_the_root: Path, tmp_path: Path
) -> None:
    looked = [sys.executable, "-c", LOOK]
    own = environment(near_the_root, tmp_path)
    done = subprocess.run(looked, env=own, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["dashboard at 127.0.0.1", "mode token"]
    token = tmp_path / ".ray" / "auth_token"
    assert token.read_text(encoding="utf-8")


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A file that is there once a program of a stranger ran; that the attack works is seen first."""
    pickle.loads(pickle.dumps(Attack(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    return tmp_path / "trace"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["torch", "bare"])
def test_weights_from_elsewhere_cannot_run_a_program(kind: str, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    if kind == "torch":
        torch.save({"state_dict": Attack(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Attack(trace)))
    config = ModelConfig(arch="test_resnet", pretrained=False, weights=file)
    with pytest.raises(ModelError):
        model.build(config, "ce", "density", 0)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_checkpoint_from_elsewhere_cannot_run_a_program(name: str, trace: Path, tmp_path: Path) -> None:
    torch.save({"weight": Attack(trace)}, tmp_path / name)
    with pytest.raises(CheckpointError):
        checkpoint.read_tensors(tmp_path, "model" if name.startswith("model") else "training")
    (tmp_path / "state.json").write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(CheckpointError):
        checkpoint.read_state(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["pickle", "extension"])
def test_a_cache_from_elsewhere_cannot_run_a_program(kind: str, trace: Path, tmp_path: Path) -> None:
    """Old versions of Arrow unpickled an extension type that a file names."""
    folder = Path(cache.cache_folder(str(tmp_path), DecodeConfig()))
    folder.mkdir()
    if kind == "pickle":
        (folder / "0.arrow").write_bytes(pickle.dumps(Attack(trace)))
    else:
        named = {
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Attack(trace)),
        }
        schema = pa.schema([pa.field("key", pa.string(), metadata=named)])
        with pa.OSFile(str(folder / "0.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([pa.array(["a"])], schema=schema))
    with pytest.raises(IngestError):
        cache.read_index(str(folder))
    assert not trace.exists()


def test_pickle_is_spoken_between_processes_of_one_program_alone() -> None:
    package = Path(cli.__file__).parent
    spoken = {
        file.stem
        for file in package.glob("*.py")
        if re.search(
            r"^\s*(import|from) (pickle|cloudpickle|joblib|shelve|marshal|dill)\b", file.read_text("utf-8"), re.M
        )
    }
    assert spoken == {"sandbox"}
