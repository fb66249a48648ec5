"""Searches, for real: trials with workers of their own, a killed driver, killed trials, trials that fail."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
import pandas as pd
import psutil
import pytest

from mammoray import cli, plain, results, train, tune
from mammoray import space as spaces
from mammoray import study as studies
from mammoray.config import Config, DecodeConfig, TuneConfig
from mammoray.controller import read_history
from mammoray.errors import ClusterError, ConfigError, IngestError, RunFolderError, StudyError
from mammoray.mirror import Mirror
from mammoray.pipeline import Source, read_metrics
from mammoray.plain import replace
from mammoray.scale import Scale
from mammoray.searching import Trials
from mammoray.synth import SynthSummary
from tests.conftest import SMALL, Prepared

ROOT = Path(__file__).parents[1]
SPACE = """
[optim]
lr = {low = 1e-4, high = 1e-2, log = true}
accumulate = [1, 1000]

[sample]
sampler = ["natural", "balanced"]
alpha = {low = 0.25, high = 1.0, when = {sampler = "balanced"}}

[model]
arch = ["no_such_network", "test_convnext"]
"""


def base(cache: str, **settings: Any) -> Config:
    return replace(SMALL, ingest=replace(SMALL.ingest, cache=cache), **settings)


@dataclass(frozen=True)
class Searched:
    """A finished search."""

    source: Source
    space: str
    config: Config
    search: TuneConfig
    facts: dict[str, Any]
    said: list[str]

    def table(self) -> pd.DataFrame:
        return pd.read_parquet(self.source.outdir / "trials.parquet")


def search(
    data: SynthSummary,
    folder: Path,
    config: Config,
    settings: TuneConfig,
    text: str = SPACE,
    scale: Scale | None = None,
) -> Searched:
    folder.mkdir(exist_ok=True)
    space = folder / "mine.toml"
    space.write_text(text, encoding="utf-8")
    source = Source(csv=data.csv, dicom_root=data.root, outdir=folder / "search")
    said: list[str] = []
    facts = tune.run(source, str(space), config, settings, scale or Scale(), said.append)
    return Searched(source, str(space), config, settings, facts, said)


@pytest.fixture(scope="module")
def searched(prepared: Prepared, rsna: SynthSummary, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Six trials one after the other; some draw a network that does not exist, or more parts than a batch has."""
    settings = TuneConfig(num_trials=6, search="random", trials_at_once=1, scheduler="none")
    return search(rsna, tmp_path_factory.mktemp("tune"), base(prepared.cache), settings)


def trials_of(done: Searched) -> list[optuna.trial.FrozenTrial]:
    storage = studies.storage(str(done.source.outdir / studies.JOURNAL))
    return optuna.load_study(study_name=studies.NAME, storage=storage).trials


