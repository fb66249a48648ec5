"""The verbs around a training, ``doctor``, ``predict``, ``evaluate`` and ``embed``: their flags, and what they say.

As :mod:`mammoray.cli`, this module imports neither Ray nor torch before a verb runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mammoray import plain, storage
from mammoray.checks import require, require_no_secret
from mammoray.config import DataConfig, IngestConfig
from mammoray.recipe import ApplyConfig, EvaluateConfig
from mammoray.scale import Where

if TYPE_CHECKING:
    from mammoray.apply import Request

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyArgs:
    """What all of them take."""

    checkpoint: str
    """The folder of a run, whose best checkpoint counts, or of a checkpoint: a path, or a URI that pyarrow reaches. It
    says what the network needs to see: classes, decode settings and architecture are no flags."""
    dicom_root: str
    """The folder of the images: a path, or a URI that pyarrow reaches."""
    outdir: Path
    """A new folder for the results, or that of an earlier call."""
    csv: str | None = None
    """The table of the images, a path or a URI. Default: the one below --dicom-root, or none."""
    data: DataConfig = field(default_factory=DataConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    how: ApplyConfig = field(default_factory=ApplyConfig)
    where: Where = field(default_factory=Where)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictArgs(ApplyArgs):
    """Scores of new images, breasts and patients by a trained network, with labels or without.

    Any folder of images will do. The output folder gets predictions, breasts and patients, each as .parquet and .csv,
    failures.csv, a row per file that cannot be decoded, audit.csv, what else was left out, and predict.json. Research
    software, not a medical device: no score may guide the care of a patient.
    """

    average: Literal["images", "views"] = "images"
    """How the images of a patient or breast become one: images, each alike; views, each side and view alike, however
    many images it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateArgs(ApplyArgs):
    """What a trained network is worth on labelled images: metrics with intervals.

    The output folder gets predictions.parquet, metrics.json and evaluate.json, failures.csv and audit.csv. Folds of the
    network's own split are judged apart from each other and from new patients.
    """

    average: Literal["images", "views"] = "images"
    """How the images of a patient or breast become one: images, each alike; views, each side and view alike, however
    many images it has."""
    breasts: bool = False
    """Also judge by breast: the mean over the images of one side of a patient."""
    bootstrap: int = 1000
    """Resamples of patients for the 95 % intervals; 0 leaves the intervals out."""
    seed: int = 0
    """Seed of the resamples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedArgs(ApplyArgs):
    """The features that a trained network sees in images, and classic baselines on them.

    The output folder gets features.parquet, embed.json, failures.csv and audit.csv; and with labels baselines.json:
    logistic regression and nearest neighbours, fitted on training patients alone. With --seen allow and the data of the
    network's own run those are its training patients, and its test patients judge.
    """

    bootstrap: int = 1000
    """Resamples of patients for the 95 % intervals of the baselines; 0 leaves the intervals out."""
    seed: int = 0
    """Seed of the resamples, and of the split where the network's own does not serve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorArgs:
    """Look at a Ray cluster, or at this machine: can it run what mammoray runs, and what is to be done if not.

    A line for each check: versions, CPUs, memory, disk, GPUs, storage, clocks, and the network between the nodes. The
    exit status is 0 where all is well (there may be warnings), 1 where something will fail, and 2 where the cluster
    could not be looked at.
    """

    storage: str | None = None
    """A folder, or a URI that pyarrow reaches (s3://bucket/prefix), that runs will use: every node writes a small file
    there, reads those of the others, and removes it."""
    limit_seconds: float = 60.0
    """Seconds to wait for a node, each time that it is asked something."""
    json: bool = False
    """Print a JSON list of check, level, found and remedy instead."""
    address: str | None = None
    """A Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: the cluster of the job this runs in, or one begun on
    this machine by 'ray start', else a new local one."""

    def __post_init__(self) -> None:
        require_no_secret(self.storage or "", "--storage")
        require(0 < self.limit_seconds < math.inf, "limit_seconds", "above 0", self.limit_seconds)


def predict(args: PredictArgs, say: Say) -> list[str]:
    """Run the verb; returns the lines that stand at its end."""
    from mammoray import apply, cluster

    facts = cluster.run_there(args.where.address, apply.score, _request(args), args.average, say)
    counts = f"{facts['decoded']} images, {facts['breasts']} breasts and {facts['patients']} patients"
    return [f"scores of {counts}, {facts['failed']} files failed: {args.outdir.absolute()}"]


def evaluate(args: EvaluateArgs, say: Say) -> list[str]:
    """Run the verb; returns the lines that stand at its end."""
    from mammoray import apply, cluster

    config = EvaluateConfig(average=args.average, breasts=args.breasts, bootstrap=args.bootstrap)
    metrics = cluster.run_there(args.where.address, apply.judge, _request(args), config, args.seed, say)
    return [*apply.headline(metrics), f"metrics: {args.outdir.absolute() / 'metrics.json'}"]


def embed(args: EmbedArgs, say: Say) -> list[str]:
    """Run the verb; returns the lines that stand at its end."""
    from mammoray import cluster
    from mammoray import embed as embedding

    config = EvaluateConfig(bootstrap=args.bootstrap)
    facts = cluster.run_there(args.where.address, embedding.run, _request(args), config, args.seed, say)
    return [*embedding.headline(facts), f"features: {args.outdir.absolute() / embedding.FILES[0]}"]


def doctor(args: DoctorArgs, say: Say) -> int:
    """Run the verb; returns its exit status."""
    from mammoray import cluster
    from mammoray import doctor as examiner

    place = None if args.storage is None else storage.absolute(args.storage)
    lines = cluster.run_there(args.address, examiner.run, place, args.address, args.limit_seconds)
    if args.json:
        say(json.dumps([plain.to_dict(line) for line in lines], indent=2))
    else:
        for line in lines:
            say(str(line))
        say(examiner.counted(lines))
    return 1 if any(line.level == "FAIL" for line in lines) else 0


def _request(args: ApplyArgs) -> Request:
    from mammoray.apply import Request

    places = {"--checkpoint": args.checkpoint, "--csv": args.csv, "--dicom-root": args.dicom_root}
    for flag, place in places.items():
        require_no_secret(place or "", flag)  # Before Ray begins, or a cluster gets to see it.
    return Request(
        checkpoint=storage.absolute(args.checkpoint),
        csv=None if args.csv is None else storage.absolute(args.csv),
        dicom_root=storage.absolute(args.dicom_root),
        outdir=args.outdir.absolute(),
        data=args.data,
        ingest=args.ingest,
        how=args.how,
        where=args.where,
    )
