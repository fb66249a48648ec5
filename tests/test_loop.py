from pathlib import Path
from typing import Any

import pytest
import ray.train

from mammoray import controller, train
from mammoray.config import Config
from mammoray.plain import replace
from mammoray.scale import Scale
from tests.conftest import SMALL, Prepared

ONE = Scale()


def fit(prepared: Prepared, config: Config, outdir: Path, scale: Scale = ONE) -> train.Fitted:
    return train.fit(prepared.rows, prepared.digest, config, scale, outdir, lambda line: None)


def curve(history: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["epoch"], r["train_loss"], r["val_loss"], r["val_kappa"], r["lr"]) for r in history]


def test_a_training_that_ends_early_is_the_beginning_of_the_whole_one_also_after_a_kill(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: object, path: object) -> None:
        raise KeyboardInterrupt

    config = replace(SMALL, train=replace(SMALL.train, epochs=3, stop_epoch=1, trackers=()))
    with monkeypatch.context() as patch:
        patch.setattr(ray.train.Checkpoint, "to_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(prepared, config, tmp_path / "early")
    begun = controller.read_history(tmp_path / "early")
    assert [(record["epoch"], record["stopped"]) for record in begun] == [(0, None), (1, None)]
    for _ in range(2):
        assert fit(prepared, config, tmp_path / "early").history == begun
    whole = fit(prepared, replace(config, train=replace(config.train, stop_epoch=2)), tmp_path / "whole")
    assert curve(whole.history)[:2] == curve(begun)
    assert whole.history[2]["epoch"] == 2 == len(whole.history) - 1
    assert 0 < whole.history[2]["lr"] < whole.history[1]["lr"], "a schedule of three epochs ends at 0"


@pytest.mark.parametrize(("cpus", "threads"), [(1.0, 1), (3.5, 3)])
def test_a_worker_computes_with_as_many_threads_as_it_has_cpus(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: float, threads: int
) -> None:
    note = tmp_path / "threads"

    def watched(given: dict[str, Any]) -> None:
        import torch

        from mammoray import loop

        loop.run(given)
        note.write_text(str(torch.get_num_threads()))

    monkeypatch.setattr(controller, "work", watched)
    settings = replace(SMALL, train=replace(SMALL.train, epochs=1, trackers=()))
    fit(prepared, settings, tmp_path, Scale(cpus_per_worker=cpus))
    assert note.read_text() == str(threads)
