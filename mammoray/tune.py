"""A search: Ray Tune runs trials of :func:`mammoray.train.fit`, Optuna says which, and the study's storage remembers.

The driver reads the table, splits, and decodes what the trials need; each trial trains on rows of the common cache.
Patients of the test set are no part of those rows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import FrozenTrial
from ray import tune

from mammoray import (
    cache,
    cluster,
    ingest,
    marker,
    nodes,
    pipeline,
    plain,
    prepare,
    results,
    rooms,
    split,
    storage,
    train,
)
from mammoray import population as populations
from mammoray import space as spaces
from mammoray import study as studies
from mammoray.config import Config, DecodeConfig, SplitConfig, TuneConfig
from mammoray.draws import Space
from mammoray.errors import ConfigError, InterruptedRunError
from mammoray.mirror import Mirror, mirrored, place
from mammoray.pipeline import Say, Source
from mammoray.population import Population
from mammoray.scale import Scale
from mammoray.searching import LostTrials, StudyScheduler, StudySearch, Trials
from mammoray.trial import SETTINGS, Job, Trial

_AT_ONCE_ON_CPUS = 4
_AGAIN = "The same command, or mammoray tune --resume, goes on from there."


def run(
    source: Source, space: str, config: Config, search: TuneConfig, scale: Scale, say: Say = print
) -> dict[str, Any]:
    """Search, or go on with a search that was interrupted; then judge, if asked to, the best settings on the test set.

    Parameters
    ----------
    source : Source
        Its folder gets ``trials/``, ``study.journal``, ``trials.parquet``, ``best.toml``, ``study.html`` and, with
        ``retrain_best``, ``best/``.
    space : str
        As of :func:`mammoray.space.load`.
    config : Config
        Of what is not drawn.

    Returns
    -------
    dict
        As of :func:`mammoray.results.facts`.

    Raises
    ------
    ConfigError, StudyError, RunFolderError, ClusterError
        Before anything is run.
    InterruptedRunError
        The search was told to stop, by SIGTERM.
    """
    outdir, search = source.outdir.absolute(), studies.absolute(search)
    with mirrored(outdir, place(outdir, scale.storage), marker.NAME, "/checkpoints/") as copy:
        return _run(source, space, prepare.shared(config, scale), search, scale, say, copy)


def _run(
    source: Source, space: str, config: Config, search: TuneConfig, scale: Scale, say: Say, copy: Mirror
) -> dict[str, Any]:
    draw = spaces.load(space, config)
    points, parameters = spaces.points(search.points), spaces.parameters(draw)
    spaces.require_points(search.points, points, draw, config)
    if marker.read(source.outdir) is None:
        studies.require_earlier(search, config, parameters)
    data, parts, _ = pipeline.read(source, config, say)
    if search.retrain_best and not (parts.rows["fold"] == "test").any():
        remedy = "Choose --folds, --test-share or --test-file, or leave it out."
        raise ConfigError("--retrain-best", "test patients, to judge the best model on", "none", remedy)
    text = spaces.text(space)
    files = cache.file_keys(pipeline.labelled(data), data.root)
    if search.scheduler == "pbt":
        populations.check(draw, config, populations.shape(search, config), len(points) + search.default_first)
    wanted = _wanted(search, config)
    identity = plain.digest(
        pipeline.what_counts(config), text, _what_counts(search, points), parts.digest, sorted(files)
    )
    outdir = source.outdir
    name = marker.search(outdir)
    if search.study_storage:
        studies.require_own(search.study_storage, search, name)
    marker.take(source, space, config, search, scale, identity, name)
    copy.push((marker.NAME,))
    study = studies.open_study(search.study_storage or str(outdir / studies.JOURNAL), search, config, name)
    studies.require_same(study.get_trials(deepcopy=False), parameters, f"the study {search.study_name} in its storage")
    with cluster.connect(scale.address):
        nodes.require_seen({"--outdir": copy.copy or outdir})
        at_once, own_scale = resources(search, scale)
        own_scale = plain.replace(own_scale, storage=copy.copy and storage.join(copy.copy, results.TRIALS))
        sizes = _RowsBySize(source, config, search, data, parts, copy, say)
        left = _prepare_study(study, draw, points, search, config, say)
        say(_plan(study, left, wanted, at_once, own_scale, search))
        population = _population(study, search, config)
        begin = _Begin(draw, config, copy, parts.digest, search, own_scale, sizes, population)
        try:
            _search(study, search, config, begin, at_once, left, copy, say)
        finally:  # A search that is interrupted can be looked at, too.
            copy.fetch(results.TRIALS)
            facts = results.facts(study, search, config, parts.digest)
            facts["test"] = results.retrained(outdir, facts["best"], config)
            results.write(copy, study, search, config, facts)
        if search.retrain_best and facts["best"] is not None:
            own = plain.replace(scale, storage=copy.copy)
            facts["test"] = results.retrain(source, facts["best"], config, own, say, copy)
            results.write(copy, study, search, config, facts)
    return facts


def _what_counts(search: TuneConfig, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings that decide which search it is; more trials, or a retraining in the end, are no other search."""
    settings = plain.to_dict(search)
    for name in ("num_trials", "trials_at_once", "retrain_best"):
        if name != "num_trials" or search.scheduler != "pbt":  # It decides how large a population is.
            settings.pop(name)
    return {**settings, "points": points} if points else settings


