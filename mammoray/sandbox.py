"""Calls of a function in a child process, so that a crash, a hang or a memory bomb costs one call and not the program.

A child is a fresh interpreter (never a fork: the parents have threads) that imports the function once, takes jobs from
its standard input and answers on its standard output; the jobs that come next may be announced to it, so that it
fetches what they need. It guards itself: the kernel's alarm clock ends it when a call takes too long, whether the
parent lives or not and whatever lock the call holds, and the end of its input ends it when the parent is gone. What it
prints goes nowhere: libraries quote headers. This keeps accidents apart; it is no defence against an attacker, since
answers are pickles.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, BinaryIO

from mammoray.errors import IngestError, MammorayError, StorageError

_IN_FLIGHT = 6  # The job in hand, and those whose files a child fetches meanwhile: a storage may take 0.1 s for each.
_PIPE_BYTES = 32_768  # What a pipe takes without its reader, on every system.
_START_SECONDS = 120.0  # For the imports, on a busy machine with a cold disk.
_MEMORY_BYTES = 8 * 2**30  # Several times what the largest detector needs; a bomb wants more.
# One child a core: more threads would only fight.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_FROM_WITHIN = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL")
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one call.

    Attributes
    ----------
    value : Any
        What it returned; a dataclass arrives as a dictionary, so that the parent needs none of the child's imports.
    error : Exception or None
        What it raised: an error of mammoray or of the operating system as it was, of any other only the name, because
        the texts of libraries quote headers.
    end : str or None
        How the child ended instead of answering: the name of a signal, ``exit status N``, or ``time limit``.
    seconds : float
        Processor time of the call, without that of other threads.
    """

    value: Any = None
    error: Exception | None = None
    end: str | None = None
    seconds: float = 0.0

    @property
    def lasting(self) -> bool:
        """Whether the same job would end in the same way.

        So where it was refused with an error of mammoray, or brought its child down. Not where the system or the
        program may be at fault: storage that fails or stalls (SIGBUS, where a file is mapped), memory that is short,
        somebody's SIGKILL, an installation or code that is broken.
        """
        if self.end is not None:
            return self.end in _FROM_WITHIN or self.end.startswith("exit status")
        return self.error is None or (
            isinstance(self.error, MammorayError) and not isinstance(self.error, StorageError)
        )


class Sandbox:
    """A child process that calls one function, and another child after each one that died.

    Parameters
    ----------
    function : str
        ``module:name`` of what to call; its arguments and its result must pickle. If the module has a function
        ``warm_up``, it is called first, before any limit counts: compilers take their seconds there. If it has a
        function ``announce``, that is called with the arguments of each job some jobs before, by another thread; it
        must not take time.
    limit : float
        Seconds that a call may take.
    """

    def __init__(self, function: str, limit: float) -> None:
        self._function = function
        self._limit = limit
        self._child: subprocess.Popen[bytes] | None = None
        self._sent = deque[tuple[Any, ...]]()

    def run(self, jobs: Sequence[tuple[Any, ...]]) -> Iterator[Outcome]:
        """Call the function with each job's arguments; yields the outcomes in the order of the jobs.

        Raises
        ------
        IngestError
            The child cannot be started at all.
        """
        if self._sent:  # A caller who left in the middle, and still holds on to it.
            self.close()
        waiting, sent = deque(jobs), deque[tuple[Any, ...]]()
        self._sent = sent
        tried_before = False
        try:
            while waiting or sent:
                child = self._living(idle=not sent)
                _send_some(child, waiting, sent)
                outcome = _answer(child)
                if outcome is None:  # The oldest job is the one in hand: answers come in order.
                    outcome = Outcome(end=self._bury(child))
                    again = outcome.end in _FROM_OUTSIDE and not tried_before
                    waiting.extendleft(reversed([job for i, job in enumerate(sent) if again or i > 0]))
                    sent.clear()
                    tried_before = again
                    if again:
                        continue
                else:
                    sent.popleft()
                    tried_before = False
                yield outcome
        finally:
            if sent and self._sent is sent:  # Left in the middle: the next caller must not get these answers.
                self.close()

    def close(self) -> None:
        """End the child, if there is one."""
        self._sent = deque()
        if self._child is not None:
            self._child.kill()
            self._bury(self._child)

    def _living(self, idle: bool) -> subprocess.Popen[bytes]:
        """The child, or a new one; with jobs in flight, the missing answer has to tell of which of them it died."""
        if idle and self._child is not None and self._child.poll() is not None:
            self._bury(self._child)  # It died between two calls: no job's fault.
        if self._child is None:
            self._child = _start(self._function, self._limit)
        return self._child

    def _bury(self, child: subprocess.Popen[bytes]) -> str:
        self._child = None
        return _wait(child)


