import os
import signal
import time

import pytest
import ray

from mammoray import board
from mammoray.errors import TrainError

pytestmark = pytest.mark.usefixtures("ray_session")


def test_messages_and_records_reach_the_driver_in_their_order() -> None:
    own = board.open_board()
    said: list[str] = []
    logged: list[dict[str, int]] = []
    with board.listening(own, said.append, logged.append):
        for n in range(5):
            ray.get([own.put.remote(f"line {n}"), own.log.remote({"epoch": n})])
    assert said == [f"line {n}" for n in range(5)]
    assert [record["epoch"] for record in logged] == list(range(5))


def test_a_sigterm_reaches_the_workers_and_does_not_end_the_driver() -> None:
    own = board.open_board()
    before = signal.getsignal(signal.SIGTERM)
    with board.listening(own, lambda line: None, lambda record: None):
        assert ray.get(own.asked.remote()) is False
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not ray.get(own.asked.remote()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_first_failure_is_kept() -> None:
    own = board.open_board()
    assert ray.get(own.failure.remote()) is None
    for n in (1, 2):
        ray.get(own.fail.remote(TrainError("a step", "a finite loss", f"NaN {n}", "Lower --lr.")))
    assert ray.get(own.failure.remote()).found == "NaN 1"
