"""The command line: verbs, whose flags are the fields of the config dataclasses.

This module imports neither Ray nor torch, so that help is there at once; a verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from mammoray import __version__, plain, verbs
from mammoray.checks import require_no_secret
from mammoray.config import NOTICE, AuditConfig, Config, DataConfig, DecodeConfig, IngestConfig, SynthConfig, TuneConfig
from mammoray.errors import ConfigError, InterruptedRunError, MammorayError
from mammoray.scale import Scale, Where


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunArgs:
    dicom_root: str
    """The folder of the images, such as the one with train_images/ or archive/; a path, or a URI that pyarrow reaches
    (s3://bucket/prefix, gs://), whose credentials are those of the environment."""
    outdir: Path
    """The run's folder; the same command goes on with an interrupted run there."""
    csv: str | None = None
    """The table of labels, a path or a URI: train.csv, classificacao.csv, metadata.csv or another. Default: the one of
    these below --dicom-root, or none, where the layout has no table."""
    config: Path | None = None
    """A TOML file of settings, such as config.toml of an earlier run; flags go before it."""
    settings: Config = field(default_factory=Config)
    scale: Scale = field(default_factory=Scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainArgs(_RunArgs):
    """From a CSV and DICOMs to a trained, evaluated model: catalog, split, decode, train, evaluate, report."""

    dry_run: bool = False
    """Check everything and say what the run would do, need and take; decode a few files, train nothing, write
    nothing."""
    overfit_batch: bool = False
    """Instead of the run: see whether the network can learn its first batch by heart, without augmentation and dropout.
    Writes nothing but the images of this batch into the cache. The exit status is 0 where it can, and 1 where not."""

    def __post_init__(self) -> None:
        if self.dry_run and self.overfit_batch:
            raise ConfigError("--dry-run with --overfit-batch", "one of them", "both", "Leave either out.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossvalArgs(_RunArgs):
    """Train and test on each of --folds parts in turn, and judge all test predictions together.

    The output folder gets a run's folder per fold (fold-0, fold-1, ...), and metrics.json and predictions.parquet of
    all.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneArgs(_RunArgs):
    """Search for better settings: many trainings, on training and validation patients alone.

    The output folder gets trials/, study.journal (which optuna-dashboard opens), trials.parquet, study.html, and
    best.toml, which train --config takes. The same command goes on with an interrupted search there.
    """

    space: str = "default"
    """The search space: a TOML file, a Python file (FILE.py:FUNCTION, by default space), or the default."""
    resume: Path | None = None
    """The output folder of a search, to go on with it as it was begun; other flags change what they say, such as
    --num-trials. Takes the place of --dicom-root and --outdir."""
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditArgs:
    """Look for what is wrong with a data set, and change nothing.

    The output folder gets audit.csv, a row per finding, audit.json, the counts, and audit.html. The exit status is 0
    where the data set is fit to train on, 1 where it is not, and 2 where it could not be looked at.
    """

    dicom_root: str
    """The folder of the images: a path, or a URI that pyarrow reaches."""
    outdir: Path = Path("outputs/audit")
    """A folder for the three files."""
    csv: str | None = None
    """The table of the images, a path or a URI. Default: the one below --dicom-root, or none, where the layout has no
    table."""
    data: DataConfig = field(default_factory=DataConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    where: Where = field(default_factory=Where)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareArgs:
    """Decode all images of a data set into the cache, where a training with the same settings finds them.

    The output folder gets failures.csv, a row per file that cannot be decoded, and prepare.json, a summary.
    """

    dicom_root: str
    """The folder of the images: a path, or a URI that pyarrow reaches."""
    outdir: Path
    """A folder for the two files; the cache is beside it, unless --cache says otherwise."""
    csv: str | None = None
    """The table of the images, a path or a URI; images without a label count too. Default: the one below --dicom-root,
    or none, where the layout has no table."""
    config: Path | None = None
    """A TOML file of settings, such as config.toml of a run; flags go before it."""
    data: DataConfig = field(default_factory=DataConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    where: Where = field(default_factory=Where)


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthArgs:
    """Write synthetic mammograms, with their classes, in the layout and the file format of a real data set."""

    outdir: Path
    """A new folder for the data set."""
    seed: int = 0
    """Seed of everything in it: the same seed, with the same library versions, writes the same bytes."""
    synth: SynthConfig = field(default_factory=SynthConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportArgs:
    """Write report.html of a finished run again, from the files in its folder."""

    outdir: Path
    """The run's folder."""


def _source(args: _RunArgs) -> Any:
    from mammoray.pipeline import Source

    return Source(*_places(args))


def _places(args: _RunArgs | AuditArgs | PrepareArgs) -> tuple[str | None, str, Path]:
    """Table, root and output folder, for a process with another working folder."""
    from mammoray import storage

    for flag, place in (("--csv", args.csv), ("--dicom-root", args.dicom_root)):
        require_no_secret(place or "", flag)  # Before Ray begins, or a cluster gets to see it.
    csv = None if args.csv is None else storage.absolute(args.csv)
    return csv, storage.absolute(args.dicom_root), args.outdir.absolute()


def _train(args: TrainArgs) -> int:
    from mammoray import cluster, pipeline

    if args.dry_run or args.overfit_batch:
        verb = pipeline.dry_run if args.dry_run else pipeline.overfit
        good = cluster.run_there(args.scale.address, verb, _source(args), args.settings, args.scale, say)
        return 0 if good else 1
    metrics = cluster.run_there(args.scale.address, pipeline.run, _source(args), args.settings, args.scale, say)
    for line in pipeline.headline(metrics):
        say(line)
    say(f"report: {args.outdir.absolute() / 'report.html'}")
    _say_copy(args.outdir, args.scale)
    say(NOTICE)
    return 0


def _crossval(args: CrossvalArgs) -> None:
    from mammoray import cluster, crossval, pipeline

    metrics = cluster.run_there(args.scale.address, crossval.run, _source(args), args.settings, args.scale, say)
    for line in pipeline.headline(metrics):
        say(line)
    say(f"reports: {args.outdir.absolute()}/fold-*/report.html")
    _say_copy(args.outdir, args.scale)
    say(NOTICE)


def _tune(args: TuneArgs) -> None:
    from mammoray import cluster, results, space, study, tune

    place, scale, search = space.absolute(args.space), args.scale, study.absolute(args.tune)
    facts = cluster.run_there(scale.address, tune.run, _source(args), place, args.settings, search, scale, say)
    for line in results.headline(facts):
        say(line)
    say(f"page: {args.outdir.absolute() / 'study.html'}")
    _say_copy(args.outdir, args.scale)
    say(NOTICE)


def _prepare(args: PrepareArgs) -> None:
    from mammoray import cluster, prepare

    config = Config(data=args.data, decode=args.decode, ingest=args.ingest)
    facts = cluster.run_there(args.where.address, prepare.run, *_places(args), config, args.where, say)
    say(
        f"{facts['decoded']} of {facts['images']} images are in {facts['cache']}, {facts['failed']} failed: "
        f"{args.outdir.absolute() / prepare.FILES[0]}"
    )
    _say_copy(args.outdir, args.where)


def _audit(args: AuditArgs) -> int:
    from mammoray import audit, cluster

    file = args.data.quarantine
    data = plain.replace(args.data, quarantine=file and file.absolute())
    facts = cluster.run_there(args.where.address, audit.run, *_places(args), data, args.audit, args.where, say)
    for line in audit.headline(facts):
        say(line)
    say(f"page: {args.outdir.absolute() / audit.FILES[2]}")
    _say_copy(args.outdir, args.where)
    return 0 if facts["fit"] else 1


def _applied(verb: Callable[[Any, Callable[[str], None]], list[str]]) -> Callable[[Any], None]:
    def run(args: Any) -> None:
        for line in verb(args, say):
            say(line)
        _say_copy(args.outdir, args.where)
        say(NOTICE)

    return run


def _say_copy(outdir: Path, where: Where) -> None:
    from mammoray import mirror, storage

    copy = mirror.place(outdir.absolute(), where.storage)
    if copy is not None:
        say(f"copy: {storage.shown(copy)}")


def _synth(args: SynthArgs) -> None:
    from mammoray import synth

    written = synth.write(args.outdir, args.synth, args.seed)
    table = f"--csv {written.csv} " if written.csv else ""
    say(f"wrote {written.images} images of {written.patients} synthetic patients: {table}--dicom-root {written.root}")


def _report(args: ReportArgs) -> None:
    from mammoray import report

    say(f"report: {report.write_report(args.outdir)}")


def _doctor(args: verbs.DoctorArgs) -> int:
    return verbs.doctor(args, say)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


VERBS: dict[str, tuple[type[Any], Callable[[Any], int | None], str]] = {
    "train": (TrainArgs, _train, "from a CSV and DICOMs to a trained, evaluated model"),
    "train-density": (TrainArgs, _train, "the same as train"),
    "crossval": (CrossvalArgs, _crossval, "train and test on each part of the patients in turn"),
    "tune": (TuneArgs, _tune, "search for better settings"),
    "predict": (verbs.PredictArgs, _applied(verbs.predict), "scores of new images by a trained network"),
    "evaluate": (verbs.EvaluateArgs, _applied(verbs.evaluate), "what a trained network is worth on labelled images"),
    "embed": (
        verbs.EmbedArgs,
        _applied(verbs.embed),
        "the features that a trained network sees, and baselines on them",
    ),
    "audit": (AuditArgs, _audit, "look for what is wrong with a data set"),
    "prepare": (PrepareArgs, _prepare, "decode all images into the cache, and nothing else"),
    "synth": (SynthArgs, _synth, "write synthetic mammograms to try everything on"),
    "doctor": (verbs.DoctorArgs, _doctor, "look at a cluster, or at this machine: what would fail there"),
    "report": (ReportArgs, _report, "write the HTML report of a run again"),
}


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<14} {text}" for verb, (_, _, text) in VERBS.items())
    return (
        f"mammoray {__version__}: distributed training of breast-density classifiers on Ray\n\n"
        f"usage: mammoray VERB [flags]\n\n{verbs}\n\n"
        f"mammoray VERB --help shows the flags of a verb, with types, defaults and units.\n{NOTICE}"
    )


def parse(verb: str, argv: list[str]) -> Any:
    """Arguments of a verb: flags before the file of ``--config`` before defaults."""
    kind = VERBS[verb][0]
    options: dict[str, Any] = {}
    if issubclass(kind, _RunArgs | PrepareArgs) and (given := _value(argv, "--config")) is not None:
        file = Path(given)
        needed = dict.fromkeys(("dicom_root", "outdir"), tyro.MISSING)
        options["default"] = kind(**needed, config=file, **_sections(kind, plain.load_toml(file)))
    if kind is TuneArgs and (folder := _value(argv, "--resume")) is not None:
        options["default"] = _resumed(Path(folder))
    return tyro.cli(kind, prog=f"mammoray {verb}", args=argv, config=(tyro.conf.OmitArgPrefixes,), **options)


def _sections(kind: type[Any], settings: Config) -> dict[str, Any]:
    if issubclass(kind, PrepareArgs):
        return {"data": settings.data, "decode": settings.decode, "ingest": settings.ingest}
    return {"settings": settings}


def _resumed(folder: Path) -> TuneArgs:
    """The arguments that a search was begun with."""
    from mammoray import marker

    held = marker.read(folder)
    if held is None:
        remedy = "Give the --outdir of a search."
        raise ConfigError("--resume", "the folder of a search", f"{folder}, which holds none", remedy)
    return TuneArgs(
        dicom_root=held["dicom_root"],
        csv=held["csv"],
        outdir=folder,
        space=str(folder / held["space"]),
        settings=plain.load_toml(folder / "config.toml"),
        tune=plain.from_dict(TuneConfig, held["tune"]),
        scale=plain.from_dict(Scale, held["scale"]),
    )


def _value(argv: list[str], flag: str) -> str | None:
    """What stands behind a flag."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def main(argv: list[str] | None = None) -> int:
    """Run a verb; the exit status is its own, 0 where it has none, and 2 for an error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        print(f"error: verb: expected one of {', '.join(VERBS)}, found {verb!r}. See mammoray --help.", file=sys.stderr)
        return 2
    if rest[:1] == ["--"]:  # The form "mammography VERB -- FLAGS" of the system that this one replaces.
        rest = rest[1:]
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own advice against its warning on CPU.
    try:
        return VERBS[verb][1](parse(verb, rest)) or 0
    except InterruptedRunError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM  # As a shell says it.
    except (MammorayError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:  # Python's own status for it is 1, which says of an audit that the data are not fit.
        traceback.print_exc()
        return 2


if __name__ == "__main__":
    sys.exit(main())