def _start(function: str, limit: float) -> subprocess.Popen[bytes]:
    """Begin a child and wait until it has imported the function."""
    folders = os.pathsep.join(path or os.curdir for path in sys.path)
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": folders}
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", "from mammoray.sandbox import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the program; the child ends when its input does.
        )
    except OSError as error:
        found = os.strerror(error.errno or 0)
        raise IngestError(sys.executable, "a child process", found, "Give it memory and processes.") from error
    _send(child, (function, limit))
    ready = _answer(child)
    if ready is None or ready.error is not None:
        child.kill()
        found = _wait(child) if ready is None else str(ready.error)
        raise IngestError(function, "a function that a child process can import", found, "Check the installation.")
    return child


def _send_some(child: subprocess.Popen[bytes], waiting: deque[Any], sent: deque[Any]) -> None:
    while waiting and len(sent) < _IN_FLIGHT:
        message = pickle.dumps(waiting[0], protocol=5)
        # To wait for the child to read would be to wait for each other: it may be writing an answer.
        if sent and len(message) > _PIPE_BYTES // _IN_FLIGHT:
            return
        _write(child, message)
        sent.append(waiting.popleft())


def _send(child: subprocess.Popen[bytes], content: Any) -> None:
    _write(child, pickle.dumps(content, protocol=5))


def _write(child: subprocess.Popen[bytes], message: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # A dead child: the missing answer tells.
        child.stdin.write(message)  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]


def _answer(child: subprocess.Popen[bytes]) -> Outcome | None:
    """The next answer, or None when the child ended before or in it."""
    try:
        outcome: Outcome = pickle.load(child.stdout)  # type: ignore[arg-type]  # noqa: S301 - of our own child.
    except (EOFError, pickle.UnpicklingError):
        return None
    return outcome


def _wait(child: subprocess.Popen[bytes]) -> str:
    """Wait for the end of a child whose pipe has ended; returns how it ended."""
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()  # type: ignore[union-attr]
    child.stdout.close()  # type: ignore[union-attr]
    try:
        code = child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        code = child.wait()
    if code == -signal.SIGALRM:
        return "time limit"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def serve() -> None:
    """Be the child: call the function for each job on standard input until it ends."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # What the function prints must not stand among the answers.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory()
    signal.setitimer(signal.ITIMER_REAL, _START_SECONDS)
    try:
        _serve(jobs, answers)
    except (EOFError, pickle.UnpicklingError, BrokenPipeError):
        os._exit(0)  # The parent is gone, perhaps in the middle of a word.


def _serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    name, limit = pickle.load(jobs)  # noqa: S301 - of our own parent.
    try:
        module, _, attribute = name.partition(":")
        imported = importlib.import_module(module)
        function = getattr(imported, attribute)
        getattr(imported, "warm_up", lambda: None)()
    except Exception as error:
        _reply(answers, Outcome(error=IngestError(name, "an import", f"{type(error).__name__}: {error}", "")))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    _reply(answers, Outcome())
    for job in _announced(jobs, imported.announce) if hasattr(imported, "announce") else _loaded(jobs):
        started = time.thread_time()
        signal.setitimer(signal.ITIMER_REAL, limit)
        value, raised = None, None
        try:
            value = function(*job)
            value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        except Exception as error:
            raised = _portable(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(answers, Outcome(value=value, error=raised, seconds=time.thread_time() - started))


def _loaded(jobs: BinaryIO) -> Iterator[tuple[Any, ...]]:
    while True:
        yield pickle.load(jobs)  # noqa: S301


def _announced(jobs: BinaryIO, announce: Callable[..., None]) -> Iterator[tuple[Any, ...]]:
    """The jobs, each announced as soon as it is there."""
    come: queue.SimpleQueue[tuple[Any, ...] | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            for job in _loaded(jobs):
                with contextlib.suppress(Exception):  # The call itself will tell.
                    announce(*job)
                come.put(job)
        except Exception as error:
            come.put(error)

    threading.Thread(target=read, daemon=True).start()
    while not isinstance(job := come.get(), Exception):
        yield job
    raise job


def _limit_memory() -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or hard > _MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, hard))


def _portable(error: Exception) -> Exception:
    if isinstance(error, MammorayError):
        return error
    if isinstance(error, OSError):
        return type(error)(error.errno, os.strerror(error.errno)) if error.errno else OSError(type(error).__name__)
    return MemoryError() if isinstance(error, MemoryError) else RuntimeError(type(error).__name__)


def _reply(answers: BinaryIO, outcome: Outcome) -> None:
    pickle.dump(outcome, answers, protocol=5)
    answers.flush()
