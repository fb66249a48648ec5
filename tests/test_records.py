from typing import Any

import numpy as np
import pandas as pd
import pytest

from mammoray import evaluate, records
from mammoray.config import Config
from mammoray.errors import TrainError
from mammoray.model import DENSITY
from mammoray.plain import replace
from mammoray.recipe import CollapseConfig, EvaluateConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig

CLOCK = {"seconds": 60.0, "data_seconds": 1.0, "val_seconds": 5.0}
COUNTS = np.array([10, 40, 40, 10])


def test_collect_refuses_rows_that_are_missing_or_double() -> None:
    def part(*rows: int) -> tuple[np.ndarray, records.Arrays]:
        return np.array(rows), {DENSITY: np.array([[float(row)] * 4 for row in rows])}

    good = [part(0, 2), part(1)]
    assert records.collect(good, 3)[DENSITY][:, 0].tolist() == [0, 1, 2]
    for rows, parts in ((4, good), (3, [*good, part(1)])):
        with pytest.raises(TrainError, match="once"):
            records.collect(parts, rows)


def table(n: int = 80) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    target = np.repeat(rng.integers(0, 4, n // 4), 4)
    return pd.DataFrame(
        {
            "target": target,
            "patient_id": [f"p{i // 4}" for i in range(n)],
            "laterality": ["L", "L", "R", "R"] * (n // 4),
            "view": ["CC", "MLO"] * (n // 2),
            "age": ["50", ""] * (n // 2),
        }
    )


def outputs(rows: pd.DataFrame, skill: float = 2.0, seed: int = 1) -> records.Arrays:
    noise = np.random.default_rng(seed).normal(size=(len(rows), 4))
    return {DENSITY: noise + skill * np.eye(4)[rows["target"]]}


DEFAULT = Config()


def record(
    config: Config = DEFAULT, epoch: int = 1, history: records.History | None = None, **changes: Any
) -> records.Record:
    rows = changes.pop("rows", table())
    given = {"train_loss": 1.0, "outputs": outputs(rows), "clock": CLOCK, **changes}
    return records.record(
        config, epoch, given["train_loss"], given["outputs"], rows, COUNTS, history or [], given["clock"]
    )


def test_a_record_has_the_metrics_of_images_and_of_patients() -> None:
    rows = table()
    p = evaluate.softmax(outputs(rows)[DENSITY])
    labels = rows["target"].to_numpy()
    new = record(rows=rows)
    assert {k: new[f"val_{k}"] for k in evaluate.NAMES} == {
        k: v for k, v in evaluate.metrics(labels, p).items() if k != "loss"
    }
    _, of_patients, p_patients = evaluate.group_level(rows["patient_id"], labels, p)
    assert new["val_patient_kappa"] == evaluate.metrics(of_patients, p_patients)["kappa"]
    assert new["val_patient_kappa"] > new["val_kappa"]
    assert set(new) >= {f"val_f1_{name}" for name in "ABCD"}
    assert new["images_per_second"] == pytest.approx(112 / 60, abs=0.01)
    assert 0 < new["val_top_share"] < 0.9
    assert new["collapse"] == []
    assert new["stopped"] is None


def test_patients_are_averaged_by_views_where_that_is_asked_for() -> None:
    rows = table()
    rows["laterality"], rows["view"] = "L", ["CC", "CC", "CC", "MLO"] * 20
    by_views = record(replace(Config(), evaluate=EvaluateConfig(average="views")), rows=rows)
    assert by_views["val_patient_loss"] != record(rows=rows)["val_patient_loss"]
    assert by_views["val_loss"] == record(rows=rows)["val_loss"]


def test_auxiliary_tasks_are_judged_beside_the_density() -> None:
    rows = table()
    config = replace(Config(), model=ModelConfig(auxiliary=("view", "age")))
    heads = {
        "view": np.eye(3)[np.where(rows["view"] == "CC", 0, 1)] * 5,
        "age": np.full((len(rows), 1), (52 - 55) / 15),
    }
    new = record(config, rows=rows, outputs={**outputs(rows), **heads})
    assert new["val_view_accuracy"] == 1.0
    assert new["val_age_mae"] == pytest.approx(2.0, abs=1e-3)


def test_the_untrained_network_has_no_rate_and_no_speed() -> None:
    new = record(epoch=0, train_loss=None)
    assert (new["lr"], new["images_per_second"], new["train_loss"]) == (0.0, None, None)
    assert records.score(new, TrainConfig()) == -2e9


def past(*kappas: float | None, **more: Any) -> records.History:
    return [
        {"epoch": e, "val_kappa": k, "val_patient_kappa": None if k is None else -k, "val_loss": 1.0 - e,
         "collapse": [], "train_loss": 1.0, "lr": 1e-3, "seconds": 60.0, "val_seconds": 5.0, **more}
        for e, k in enumerate(kappas)
    ]  # fmt: skip


class TestBest:
    def test_it_is_the_first_of_the_highest_and_never_the_untrained_one(self) -> None:
        history = past(0.9, None, 0.3, 0.5, 0.5)
        assert records.best_epoch(history, TrainConfig()) == 3
        assert records.best_epoch(history, TrainConfig(monitor="loss")) == 4
        assert records.best_epoch(past(None, None, None), TrainConfig()) == 1

    def test_it_may_be_judged_by_patients(self) -> None:
        assert records.best_epoch(past(0.9, 0.1, 0.3, 0.5), TrainConfig(monitor_level="patient")) == 1

    def test_it_is_the_last_where_the_validation_images_are_learned_from(self) -> None:
        history = past(0.9, 0.8, 0.3, None, 0.5)
        for monitor in ("kappa", "loss"):
            settings = TrainConfig(train_on="train_and_val", monitor=monitor)
            assert [records.best_epoch(history[:n], settings) for n in (2, 3, 4, 5)] == [1, 2, 3, 4]
            assert len({records.score(entry, settings) for entry in history}) == 5


class TestStopping:
    def stop(self, train: TrainConfig, *kappas: float, **changes: Any) -> str | None:
        stopped: str | None = record(replace(Config(), train=train), len(kappas), past(*kappas), **changes)["stopped"]
        return stopped

    def test_patience_counts_epochs_without_a_better_value(self) -> None:
        # This record's own kappa is about 0.8.
        assert self.stop(TrainConfig(patience=2), 0.0, 0.99, 0.9) == "no better kappa in 2 epochs (--patience)"
        assert self.stop(TrainConfig(patience=3), 0.0, 0.99, 0.9) is None
        assert self.stop(TrainConfig(patience=1), 0.0, 0.1) is None
        assert self.stop(TrainConfig(patience=1, min_delta=0.9), 0.0, 0.1)
        assert self.stop(TrainConfig(), 0.0, 0.99, 0.9, 0.9, 0.9) is None

    def test_no_epoch_begins_that_would_end_after_the_limit(self) -> None:
        # Each epoch takes 65 s; the untrained network's validation 65 s too.
        assert self.stop(TrainConfig(time_limit=4.0), 0.0, 0.1) is not None
        assert self.stop(TrainConfig(time_limit=5.0), 0.0, 0.1) is None
        for last in (TrainConfig(time_limit=4.0, epochs=2), TrainConfig(time_limit=4.0, epochs=9, stop_epoch=2)):
            assert self.stop(last, 0.0, 0.1) is None, "the last epoch is no stop"

    def test_a_collapse_stops_where_that_is_asked_for(self) -> None:
        rows = table()
        dead = {DENSITY: np.tile([0.0, 5.0, 0.0, 0.0], (len(rows), 1))}
        config = Config(collapse=CollapseConfig(collapse_after=1, collapse_stop=2))
        first = record(config, 1, past(0.0), outputs=dead)
        assert first["collapse"]
        assert "--sampler" in first["collapse_cause"] or "--lr" in first["collapse_cause"]
        assert first["stopped"] is None
        second = record(config, 2, [*past(0.0), first], outputs=dead)
        assert "collapsed" in second["stopped"]
        lines = records.describe(second, config)
        assert any(line.startswith("WARNING") and "100 %" in line for line in lines)


def test_the_recorded_rate_is_that_of_the_last_step_and_falls_on_a_plateau() -> None:
    config = Config(
        optim=OptimConfig(lr=1.0, schedule="plateau", plateau_patience=1, plateau_factor=0.5, warmup_epochs=0),
        sample=SampleConfig(batch_size=10),
    )
    assert record(config, 1, past(0.0))["lr"] == 1.0
    assert record(config, 4, past(0.0, 0.5, 0.4, 0.4))["lr"] == 0.25
