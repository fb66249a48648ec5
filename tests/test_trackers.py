"""The trackers, by their real libraries: event files, a local store of MLflow, an offline run of Weights & Biases."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mammoray import curves, trackers
from mammoray.config import Config
from mammoray.errors import ConfigError
from tests.run_factory import make_epoch
from tests.test_curves import PRIVATE
from tests.tracker_readers import READERS, read_mlflow, read_tensorboard, read_wandb, wandb_records

ROOT = Path(__file__).parents[1]
ALL = ("tensorboard", "mlflow", "wandb")
FACTS = {"workers": 2, "limits": ["none"]}
HISTORY: list[dict[str, Any]] = [make_epoch(epoch) for epoch in range(4)]

KILLED = """
import os, signal, sys
from pathlib import Path
from mammoray import trackers
from mammoray.config import Config
from tests.run_factory import make_epoch
opened = trackers.open_all((sys.argv[1],), Path(sys.argv[2]), Config(), {}, [], print)
for epoch in range(2):
    opened.log(make_epoch(epoch))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


def outside() -> dict[str, str]:
    """The environment without the process of wandb that this one has begun."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def expected(history: list[dict[str, Any]]) -> Any:
    out: dict[str, list[Any]] = {}
    for record in history:
        for tag, value in curves.points(record).items():
            out.setdefault(tag, []).append((record["epoch"], pytest.approx(value, rel=1e-6)))
    return out


def log(names: tuple[str, ...], outdir: Path, history: list[dict[str, Any]], *records: dict[str, Any]) -> list[str]:
    """Open, log and close; returns what was said."""
    said: list[str] = []
    with trackers.open_all(names, outdir, Config(), FACTS, history, said.append) as opened:
        for record in records:
            opened.log(record)
    return said


@pytest.mark.parametrize("name", ALL)
def test_every_epoch_is_in_the_tracker_once(name: str, tmp_path: Path) -> None:
    assert log((name,), tmp_path, [], *HISTORY) == []
    held = READERS[name](tmp_path)
    assert held == expected(HISTORY)
    assert [step for step, _ in held["loss/val"]] == [0, 1, 2, 3]
    assert [step for step, _ in held["loss/train"]] == [1, 2, 3]


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_was_killed_is_made_complete_from_its_history(name: str, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, name, str(tmp_path)], cwd=ROOT, env=outside(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert log((name,), tmp_path, HISTORY[:3], HISTORY[3]) == []
    assert READERS[name](tmp_path) == expected(HISTORY)


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_is_opened_again_and_again_has_every_epoch_once(name: str, tmp_path: Path) -> None:
    for epochs in range(4):
        assert log((name,), tmp_path, HISTORY[:epochs], HISTORY[epochs], HISTORY[epochs]) == []
    assert READERS[name](tmp_path) == expected(HISTORY)


def test_tensorboard_shows_one_run_with_its_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    with trackers.open_all(("tensorboard",), tmp_path, PRIVATE, FACTS, [], print) as opened:
        opened.log(HISTORY[0])
        opened.close({"classes": ["A"]})
    (file,) = (tmp_path / "tensorboard").rglob("*")
    assert file.is_file()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["optim.lr"].number_value == PRIVATE.optim.lr
    assert hparams["run.workers"].number_value == 2
    assert "_hparams_/session_end_info" in events.summary_metadata
    text = events.Tensors("config.toml/text_summary")[0].tensor_proto.string_val[0].decode()
    assert 'split_file = "split.csv"' in text
    assert "clinic" not in text


def test_the_events_of_an_epoch_are_on_the_disk_before_the_next(tmp_path: Path) -> None:
    opened = trackers.open_all(("tensorboard",), tmp_path, Config(), {}, [], print)
    for epoch in range(3):
        opened.log(HISTORY[epoch])
        assert read_tensorboard(tmp_path) == expected(HISTORY[: epoch + 1])


def test_mlflow_has_parameters_metrics_json_and_the_state_of_the_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    log(("mlflow",), tmp_path, [], HISTORY[0])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert client.get_run(run_id).info.status == "FAILED"
    trackers.open_all(("mlflow",), tmp_path, Config(), FACTS, HISTORY[:1], print).close({"classes": ["A", "B"]})
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "20"
    assert run.data.params["run.workers"] == "2"
    (file,) = (tmp_path / "mlflow" / "artifacts").rglob("metrics.json")
    assert json.loads(file.read_text()) == {"classes": ["A", "B"]}


def test_mlflow_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/server.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "breasts")
    monkeypatch.chdir(tmp_path)
    assert log(("mlflow",), tmp_path / "run", [], HISTORY[0]) != []  # The folder of the run is not there.
    (tmp_path / "run").mkdir()
    assert log(("mlflow",), tmp_path / "run", [], HISTORY[0]) == []
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("breasts")
    assert experiment is not None
    assert "run" in [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert not (tmp_path / "run" / "mlflow").exists()


def test_a_run_that_a_store_does_not_know_is_begun_there(tmp_path: Path) -> None:
    curves.keep_id(tmp_path, "mlflow", "0" * 32)
    assert log(("mlflow",), tmp_path, HISTORY[:2]) == []
    assert read_mlflow(tmp_path) == expected(HISTORY[:2])


def test_wandb_is_told_neither_the_machine_nor_the_command_nor_folders(tmp_path: Path) -> None:
    said: list[str] = []
    trackers.open_all(("wandb",), tmp_path, PRIVATE, FACTS, HISTORY[:1], said.append).close({"test": {"kappa": 0.5}})
    assert said == []
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    records = wandb_records(folder)
    assert [record.run.host for record in records if record.HasField("run")] == [""]
    sent = b"".join(path.read_bytes() for path in (*folder.glob("*.wandb"), *folder.glob("files/*")))
    assert b"test/kappa" in sent
    assert b"split.csv" in sent
    for private in (sys.argv[0], "clinic", str(Path.cwd()), str(tmp_path)):
        assert private.encode() not in sent, private


def test_what_was_sent_of_an_offline_run_stays(tmp_path: Path) -> None:
    log(("wandb",), tmp_path, [], HISTORY[0])
    (sent,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = sent.glob("*.wandb")
    file.with_suffix(".wandb.synced").touch()
    log(("wandb",), tmp_path, HISTORY[:1], HISTORY[1])
    log(("wandb",), tmp_path, HISTORY[:2], HISTORY[2])
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
    assert sorted(step for step, _ in read_wandb(tmp_path)["loss/val"]) == [0, 0, 1, 2]


LOST = """
import os, sys
from pathlib import Path
import psutil
from mammoray import trackers
from mammoray.config import Config
from tests.run_factory import make_epoch
opened = trackers.open_all(("wandb", "tensorboard"), Path(sys.argv[1]), Config(), {}, [make_epoch(0)], print)
for child in psutil.Process().children(recursive=True):
    child.kill()
    child.wait()
