"""Dashboards open what a search leaves behind: optuna-dashboard its journal, TensorBoard its trials' event files."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mammoray import trackers
from mammoray.config import Config
from mammoray.plain import replace, to_toml
from mammoray.synth import SynthSummary
from tests import studies
from tests.browser import needs_chromium, see
from tests.conftest import SMALL, Prepared
from tests.ray_nodes import RayNodes
from tests.run_factory import make_epoch

LOCAL = {"127.0.0.1"}
RATES = (1e-4, 1e-3, 1e-2)
TRIALS = 9


@contextmanager
def serving(program: str, *arguments: str, ready: str) -> Iterator[str]:
    """The address of a server on loopback, once it answers at ``ready`` with more than an empty list."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [str(Path(sysconfig.get_path("scripts")) / program), *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 30
            while not _answers(address + ready):
                assert server.poll() is None and time.monotonic() < until, words
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()


def _answers(address: str) -> bool:
    try:
        return bool(ask(address))
    except OSError:
        return False


def ask(address: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON at an address, by POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def words(dom: str) -> str:
    text = re.sub(r"<(style|script).*?</\1>", "", dom, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


@pytest.fixture(scope="module")
def optuna_dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a study's folder, by the file's path alone."""
    journal = tmp_path_factory.mktemp("study") / "study.journal"
    studies.make(TRIALS, JournalStorage(JournalFileBackend(str(journal))), "density-search")
    with serving("optuna-dashboard", str(journal), ready="/api/studies") as address:
        yield address


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard over the trials of a study that searched a learning rate."""
    folder = tmp_path_factory.mktemp("study") / "trials"
    for number, rate in enumerate(RATES):
        outdir = folder / f"{number:04d}"
        outdir.mkdir(parents=True)
        config = replace(Config(), optim=replace(Config().optim, lr=rate))
        with trackers.open_all(("tensorboard",), outdir, config, {}, [], pytest.fail) as opened:
            for epoch in range(3):
                opened.log({**make_epoch(epoch), "val_kappa": 0.1 * number + 0.01 * epoch})
            opened.close({})
    with serving("tensorboard", "--logdir", str(folder), ready="/data/runs") as address:
        yield address


def test_optuna_dashboard_holds_every_trial_with_its_intermediate_values(optuna_dashboard: str) -> None:
    (summary,) = ask(f"{optuna_dashboard}/api/studies")["study_summaries"]
    assert summary["study_name"] == "density-search"
    trials = ask(f"{optuna_dashboard}/api/studies/{summary['study_id']}?after=0")["trials"]
    made = studies.make(TRIALS)
    assert [(trial["number"], trial["state"].lower()) for trial in trials] == [
        (trial.number, trial.state.name.lower()) for trial in made.trials
    ]
    for shown, trial in zip(trials, made.trials, strict=True):
        assert {one["step"]: one["value"] for one in shown["intermediate_values"]} == pytest.approx(
            trial.intermediate_values
        )


@needs_chromium
def test_optuna_dashboard_opens_in_a_browser(optuna_dashboard: str, tmp_path: Path) -> None:
    seen = see(tmp_path, f"{optuna_dashboard}/dashboard/studies/0/trials")
    shown = words(seen.dom)
    assert "density-search" in shown
    assert f"{TRIALS} Trials" in shown
    assert "Intermediate Values" in shown
    assert seen.hosts == LOCAL


@needs_chromium
def test_optuna_dashboard_draws_the_history(optuna_dashboard: str, tmp_path: Path) -> None:
    seen = see(tmp_path, f"{optuna_dashboard}/dashboard/studies/0")
    assert 'class="main-svg"' in seen.dom
    assert "Hyperparameter Importance" in words(seen.dom)
    assert f"Best Trial (number={studies.make(TRIALS).best_trial.number})" in words(seen.dom)


def test_tensorboard_lists_the_trials_with_their_hyperparameters_and_scores(tensorboard: str) -> None:
    runs = [f"{number:04d}/tensorboard" for number in range(len(RATES))]
    until = time.monotonic() + 20
    while sorted(ask(f"{tensorboard}/data/runs")) != runs:
        assert time.monotonic() < until
        time.sleep(0.2)
    wanted = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 10}
    plugin = f"{tensorboard}/data/plugin/hparams"
    groups = ask(f"{plugin}/session_groups", {**wanted, "colParams": []})["sessionGroups"]
    assert {group["name"]: group["hparams"]["optim.lr"] for group in groups} == dict(zip(runs, RATES, strict=True))
    kappas = [
        value["value"]
        for group in sorted(groups, key=lambda group: str(group["name"]))
        for value in group["metricValues"]
        if value["name"]["tag"] == "metrics/kappa"
    ]
    assert kappas == pytest.approx([0.02, 0.12, 0.22])
    known = ask(f"{plugin}/experiment", {"experimentName": ""})
    assert next((info["name"], info["differs"]) for info in known["hparamInfos"]) == ("optim.lr", True)
    assert {"model.arch", "sample.sampler"} <= {info["name"] for info in known["hparamInfos"]}
    assert {"metrics/kappa", "loss/val"} <= {info["name"]["tag"] for info in known["metricInfos"]}


@needs_chromium
def test_tensorboard_opens_in_a_browser(tensorboard: str, tmp_path: Path) -> None:
    seen = see(tmp_path, tensorboard, milliseconds=20_000)
    shown = words(seen.dom)
    for number in range(len(RATES)):
        assert f"{number:04d}/tensorboard" in shown
    assert "learning_rate" in shown
    assert "hparams" in shown
    assert seen.hosts == LOCAL


@pytest.mark.long
@needs_chromium
def test_the_ray_dashboard_shows_a_search_as_it_runs_its_trials_and_their_logs(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    """And so do the other two, which read what a search has written so far."""
    config = replace(SMALL, train=replace(SMALL.train, epochs=30), ingest=replace(SMALL.ingest, cache=prepared.cache))
    (tmp_path / "settings.toml").write_text(to_toml(config), encoding="utf-8")
    (tmp_path / "space.toml").write_text("[optim]\nlr = [1e-3, 3e-3]\n", encoding="utf-8")
    outdir, nodes = tmp_path / "search", RayNodes(Path("/tmp") / f"mammoray-{os.getpid()}-seen", dashboard=True)
    flags = ["--csv", rsna.csv, "--dicom-root", rsna.root, "--outdir", outdir, "--config", tmp_path / "settings.toml"]
    more = ["--space", tmp_path / "space.toml", "--num-trials", "2", "--trials-at-once", "1", "--scheduler", "none"]
    command = [sys.executable, "-m", "mammoray.cli", "tune", *map(str, [*flags, *more])]
    try:
        search = subprocess.Popen(command, env=nodes.environment(), stdout=subprocess.DEVNULL, cwd=nodes.folder)
        log = wait_for(lambda: log_of_trial(nodes.dashboard, "epoch 3/30"), search)
        assert "trial 0: epoch 1/30: train loss" in log
        shown = words(see(tmp_path, f"{nodes.dashboard}/#/actors", milliseconds=20_000).dom)
        assert "Trial" in shown and "ALIVE" in shown
        with serving("optuna-dashboard", str(outdir / "study.journal"), ready="/api/studies") as address:
            (trial, *_) = ask(f"{address}/api/studies/0?after=0")["trials"]
            assert trial["state"].lower() == "running" and len(trial["intermediate_values"]) >= 3
        with serving("tensorboard", "--logdir", str(outdir / "trials"), ready="/data/runs") as address:
            assert ask(f"{address}/data/runs") == ["0000/tensorboard"]
        search.terminate()
        assert search.wait(timeout=60) == 143
    finally:
        nodes.close()


def log_of_trial(dashboard: str, wanted: str) -> str:
    """The log of the process of a trial that is alive, once it holds some words."""
    actors = ask(f"{dashboard}/api/v0/actors?detail=1")["data"]["result"]["result"]
    for actor in actors:
        if actor["class_name"] == "Trial" and actor["state"] == "ALIVE":
            place = f"{dashboard}/api/v0/logs/file?actor_id={actor['actor_id']}&suffix=out&lines=1000"
            with urllib.request.urlopen(place, timeout=10) as answer:
                text: str = answer.read().decode()
                return text if wanted in text else ""
    return ""


def wait_for(found: Callable[[], str], process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 150
    while True:
        with suppress(OSError):
            if said := found():
                return said
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.5)
