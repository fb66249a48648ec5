import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mammoray import ingest
from mammoray.errors import DecodeError, IngestError, StorageError
from mammoray.sandbox import Outcome, Sandbox

ACT = "tests.sandbox_jobs:act"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(ACT, limit=30)
    yield made
    made.close()


def values(outcomes: Iterator[Outcome]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def test_answers_come_in_order_from_one_child(sandbox: Sandbox) -> None:
    assert values(sandbox.run([("return", i) for i in range(300)])) == list(range(300))
    first, second = (values(sandbox.run([("pid",)]))[0] for _ in range(2))
    assert first == second != os.getpid()


def test_messages_larger_than_a_pipe_go_both_ways(sandbox: Sandbox) -> None:
    large = [bytes([i]) * 1_000_000 for i in range(5)]
    assert values(sandbox.run([("return", part) for part in large])) == large


@pytest.mark.parametrize(
    ("accident", "end", "lasting"),
    [
        (("segfault",), "SIGSEGV", True),
        (("kill", signal.SIGABRT), "SIGABRT", True),
        (("exit", 3), "exit status 3", True),
        (("exit", 0), "exit status 0", True),
        (("kill", signal.SIGBUS), "SIGBUS", False),
        (("kill", signal.SIGKILL), "SIGKILL", False),
    ],
)
def test_a_child_that_dies_costs_its_job_alone(
    sandbox: Sandbox, accident: tuple[Any, ...], end: str, lasting: bool
) -> None:
    outcomes = list(sandbox.run([("return", 1), accident, ("return", 2), ("return", 3)]))
    assert [outcome.value for outcome in outcomes] == [1, None, 2, 3]
    assert [outcome.end for outcome in outcomes] == [None, end, None, None]
    assert outcomes[1].lasting is lasting


def test_a_child_warms_up_once_before_its_first_job(sandbox: Sandbox) -> None:
    assert values(sandbox.run([("warm",), ("warm",), ("exit", 1), ("warm",)])) == [[True], [True], None, [True]]


def test_a_slow_reader_of_the_outcomes_gets_the_same(sandbox: Sandbox) -> None:
    ends = []
    for outcome in sandbox.run([("return", 1), ("exit", 3), ("return", 2)]):
        ends.append(outcome.end or outcome.value)
        time.sleep(0.3)  # In the meantime the child dies of the next job.
    assert ends == [1, "exit status 3", 2]


def test_two_accidents_in_a_row_are_told_apart(sandbox: Sandbox) -> None:
    outcomes = list(sandbox.run([("exit", 1), ("exit", 2), ("return", 3)]))
    assert [(outcome.end, outcome.value) for outcome in outcomes] == [
        ("exit status 1", None),
        ("exit status 2", None),
        (None, 3),
    ]


def test_a_job_whose_child_was_killed_from_outside_gets_one_more_try(sandbox: Sandbox, tmp_path: Path) -> None:
    outcomes = list(sandbox.run([("kill once", str(tmp_path / "marker")), ("return", 2)]))
    assert [outcome.end for outcome in outcomes] == [None, None]


def test_a_storage_that_answers_nothing_is_no_fault_of_the_file_and_ends_a_decode(sandbox: Sandbox) -> None:
    silent = StorageError("s3://bucket/1.dcm", "a storage that answers", "OSError: NETWORK_CONNECTION", "Run again.")
    outcomes = list(sandbox.run([("raise", silent), ("return", 1)]))
    assert str(outcomes[0].error) == str(silent)
    assert not outcomes[0].lasting
    with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
        list(ingest.answered(iter(outcomes)))


@pytest.mark.parametrize("hang", [("sleep",), ("spin in C",)])
def test_a_job_that_hangs_costs_the_limit_and_no_more(hang: tuple[str]) -> None:
    sandbox = Sandbox(ACT, limit=0.5)
    list(sandbox.run([("return", 0)]))
    started = time.monotonic()
    outcomes = list(sandbox.run([("return", 1), hang, ("return", 2)]))
    assert [outcome.end for outcome in outcomes] == [None, "time limit", None]
    assert not outcomes[1].lasting
    assert time.monotonic() - started < 8
    sandbox.close()


def test_the_limit_is_of_a_call_and_not_of_the_waiting_between_calls() -> None:
    sandbox = Sandbox(ACT, limit=0.3)
    before = values(sandbox.run([("pid",)]))
    time.sleep(0.6)
    assert values(sandbox.run([("pid",)])) == before
    sandbox.close()


def test_errors_come_back_as_they_were_but_without_the_texts_of_libraries(sandbox: Sandbox) -> None:
    own, system, other = (
        outcome.error
        for outcome in sandbox.run(
            [
                ("raise", DecodeError("a.dcm", "b", "c", "d")),
                ("raise", FileNotFoundError(2, "No such file or directory", "DOE^JANE.dcm")),
                ("raise", KeyError("DOE^JANE")),
            ]
        )
    )
    assert isinstance(own, DecodeError)
    assert own.args == ("a.dcm", "b", "c", "d")
    assert isinstance(system, FileNotFoundError)
    assert str(other) == "KeyError"
    assert "DOE" not in f"{system!r}{other!r}"


def test_a_memory_bomb_is_an_error_of_its_job(sandbox: Sandbox) -> None:
    bomb, after = sandbox.run([("bomb",), ("return", 1)])
    assert isinstance(bomb.error, MemoryError)
    assert after.value == 1


def test_what_a_job_prints_goes_nowhere(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    assert values(sandbox.run([("print", "DOE^JANE"), ("return", 1)])) == [None, 1]
    assert "DOE" not in "".join(capfd.readouterr())


def test_a_caller_that_leaves_in_the_middle_leaves_no_answers_behind(sandbox: Sandbox) -> None:
    outcomes = sandbox.run([("return", i) for i in range(10)])
    assert isinstance(outcomes, Iterator)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert values(sandbox.run([("return", "new")])) == ["new"]


def test_answers_that_nobody_took_reach_nobody_else_while_the_one_who_left_still_holds_on(sandbox: Sandbox) -> None:
    silent = StorageError("s3://bucket/1.dcm", "a storage that answers", "OSError", "Run again.")
    held: Any = sandbox.run([("raise", silent), *(("return", i) for i in range(4))])
    assert isinstance(next(held).error, StorageError)
    again = sandbox.run([("return", i) for i in range(10, 15)])
    first = next(again).value
    held.close()  # Its end must not end the child of the others.
    assert [first, *values(again)] == [10, 11, 12, 13, 14]


def test_a_child_that_dies_while_idle_is_no_jobs_fault(sandbox: Sandbox) -> None:
    pid = values(sandbox.run([("pid",)]))[0]
    os.kill(pid, signal.SIGABRT)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    assert values(sandbox.run([("return", 1)])) == [1]


def test_a_function_that_cannot_be_imported_is_an_error_of_the_run() -> None:
    for name in ("mammoray.nothing:decode", "mammoray.decode:nothing"):
        with pytest.raises(IngestError, match=r"nothing"):
            list(Sandbox(name, limit=1).run([()]))


def test_the_child_is_light_and_has_one_thread(sandbox: Sandbox) -> None:
    assert values(sandbox.run([("threads",)]))[0] == 1
    modules = values(sandbox.run([("modules",)]))[0]
    assert "mammoray.decode" in modules
    assert not {"ray", "torch", "pandas", "pyarrow"} & set(modules)


def test_a_module_that_wants_to_is_told_of_the_next_jobs_while_it_works() -> None:
    sandbox = Sandbox("tests.announced_jobs:act", limit=30)
    heard = values(sandbox.run([(number, 0.2) for number in range(8)]))
    assert heard[0] == [0, 1, 2, 3, 4, 5]
    assert heard[-1] == list(range(8)), "each of them once, in their order"
    outcomes = list(sandbox.run([(10, 0.1), (-1, 0.1), (11, 0.1), (12, 0.1)]))
    assert [outcome.end for outcome in outcomes] == [None, "SIGSEGV", None, None]
    assert outcomes[-1].value == [11, 12], "of a child of its own"
    assert [len(heard) for heard in values(sandbox.run([(13, 0.1), (99, 0.1)]))] == [3, 3], "99 cannot be announced"
    sandbox.close()


@pytest.mark.parametrize("busy", [True, False])
def test_an_orphan_ends_by_itself(tmp_path: Path, busy: bool) -> None:
    marker = tmp_path / "pid"
    job = ("sleep", str(marker)) if busy else ("return", 1)
    program = (
        "import os, pathlib, sys, time; from mammoray.sandbox import Sandbox\n"
        f"sandbox = Sandbox({ACT!r}, limit=2)\n"
        "list(sandbox.run([('return', 0)]))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).write_text(str(sandbox._child.pid))\n"
        f"list(sandbox.run([{job!r}])); time.sleep(1000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    wanted = marker if busy else tmp_path / "ready"
    deadline = time.monotonic() + 60
    while not (wanted.exists() and wanted.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = psutil.Process(int(wanted.read_text()))
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs([child], timeout=6)[1]


def test_outcomes_pickle() -> None:
    outcome = Outcome(error=DecodeError("a", "b", "c", "d"), seconds=1.0)
    assert pickle.loads(pickle.dumps(outcome)).error.args == ("a", "b", "c", "d")