class TestSearch:
    def test_trials_that_fail_are_recorded_with_their_reason_and_the_others_go_on(self, searched: Searched) -> None:
        table = searched.table()
        assert table["number"].tolist() == [0, 1, 2, 3, 4, 5]
        unknown, divided = table["model.arch"] == "no_such_network", table["optim.accumulate"] == 1000
        broken = unknown | divided
        assert unknown.sum() > 0 and (divided & ~unknown).sum() > 0 and (~broken).sum() > 1
        assert (table["state"] == ["failed" if b else "complete" for b in broken]).all()
        assert table.loc[unknown, "reason"].str.contains("no_such_network").all()
        assert table.loc[divided & ~unknown, "reason"].str.contains("--accumulate 1000").all()
        assert (table.loc[~broken, "reason"] == "").all()

    def test_the_default_is_the_first_trial(self, searched: Searched) -> None:
        first = searched.table().iloc[0]
        assert searched.facts["default"] == 0
        assert (first["optim.lr"], first["sample.sampler"], first["model.arch"]) == (1e-3, "natural", "test_convnext")
        assert plain.load_toml(searched.source.outdir / "trials" / "0000" / "config.toml") == searched.config

    def test_scores_are_those_of_the_best_epochs_and_the_study_has_every_epoch(self, searched: Searched) -> None:
        trials = trials_of(searched)
        for row in searched.table().query("state == 'complete'").itertuples():
            scores = [r["val_kappa"] for r in read_history(searched.source.outdir / row.folder)[1:]]
            assert row.score == max(scores)
            assert row.epochs == len(scores) == SMALL.train.epochs
            running = [max(scores[: n + 1]) for n in range(len(scores))]
            assert trials[row.number].intermediate_values == dict(enumerate(running, 1))
            assert row.start_seconds > 0

    def test_best_toml_reproduces_the_best_trial(self, searched: Searched, tmp_path: Path) -> None:
        outdir = searched.source.outdir
        table = searched.table()
        best = table.loc[table["score"].idxmax()]
        assert searched.facts["best"] == best["number"]
        source = ["--csv", str(searched.source.csv), "--dicom-root", str(searched.source.dicom_root)]
        words = ["train", *source, "--config", str(outdir / "best.toml"), "--outdir", str(tmp_path / "run")]
        assert cli.main([*words, "--cpus-per-worker", "1"]) == 0
        again, before = (read_history(folder) for folder in (tmp_path / "run", outdir / best["folder"]))
        assert [r["val_loss"] for r in again] == pytest.approx([r["val_loss"] for r in before], rel=1e-5)

    def test_no_trial_sees_a_test_patient(self, searched: Searched, prepared: Prepared) -> None:
        rows = pd.read_parquet(next(searched.source.outdir.glob("rows-*.parquet")))
        tested = set(prepared.rows.loc[prepared.rows["fold"] == "test", "patient_id"])
        assert tested and not tested & set(rows["patient_id"])
        assert set(rows["fold"]) == {"train", "val"}

    def test_each_trial_has_curves_of_its_own(self, searched: Searched) -> None:
        for folder in searched.table().query("state == 'complete'")["folder"]:
            assert list((searched.source.outdir / folder / "tensorboard").glob("events*"))

    def test_the_plan_and_each_trial_are_said(self, searched: Searched) -> None:
        plan = next(line for line in searched.said if line.startswith("search: 6 of 6 trials"))
        assert "1 at once, each with 1 CPU worker of 4 CPUs; the cluster has 4 CPUs and 0 GPUs" in plan
        for number in range(6):
            assert any(line.startswith(f"trial {number}: ") for line in searched.said)
        assert "too good" in results.headline(searched.facts)[1]

    def test_the_same_command_again_only_reads(self, searched: Searched) -> None:
        before = trials_of(searched)
        said: list[str] = []
        facts = tune.run(searched.source, searched.space, searched.config, searched.search, Scale(), said.append)
        assert facts["best"] == searched.facts["best"]
        assert any("0 of 6 trials to run (6 are finished)" in line for line in said)
        assert trials_of(searched) == before

    def test_the_best_is_trained_again_and_judged_on_test_patients_who_were_never_seen(
        self, searched: Searched, prepared: Prepared
    ) -> None:
        settings = replace(searched.search, retrain_best=True)
        outdir, said = searched.source.outdir, list[str]()
        test = tune.run(searched.source, searched.space, searched.config, settings, Scale(), said.append)["test"]
        predictions = pd.read_parquet(outdir / "best" / "predictions.parquet")
        tested = set(prepared.rows.loc[prepared.rows["fold"] == "test", "patient_id"])
        assert set(predictions["patient_id"]) == tested
        best = searched.table().set_index("number").loc[searched.facts["best"]]
        assert test["validation"] == pytest.approx(best["score"])
        assert len(read_history(outdir / "best")) == best["epoch"] + 1
        assert test["n"] == len(predictions)
        judged = read_metrics(outdir / "best")["folds"]
        assert list(judged) == ["test"]
        assert test["test"] == judged["test"]["image"]["kappa"]["value"]
        shown = f"{test['test']:.4g}"
        assert shown in (outdir / "study.html").read_text(encoding="utf-8")
        again = tune.run(searched.source, searched.space, searched.config, searched.search, Scale(), said.append)
        assert again["test"] == test, "the same command without --retrain-best"
        assert shown in (outdir / "study.html").read_text(encoding="utf-8")

    def test_a_retraining_of_another_trial_takes_the_place_of_the_one_before(self, searched: Searched) -> None:
        outdir, config, best = searched.source.outdir, searched.config, searched.facts["best"]
        complete = searched.table().query("state == 'complete'")["number"]
        other = int(next(number for number in complete if number != best))
        for number in (best, other):  # What is there already is not done again.
            results.retrain(searched.source, number, config, Scale(), lambda line: None, Mirror(outdir, None))
        own = plain.load_toml(outdir / results.trial_folder(Path(), other) / "config.toml")
        assert plain.load_toml(outdir / "best" / "config.toml").optim == own.optim
        assert results.retrained(outdir, other, config) is not None
        assert results.retrained(outdir, best, config) is None, "that of another trial is not said to be the best's"
        facts = tune.run(searched.source, searched.space, config, searched.search, Scale(), lambda line: None)
        assert facts["test"] is None

    def test_another_search_is_refused_in_its_folder(self, searched: Searched) -> None:
        other = replace(searched.config, seed=5)
        with pytest.raises(RunFolderError, match="another search"):
            tune.run(searched.source, searched.space, other, searched.search, Scale(), lambda line: None)


