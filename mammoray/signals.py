"""What the workers tell each other after every step: the loss, whether it is finite, and what rank 0 wants done.

All of it in one small tensor that is added up over the workers and read a step later, when it has long arrived: no
worker waits for it, and all act on it at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist

WISHES = ("stop", "save", "look")
"""stop: the run was told to. save: a checkpoint is due. look: ask Ray whether a node is about to be taken away."""
_ASK_SECONDS = 1.0
_LOOK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """Of one step, from all workers: the loss of the global batch, workers whose loss is not finite, and wishes."""

    loss: float
    broken: int
    wishes: frozenset[str]


class Signals:
    """Sends after each step, and hears a step later."""

    def __init__(self, workers: int, device: torch.device) -> None:
        self.workers = workers
        self.device = device
        self.sent: torch.Tensor | None = None
        self.work: Any = None
        self.event: torch.cuda.Event | None = None

    def send(self, loss: torch.Tensor, wishes: frozenset[str]) -> None:
        """Send this worker's part of the loss, a scalar on the device, and wishes, which only rank 0 has."""
        flags = torch.tensor([float(wish in wishes) for wish in WISHES]).to(self.device, non_blocking=True)
        values = torch.cat([torch.stack([loss.float(), (~torch.isfinite(loss)).float()]), flags])
        if self.workers > 1:
            self.work = dist.all_reduce(values, async_op=True)
        if self.device.type != "cuda":
            self.sent = values
            return
        if self.work is not None:
            self.work.wait()  # On the stream, not here.
        self.sent = torch.empty(values.shape, pin_memory=True)
        self.sent.copy_(values, non_blocking=True)
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.event.record()

    def hear(self) -> Heard | None:
        """What was sent last, or None where nothing was sent since."""
        if self.sent is None:
            return None
        if self.event is not None:
            self.event.synchronize()
        elif self.work is not None:
            self.work.wait()
        loss, broken, *flags = self.sent.tolist()
        self.sent = self.work = self.event = None
        wishes = frozenset(wish for wish, flag in zip(WISHES, flags, strict=True) if flag)
        return Heard(loss=loss, broken=round(broken), wishes=wishes)


class Watch:
    """What rank 0 wants: it asks the board now and then, without waiting for the answer, and looks at the clock.

    Parameters
    ----------
    asked : callable
        Gives an object reference to whether the run was told to stop.
    save_seconds : float
        Seconds between checkpoints within an epoch; 0 for none.
    written : callable
        Whether the last checkpoint is written; before that, none is due.
    """

    def __init__(self, asked: Callable[[], ray.ObjectRef], save_seconds: float, written: Callable[[], bool]) -> None:
        self.asked = asked
        self.save_seconds = save_seconds
        self.written = written
        self.question: ray.ObjectRef | None = None
        self.asked_at = self.looked_at = self.saved_at = time.monotonic()

    def wishes(self) -> frozenset[str]:
        """What is wanted now."""
        now = time.monotonic()
        wanted = set()
        if self.question is None and now - self.asked_at >= _ASK_SECONDS:
            self.question, self.asked_at = self.asked(), now
        if self.question is not None and ray.wait([self.question], timeout=0)[0]:
            if ray.get(self.question):
                wanted.add("stop")
            self.question = None
        if now - self.looked_at >= _LOOK_SECONDS:
            self.looked_at = now
            wanted.add("look")
        if self.save_seconds and now - self.saved_at >= self.save_seconds and self.written():
            wanted.add("save")
        return frozenset(wanted)

    def saved(self) -> None:
        """A checkpoint was made."""
        self.saved_at = time.monotonic()