def _wanted(search: TuneConfig, config: Config) -> int:
    """How many trials the search has in all."""
    return populations.shape(search, config).trials if search.scheduler == "pbt" else search.num_trials


def _population(study: optuna.Study, search: TuneConfig, config: Config) -> Population | None:
    if search.scheduler != "pbt":
        return None
    return Population(study, populations.shape(search, config), config.seed)


# The cluster --------------------------------------------------------------------------------------------------------


def resources(search: TuneConfig, scale: Scale) -> tuple[int, Scale]:
    """How many trials run side by side, and the resources of each.

    Raises
    ------
    ClusterError
        The cluster cannot run even one, or not as many as asked for: Ray itself would wait for ever.
    """
    use_gpu = bool(train.plan(scale).use_gpu)
    found = rooms.nodes(scale.gpus_per_worker if use_gpu else 0.0)
    most = None if use_gpu or scale.cpus_per_worker else _AT_ONCE_ON_CPUS
    at_once, share = rooms.side_by_side(found, scale, search.trials_at_once, most)
    return at_once, plain.replace(scale, cpus_per_worker=share, address=None)


def _plan(study: optuna.Study, left: int, wanted: int, at_once: int, scale: Scale, search: TuneConfig) -> str:
    done = len([t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and not studies.is_foreign(t)])
    have = ray.cluster_resources()
    return (
        f"search: {left} of {wanted} trials to run ({done} are finished), {at_once} at once, each with "
        f"{_each(scale, bool(train.plan(scale).use_gpu))}; the cluster has {have.get('CPU', 0.0):g} CPUs and "
        f"{have.get('GPU', 0.0):g} GPUs; sampler {search.search}, scheduler {search.scheduler}"
    )


def _each(scale: Scale, use_gpu: bool) -> str:
    """The workers of a trial, in words.

    Examples
    --------
    >>> _each(Scale(num_workers=1, cpus_per_worker=4), False)
    '1 CPU worker of 4 CPUs'
    >>> _each(Scale(num_workers=1, cpus_per_worker=2, gpus_per_worker=0.5), True)
    '1 GPU worker of 2 CPUs and 0.5 GPU'
    >>> _each(Scale(num_workers=3, min_workers=2, cpus_per_worker=1, gpus_per_worker=2), True)
    '2 to 3 GPU workers of 1 CPUs and 2 GPUs'
    """
    many = f"{scale.min_workers} to {scale.num_workers}" if scale.min_workers else str(scale.num_workers)
    kind = f"{'GPU' if use_gpu else 'CPU'} worker{'s' if scale.num_workers > 1 else ''}"
    gpus = f" and {scale.gpus_per_worker:g} GPU{'s' if scale.gpus_per_worker > 1 else ''}" if use_gpu else ""
    return f"{many} {kind} of {scale.cpus_per_worker:g} CPUs{gpus}"


# The trials ---------------------------------------------------------------------------------------------------------


class _RowsBySize:
    """Decoded rows of training and validation for each size of images, decoded when first asked for."""

    def __init__(
        self, source: Source, config: Config, search: TuneConfig, data: Any, parts: split.Split, copy: Mirror, say: Say
    ) -> None:
        self.source, self.config, self.search, self.data, self.say = source, config, search, data, say
        self.parts, self.copy = parts, copy
        self.files: dict[str, Path] = {}

    def rows(self, decode: DecodeConfig) -> Path:
        """A file of the rows, see :class:`mammoray.trial.Job`."""
        name = plain.digest(decode)
        if name not in self.files:
            self.files[name] = self._decode(decode, self.copy.folder / f"rows-{name}.parquet")
        return self.files[name]

    def _decode(self, decode: DecodeConfig, file: Path) -> Path:
        config = plain.replace(self.config, decode=decode)
        tested = set(self.parts.rows.loc[self.parts.rows["fold"] == "test", "image_id"])
        wanted = pipeline.labelled(self.data)
        wanted = wanted[~wanted["image_id"].isin(tested)]
        decoded = prepare.decode(wanted, self.data.root, self.source.outdir, config, self.say)
        ingest.check_enough(decoded, config.ingest)
        rows = pipeline.in_folds(decoded.rows, self.parts, config)
        split.check(rows)
        for fold in range(self.search.folds_per_trial if self.search.folds_per_trial > 1 else 0):
            folds = SplitConfig(folds=self.search.folds_per_trial, fold=fold)
            own = split.make(rows, folds, config.classes, config.seed).rows.set_index("image_id")["fold"]
            rows[f"fold-{fold}"] = rows["image_id"].map(own).map({"test": "val", "val": "train", "train": "train"})
        partial = file.with_suffix(".partial")
        rows.to_parquet(partial, index=False)
        partial.replace(file)
        self.copy.push((file.name,))
        return file