def test_folds_sizes_and_several_objectives_in_one_search(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    """Two trials side by side, of three folds each, that differ in the size of their images."""
    text = '[decode]\n"height, width" = [[96, 80], [64, 56]]\n'
    settings = TuneConfig(
        num_trials=2, search="random", scheduler="none", objectives=("score", "gflops"), folds_per_trial=3
    )
    config = base(prepared.cache, train=replace(SMALL.train, epochs=1, trackers=()))
    done = search(rsna, tmp_path, config, replace(settings, trials_at_once=2), text)
    table = done.table()
    assert (table["state"] == "complete").all()
    assert len(list(done.source.outdir.glob("rows-*.parquet"))) == table["decode.height, decode.width"].nunique()
    for row in table.itertuples():
        histories = [read_history(done.source.outdir / row.folder / f"fold-{fold}") for fold in range(3)]
        assert row.score == pytest.approx(sum(h[1]["val_kappa"] for h in histories) / 3)
    rows = pd.read_parquet(next(done.source.outdir.glob("rows-*.parquet")))
    validated = [set(rows.loc[rows[f"fold-{fold}"] == "val", "patient_id"]) for fold in range(3)]
    assert set.union(*validated) == set(rows["patient_id"])
    assert sum(map(len, validated)) == rows["patient_id"].nunique(), "each patient validates once"


@pytest.mark.long
def test_a_search_ends_trials_early_and_its_table_says_which_and_why(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    """Over learning rate, sampler and two networks; by the loss, which no two trials have in common."""
    text = """
[optim]
lr = {low = 1e-6, high = 1e-2, log = true}

[sample]
sampler = ["natural", "balanced"]

[model]
arch = ["test_resnet", "test_convnext"]
"""
    asha = TuneConfig(num_trials=6, scheduler="asha", grace=1, reduction=2, prune_collapsed=False, trials_at_once=1)
    config = base(prepared.cache, train=replace(SMALL.train, epochs=3, monitor="loss", trackers=()))
    done = search(rsna, tmp_path, config, asha, text)
    table = done.table()
    assert len(table) == 6 and set(table["state"]) == {"complete", "pruned"}, table
    pruned, complete = table[table["state"] == "pruned"], table[table["state"] == "complete"]
    assert pruned["reason"].str.fullmatch(r"asha: after [12] epochs").all()
    assert (pruned["epochs"] < 3).all() and (complete["epochs"] == 3).all()
    assert (complete["reason"] == "").all() and table["score"].notna().all()
    assert table["state"][0] == "complete", "the default"
    assert done.facts["best"] == complete.set_index("number")["score"].idxmin()
    assert not any((done.source.outdir / folder / "checkpoints").exists() for folder in pruned["folder"])
    one = pruned["reason"].iloc[0]
    assert any(f"ended early ({one})" in line for line in done.said)
    assert one in (done.source.outdir / "study.html").read_text(encoding="utf-8")


def test_folders_that_share_a_database_do_not_end_each_others_trials(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/study.db"
    settings = TuneConfig(num_trials=1, scheduler="none", study_storage=database)
    text = '[model]\narch = ["no_such_network"]\n'
    settings = replace(settings, default_first=False)
    first = search(rsna, tmp_path / "a", base(prepared.cache), settings, text)
    with pytest.raises(StudyError, match="another --study-name"):
        search(rsna, tmp_path / "b", base(prepared.cache), settings, text)
    assert not (tmp_path / "b" / "search").exists(), "so that the same folder can be used with another name"
    assert search(rsna, tmp_path / "a", base(prepared.cache), settings, text).facts == first.facts
    named = replace(settings, study_name="mine")
    assert len(search(rsna, tmp_path / "b", base(prepared.cache), named, text).table()) == 1


@pytest.mark.long
def test_a_population_hands_weights_on_and_its_best_settings_lead_to_its_best_trial_from_the_beginning(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path
) -> None:
    text = "[optim]\nlr = {low = 1e-6, high = 1e-2, log = true}\n[augment]\nrotation = {low = 0, high = 30}\n"
    settings = TuneConfig(num_trials=8, search="random", scheduler="pbt", grace=1, trials_at_once=2)
    config = base(prepared.cache, train=replace(SMALL.train, epochs=2, trackers=()))
    done = search(rsna, tmp_path, config, settings, text)
    table, outdir = done.table().set_index("number"), done.source.outdir
    assert (table["state"] == "complete").all()
    assert table["parent"].isna().sum() == 4
    assert (table["epochs"] == 1).all()
    losses = {n: [r["val_loss"] for r in read_history(outdir / row.folder)] for n, row in table.iterrows()}
    children = table[table["parent"].notna()]
    assert all(losses[n][:-1] == losses[int(row.parent)] for n, row in children.iterrows())
    changed = [plain.load_toml(outdir / row.folder / "config.toml").train.changes for _, row in children.iterrows()]
    assert sum(map(bool, changed)) == 1, "one of four is the worst quarter"
    rows = pd.read_parquet(next(outdir.glob("rows-*.parquet")))
    for number in (table.index[-1], next(n for n, c in zip(children.index, changed, strict=True) if c)):
        own = plain.load_toml(outdir / table["folder"][number] / "config.toml")
        whole = train.fit(rows, "d", own, Scale(cpus_per_worker=2.0), tmp_path / f"again-{number}", lambda line: None)
        assert [r["val_loss"] for r in whole.history] == pytest.approx(losses[number], rel=1e-5)


@pytest.mark.usefixtures("ray_session")
class TestResources:
    def test_trials_side_by_side_share_the_cpus(self) -> None:
        assert tune.resources(TuneConfig(), Scale(num_workers=1))[0] == 4
        at_once, scale = tune.resources(TuneConfig(trials_at_once=2), Scale(num_workers=1))
        assert (at_once, scale.cpus_per_worker) == (2, 2.0)
        assert tune.resources(TuneConfig(), Scale(num_workers=2))[0] == 2

    def test_an_elastic_trial_needs_room_for_its_least_as_a_training_does(self) -> None:
        scale = Scale(num_workers=8, min_workers=1, cpus_per_worker=1.0)
        assert train.plan(scale).num_workers == (1, 8)
        at_once, own = tune.resources(TuneConfig(), scale)
        assert (at_once, own.num_workers, own.min_workers, own.cpus_per_worker) == (1, 8, 1, 1.0)

    def test_what_can_never_run_is_an_error_and_not_a_hang(self) -> None:
        with pytest.raises(ClusterError, match="trials-at-once"):
            tune.resources(TuneConfig(trials_at_once=3), Scale(num_workers=1, cpus_per_worker=2.0))
        with pytest.raises(ClusterError):
            tune.resources(TuneConfig(), Scale(num_workers=1, gpu="yes"))


def test_a_space_that_cannot_be_is_said_before_anything_is_made(rsna: SynthSummary, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        search(rsna, tmp_path, SMALL, TuneConfig(), "[optim]\nlearning_rate = [1e-3]\n")
    assert not (tmp_path / "search").exists()


class Killed(BaseException):
    """Nothing can catch it, as a kill."""


class Rows:
    """Decodes nothing, and is killed or fails meanwhile, if it is to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def rows(self, decode: DecodeConfig) -> Path:
        if self.error is not None:
            raise self.error
        return Path("rows.parquet")


class Driver:
    """A driver of a search whose trials are drawn and begun, and not trained."""

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        settings, copy = TuneConfig(search="random", scheduler="none"), Mirror(folder, None)
        file = folder / "space.toml"
        file.write_text("[optim]\nlr = {low = 1e-4, high = 1e-2, log = true}\n", encoding="utf-8")
        draw, rows = spaces.load(str(file), SMALL), cast(Any, Rows(error))
        self.study, self.said = studies.open_study(str(folder / studies.JOURNAL), settings, SMALL, "a"), list[str]()
        left = tune._prepare_study(self.study, draw, [{"optim.lr": 5e-3}], settings, SMALL, self.said.append)
        written = [folder / "trials" / f"{number:04d}" / "config.toml" for number in range(9)]
        begun = studies.interrupted(self.study, lambda number: written[number].exists())
        begin = tune._Begin(draw, SMALL, copy, "", settings, Scale(), rows, None)
        self.trials = Trials(self.study, settings, SMALL, begin, begun, left - len(begun), self.said.append)

    def rates(self, count: int) -> list[float]:
        """Learning rates of the next trials, as their processes find them."""
        jobs = [self.trials.next() for _ in range(count)]
        return [plain.load_toml(job.folder / "config.toml").optim.lr for job in jobs if job is not None]


class TestADriverThatIsLostWhileItDecodes:
    """Hours may lie between the draw of a trial, the default first, and its beginning."""

    def test_goes_on_with_the_default_and_then_the_points(self, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            Driver(tmp_path, Killed()).trials.next()
        again = Driver(tmp_path)
        assert again.rates(2) == [SMALL.optim.lr, 5e-3]
        assert [t.state.name for t in again.study.get_trials()] == ["RUNNING", "RUNNING"]
        assert studies.default_number(again.study) == 0

    def test_and_cannot_decode_afterwards_has_a_failed_trial_and_not_a_search_that_never_starts_again(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(Killed):
            Driver(tmp_path, Killed()).trials.next()
        broken = Driver(tmp_path, IngestError("the files", "most of them", "none", "Look at them."))
        assert broken.trials.next() is None
        assert all("most of them" in t.user_attrs["reason"] for t in broken.study.get_trials())
        assert len(broken.study.get_trials()) == 20


def test_the_same_points_are_the_same_search_wherever_their_file_is() -> None:
    one, other = (TuneConfig(points=Path(name)) for name in ("a.toml", "b.toml"))
    point = {"optim.lr": 1e-3}
    assert tune._what_counts(one, [point]) == tune._what_counts(other, [point])
    assert tune._what_counts(one, [point]) != tune._what_counts(one, [{"optim.lr": 2e-3}])


# Real kills -----------------------------------------------------------------------------------------------------------


def start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mammoray.cli", "tune", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes(of: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(of.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if re.search(name, " ".join(process.cmdline())):
                found.append(process)
    return found


def until(ready: Any, process: subprocess.Popen[str], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0] if process.poll() else "late"
        time.sleep(0.1)


@pytest.mark.long
def test_a_killed_trial_and_a_killed_driver_cost_only_what_was_under_way(
    prepared: Prepared, rsna: SynthSummary, tmp_path: Path, own_ray: dict[str, str]
) -> None:
    outdir, space, settings = tmp_path / "search", tmp_path / "space.toml", tmp_path / "base.toml"
    space.write_text("[optim]\nlr = {low = 1e-4, high = 1e-2, log = true}\n", encoding="utf-8")
    config = base(prepared.cache, train=replace(SMALL.train, epochs=4, trackers=()))
    settings.write_text(plain.to_toml(config), encoding="utf-8")
    words = ["--csv", rsna.csv, "--dicom-root", rsna.root, "--outdir", outdir, "--config", settings, "--space", space]
    flags = ["--num-trials", "3", "--trials-at-once", "1", "--scheduler", "none", "--search", "random"]
    process = start([*map(str, words), *flags], own_ray)
    first, second, third = (outdir / "trials" / number for number in ("0000", "0001", "0002"))
    until(lambda: len(read_history(first)) >= 2, process)
    for one in processes(process, r"ray::Trial\."):
        one.kill()
    until(lambda: len(read_history(second)) >= 2, process)
    before = read_history(second)
    for one in [psutil.Process(process.pid), *processes(process, ".")]:
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGKILL)
    process.wait()
    finished = [(r["train_loss"], r["val_loss"]) for r in read_history(first)]
    asked = start(["--resume", str(outdir)], own_ray)
    until(lambda: len(read_history(third)) >= 2, asked)
    asked.send_signal(signal.SIGTERM)
    said = asked.communicate(timeout=100)[0]
    assert asked.returncode == 143, said
    assert "stopped: the run" in said and "Traceback" not in said, said
    assert "going on with trial 1" in said
    assert "trial 0:" not in said, "what was finished is not repeated"
    assert (outdir / "study.html").exists(), "it can be looked at before it is finished"
    again = start(["--resume", str(outdir)], own_ray)
    said = again.communicate(timeout=250)[0]
    assert again.returncode == 0, said
    assert "going on with trial 2" in said
    table = pd.read_parquet(outdir / "trials.parquet")
    assert table["number"].tolist() == [0, 1, 2], said
    assert (table["state"] == "complete").all(), said
    assert [(r["train_loss"], r["val_loss"]) for r in read_history(first)] == finished
    assert read_history(second)[: len(before)] == before
    for folder in (first, second, third):
        own = plain.load_toml(folder / "config.toml")
        rows = pd.read_parquet(next(outdir.glob("rows-*.parquet")))
        undisturbed = train.fit(rows, "d", own, Scale(cpus_per_worker=2.0), tmp_path / folder.name, lambda line: None)
        assert [r["val_loss"] for r in undisturbed.history] == pytest.approx(
            [r["val_loss"] for r in read_history(folder)], rel=1e-4
        )