opened.log(make_epoch(1))
opened.log(make_epoch(2))
opened.log(make_epoch(3))
opened.close({})
"""


def test_a_run_goes_on_when_the_process_of_wandb_is_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST, str(tmp_path)], cwd=ROOT, env=outside(), capture_output=True, text=True, check=True
    )
    assert [line.split(" failed")[0] for line in done.stdout.splitlines()] == ["trackers: wandb"]
    assert read_tensorboard(tmp_path) == expected(HISTORY)
    assert log(("wandb",), tmp_path, HISTORY) == []
    assert read_wandb(tmp_path) == expected(HISTORY)


@contextmanager
def no_room(limit: int) -> Iterator[None]:
    """Files end at ``limit`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_disk_that_is_full_for_a_while_costs_no_epoch(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    opened = trackers.open_all((name,), tmp_path, Config(), FACTS, HISTORY[:1], said.append)
    with no_room(100):
        opened.log(HISTORY[1])
        opened.log(HISTORY[2])
    opened.log(HISTORY[3])
    opened.close({})
    assert READERS[name](tmp_path) == expected(HISTORY)
    assert len(said) == 1
    assert name in said[0]
    assert "history.jsonl is complete" in said[0]


@pytest.mark.parametrize("name", ALL)
def test_a_tracker_that_cannot_be_opened_is_said_once_and_raises_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the run's folder should be")
    said = log((name,), tmp_path / "run", [], *HISTORY)
    assert len(said) == 1
    assert name in said[0]


def test_a_server_that_is_gone_is_said_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = log(("mlflow", "tensorboard"), tmp_path, [], *HISTORY)
    assert len(said) == 1
    assert "127.0.0.1:9" in said[0]
    assert "sesame" not in said[0]
    assert read_tensorboard(tmp_path) == expected(HISTORY)


class Broken:
    """A tracker that never works."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, history: list[dict[str, Any]]) -> curves.View:
        self.asked += 1
        raise OSError("gone")


def test_a_tracker_that_keeps_failing_is_asked_ever_more_rarely() -> None:
    broken, said = Broken(), list[str]()
    opened = trackers.Trackers({"broken": broken}, [], said.append)
    for epoch in range(100):
        opened.log({"epoch": epoch})
    assert broken.asked < 10
    before = broken.asked
    opened.close(None)
    opened.close(None)
    assert broken.asked == before + 1
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("mlflow", "mlflow", "mammoray[mlflow]"),
        ("mlflow", "sqlalchemy", "mammoray[mlflow]"),
        ("wandb", "wandb", "[wandb]"),
    ],
)
def test_a_missing_package_is_told_before_anything_starts(
    name: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else real(asked))
    with pytest.raises(ConfigError) as caught:
        trackers.check(("tensorboard", name))
    assert caught.value.where == f"--trackers {name}"
    assert package in caught.value.found
    assert "pip install" in caught.value.remedy
    assert remedy in caught.value.remedy


def test_wandb_without_a_key_is_refused_rather_than_asking_for_one(tmp_path: Path) -> None:
    code = "from mammoray import trackers; trackers.check(('wandb',))"
    bare = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=bare, capture_output=True, text=True, check=False
    )
    assert "ConfigError: --trackers wandb" in asked.stderr
    assert "WANDB_MODE=offline" in asked.stderr


def test_what_is_installed_passes_and_imports_no_library_for_it() -> None:
    code = "import sys; from mammoray import trackers; trackers.check(('tensorboard', 'mlflow')); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"ray", "torch", "mlflow", "wandb", "tensorboardX"} & set(done.stdout.split())
    trackers.check(ALL)
