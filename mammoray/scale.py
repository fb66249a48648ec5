"""Where things run, and where what they make is kept: flags that change nothing of the results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mammoray.checks import require, require_choices, require_no_secret


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """A Ray cluster, and storage that all of its nodes see."""

    address: str | None = None
    """A Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: the cluster of the job this runs in, or one begun on
    this machine by 'ray start', else a new local one."""
    storage: str | None = None
    """For clusters whose nodes see no common folder: a URI that pyarrow reaches (s3://bucket/prefix), or a path. Cache
    and checkpoints go there, and a copy of the output folder under its name, from which any machine goes on."""

    def __post_init__(self) -> None:
        require_no_secret(self.storage or "", "--storage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale(Where):
    """Where a training runs: a laptop and a cluster differ in nothing else."""

    num_workers: int = 1
    """Ray Train workers (DDP processes), one a GPU where there are GPUs."""
    min_workers: int = 0
    """Go on with as few workers as this when nodes are lost, and with up to --num-workers when some come back; the
    batch stays the same and is divided anew. 0: only with --num-workers."""
    resize_seconds: float = 60.0
    """With --min-workers: seconds between looks at whether the cluster has room for more workers."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether workers use GPUs. auto: yes when the cluster has enough for --num-workers."""
    gpus_per_worker: float = 1.0
    """GPUs reserved for each worker. A fraction lets several trainings, of one worker each, share a GPU, and its
    memory; more than 1 keeps the others idle for it."""
    cpus_per_worker: float = 0.0
    """CPUs reserved for each worker, which then computes with as many threads. 0 reserves one, or less where there are
    more workers than CPUs, and computes with the worker's share of all cores of its node."""

    def __post_init__(self) -> None:
        Where.__post_init__(self)  # super() does not know a class with slots, which is made anew.
        require_choices(self)
        require(self.num_workers >= 1, "num_workers", "at least 1", self.num_workers)
        expected = f"0 to --num-workers {self.num_workers}"
        require(0 <= self.min_workers <= self.num_workers, "min_workers", expected, self.min_workers)
        require(self.resize_seconds > 0, "resize_seconds", "above 0", self.resize_seconds)
        require(0 <= self.cpus_per_worker < math.inf, "cpus_per_worker", "0 or more", self.cpus_per_worker)
        share = self.gpus_per_worker
        # Ray counts in ten-thousandths.
        ok = 1e-4 <= share < 1 or (1 <= share < math.inf and share == int(share))
        require(ok, "gpus_per_worker", "a fraction above 0, or a whole number", share)
        expected = "1 or more with several --num-workers: NCCL refuses two of a group on one GPU"
        require(share >= 1 or self.num_workers == 1, "gpus_per_worker", expected, share)