@dataclass(frozen=True, slots=True)
class _Begin:
    """Draws a trial's settings and writes them down; reads them where a driver that was lost has written them."""

    draw: Space
    config: Config
    copy: Mirror
    split_digest: str
    search: TuneConfig
    scale: Scale
    sizes: _RowsBySize
    population: Population | None

    def __call__(self, trial: optuna.Trial) -> Job:
        """What the trial's process is to do."""
        file = results.trial_folder(self.copy.folder, trial.number) / SETTINGS
        config = plain.load_toml(file) if file.exists() else self._new(trial, file)
        return self.job(trial, config)

    def _new(self, trial: optuna.Trial, file: Path) -> Config:
        """Written down before anything that takes its time: from then on it is gone on with, and not drawn anew."""
        config = spaces.apply(self.config, spaces.values(self.draw, trial))
        if self.population is not None:
            parent = self._parent(trial)
            own = plain.load_toml(self.copy.folder / parent / SETTINGS) if parent else None
            config = self.population.settings(trial, config, own)
        trial.set_user_attr("gflops", results.gflops(config))
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{SETTINGS}.partial")
        partial.write_text(plain.to_toml(config), encoding="utf-8")
        partial.replace(file)
        # The study first: a folder of a trial that it does not know would be taken for another one's.
        written = file.relative_to(self.copy.folder).as_posix()
        self.copy.push([name for name in (studies.JOURNAL, written) if (self.copy.folder / name).exists()])
        return config

    def _parent(self, trial: optuna.Trial | FrozenTrial) -> Path | None:
        """The folder of the trial that this one goes on from, below the search's."""
        parent = trial.user_attrs.get(populations.PARENT)
        return None if parent is None else results.trial_folder(Path(), parent)

    def job(self, trial: optuna.Trial | FrozenTrial, config: Config) -> Job:
        """Of a trial with these settings."""
        shared, parent = self.copy.copy or str(self.copy.folder), self._parent(trial)
        return Job(
            number=trial.number,
            folder=results.trial_folder(self.copy.folder, trial.number),
            rows=storage.join(shared, self.sizes.rows(config.decode).name),
            folds=self.search.folds_per_trial,
            split_digest=self.split_digest,
            scale=self.scale,
            start=None if parent is None else storage.join(shared, parent.as_posix()),
            after=trial.user_attrs.get(populations.GENERATION, 0) * self.search.grace,
        )


def _prepare_study(
    study: optuna.Study,
    draw: Space,
    points: list[dict[str, Any]],
    search: TuneConfig,
    config: Config,
    say: Say,
) -> int:
    """Give a new study what is known beforehand; returns how many trials there are still to run."""
    if not studies.is_begun(study):
        for place in search.warm_start:
            say(f"search: {studies.adopt(study, place)} finished trials of {place} are known to the sampler")
        known, missing = spaces.defaults(draw, config)
        if search.default_first and missing:
            say(f"search: the space lacks the settings' own {', '.join(missing)}; trial 0 draws another")
        studies.begin(study, points, known if search.default_first else None)
    return max(0, _wanted(search, config) - len(studies.finished(study)))


def _search(
    study: optuna.Study,
    search: TuneConfig,
    config: Config,
    begin: _Begin,
    at_once: int,
    left: int,
    copy: Mirror,
    say: Say,
) -> None:
    """Run the trials that are left, those that were interrupted first."""
    outdir = copy.folder
    begun = studies.interrupted(study, lambda number: (results.trial_folder(outdir, number) / SETTINGS).exists())
    for frozen in begun:
        say(f"search: going on with trial {frozen.number}")
    if not left and not begun:
        return
    trials = Trials(study, search, config, begin, begun, max(0, left - len(begun)), say, begin.population)
    # Each trial has trackers of its own, and what there is to say is said here.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    # The message of a trial that fails has no value, and may be its first.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    folder = storage.join(copy.copy or str(outdir), "ray")
    system, path = storage.filesystem(folder, "--storage")
    tuner = tune.Tuner(
        Trial,
        tune_config=tune.TuneConfig(
            search_alg=StudySearch(trials),
            scheduler=StudyScheduler(trials),
            num_samples=max(left, len(begun)),
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['job'].number}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['job'].number}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=system,
            verbose=0,
            callbacks=[LostTrials(say)],
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        ),
    )
    with rooms.swept():
        tuner.fit()
    storage.remove_quietly(folder)
    if trials.failed is not None:
        raise trials.failed
    if trials.open or trials.left:  # Ray Tune takes an interrupt from the keyboard itself, and ends in peace.
        raise InterruptedRunError("the run", "to be left alone", "an interrupt", _AGAIN)
