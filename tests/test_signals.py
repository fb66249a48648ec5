import time
from typing import Any

import pytest
import ray
import torch

from mammoray.signals import Signals, Watch


def test_what_was_sent_is_heard_once() -> None:
    signals = Signals(1, torch.device("cpu"))
    assert signals.hear() is None
    signals.send(torch.tensor(0.5), frozenset({"stop"}))
    heard = signals.hear()
    assert heard is not None
    assert heard.loss == 0.5
    assert heard.broken == 0
    assert heard.wishes == {"stop"}
    assert signals.hear() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_counted(value: float) -> None:
    signals = Signals(1, torch.device("cpu"))
    signals.send(torch.tensor(value), frozenset())
    heard = signals.hear()
    assert heard is not None
    assert heard.broken == 1
    assert heard.wishes == frozenset()


class _Answer:
    def __init__(self) -> None:
        self.stop = False
        self.questions = 0

    def __call__(self) -> Any:
        self.questions += 1
        return ray.put(self.stop)


@pytest.mark.usefixtures("ray_session")
class TestWatch:
    def test_it_wants_to_stop_when_it_is_told_to_and_not_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        board, now = _Answer(), [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        watch = Watch(board, 0.0, lambda: True)
        assert watch.wishes() == frozenset()
        assert board.questions == 0, "it asks once a second, not at every step"
        now[0] = 1.0
        watch.wishes()
        assert board.questions == 1
        board.stop = True
        now[0] = 2.5
        assert "stop" in watch.wishes()

    def test_a_checkpoint_is_due_when_the_minutes_have_passed_since_the_last(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        written = [True]
        watch, never = (Watch(_Answer(), seconds, lambda: written[0]) for seconds in (30.0, 0.0))
        now[0] = 29.0
        assert "save" not in watch.wishes()
        now[0] = 31.0
        written[0] = False
        assert "save" not in watch.wishes(), "the last one is still being written"
        written[0] = True
        assert "save" in watch.wishes()
        assert "save" not in never.wishes()
        watch.saved()
        assert "save" not in watch.wishes()
        assert "look" not in watch.wishes(), "it looked a moment ago"
