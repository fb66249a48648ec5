"""Every setting, as frozen dataclasses.

The command line is made from these classes: a field's name is its flag, its type and default are the help's, and the
text under it is the help. A field name is therefore unique over all sections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mammoray.checks import require, require_choices, require_no_secret, require_range
from mammoray.errors import ConfigError
from mammoray.recipe import (
    AugmentConfig,
    CollapseConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    SpeedConfig,
    TrainConfig,
)

Classes = Literal["density", "binary", "cancer"]
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "density": ("A", "B", "C", "D"),
    "binary": ("AB", "CD"),
    "cancer": ("negative", "cancer"),
}
"""What the model's outputs stand for."""
LABELS: dict[str, tuple[str, ...]] = {**CLASS_NAMES, "binary": CLASS_NAMES["density"]}
"""The labels of images, in the order of the classes: density and binary have the same, and so one split."""
NOTICE = "Research software, not a medical device: not for diagnosis."


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How the table and the folder tree are read."""

    dataset: Literal["auto", "rsna", "study", "irma", "mamografias", "patches", "folders", "files", "csv"] = "auto"
    """Layout of table and tree. auto: found from both, with the evidence shown. rsna: train.csv +
    train_images/<patient_id>/<image_id>.dcm. study: metadata.csv + patient_<id>/study_<id>/series_<id>/*.dcm. irma:
    classificacao.csv + archive/<AccessionNumber>/*.dcm. mamografias: folders of images, a featureS.txt in each.
    patches: images and one featureS.txt in one folder. folders: a folder of images per class. csv: any table with a
    column of image paths. files: any images without labels, for predict and embed; a folder of them is a patient."""
    path_column: str | None = None
    """csv layout: the column of the image paths, from --dicom-root. Default: image_path, path, file or filename."""
    label_column: str | None = None
    """Column of the labels. Default: the layout's own; density, density_label, label or class in a csv layout."""
    group_column: str | None = None
    """Column of what may not be divided by a split. Default: the patient, as the layout names it, or the coarsest key
    that is known."""
    laterality_column: str | None = None
    """Column of the side, L or R. Default: laterality."""
    view_column: str | None = None
    """Column of the view, such as CC or MLO. Default: view."""
    site_column: str | None = None
    """Column of the site, which the split balances. Default: site_id."""
    machine_column: str | None = None
    """Column of the machine, which the split balances. Default: machine_id."""
    exam_images: Literal["all", "first"] = "all"
    """irma layout. all: every image of an exam. first: only the first by name, as older systems did."""
    class_5: Literal["exclude", "keep"] = "exclude"
    """irma layout: exams of class 5, which has no density. exclude: left out and counted. keep: used as images without
    a label, for embedding and prediction."""
    links: Literal["inside", "follow"] = "inside"
    """Links to files. inside: followed when they stay below --dicom-root, listed when they lead out of it. follow:
    always followed."""
    quarantine: Path | None = None
    """A CSV with a column path of images to leave out. The audit, which leaves none out, writes it: every image with an
    error."""

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """Which patients are for training, validation and test."""

    folds: int = 5
    """Number of equal parts that the patients are dealt into, at least 3; one part tests, one validates, the rest
    train."""
    fold: int = 0
    """The part that tests, 0 to folds - 1; the next one validates. Run all of them for a K-fold cross-validation. With
    --test-file, the part that validates."""
    val_share: float | None = None
    """Hold-out instead of folds: the share of the patients that validates, 0.001 to below 1. With --test-file, a share
    of the other patients."""
    test_share: float | None = None
    """With --val-share, the share of the patients that tests; 0, the default, for no test set."""
    test_file: Path | None = None
    """A test set that is fixed once: a CSV with the column patient_id, of which the rows whose fold is test count where
    it has a column fold, as a split.csv has. All other patients train or validate."""
    test_patients: Literal["test", "leave_out"] = "test"
    """What becomes of the patients of --test-file. leave_out: they stay locked away, and the others are dealt into
    training, validation and test; a cross-validation always does so."""
    split_file: Path | None = None
    """A split.csv of an earlier run to use instead of a new split: columns image_id, patient_id, fold."""

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.folds >= 3, "folds", "an integer of at least 3 (train, validation and test)", self.folds)
        require(0 <= self.fold < self.folds, "fold", f"0 to {self.folds - 1}", self.fold)
        val, test = self.val_share, self.test_share or 0.0
        require(val is None or 0.001 <= val < 1, "val_share", "a share from 0.001 to below 1", val)
        require(test == 0 or 0.001 <= test < 1, "test_share", "0, or a share from 0.001 to below 1", test)
        require(test + (val or 0.0) <= 0.999, "test_share", "room for training beside the other shares", test)
        others = {
            "split_file": ("val_share", "test_share", "test_file"),
            "test_file": ("test_share",),
            "val_share": ("fold",),
        }
        for name in [n for n in others if getattr(self, n) is not None]:
            for other in others[name]:
                ok = getattr(self, other) in (None, 0)
                require(ok, other, f"no such setting beside --{name.replace('_', '-')}", getattr(self, other))
        require(not test or val is not None, "test_share", "--val-share beside it", test)
        ok = self.test_patients == "test" or self.test_file is not None
        require(ok, "test_patients", "--test-file beside it", self.test_patients)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """What becomes of one DICOM: these settings, the file and the decoder's version give the pixels."""

    height: int = 512
    """Rows of the decoded image, in pixels."""
    width: int = 384
    """Columns of the decoded image, in pixels."""
    frame: Literal["only", "first"] = "only"
    """only: a file with several frames is an error. first: its first frame is taken."""
    window: Literal["voi", "percentile", "none"] = "voi"
    """Grey scale. voi: the header's first VOI LUT or window (full range where it has none). percentile: the 1st to
    99.5th percentile of the breast's pixels. none: the whole range of the stored bits, linear."""
    crop: Literal["breast", "none"] = "breast"
    """breast: cut to the bounding box of the breast, the thickest bright piece of the image. none: whole image."""
    background: Literal["black", "keep"] = "black"
    """With --crop breast: make all that is not breast black, labels and markers inside the box too, or keep it."""
    orient: Literal["content", "laterality", "none"] = "content"
    """Mirror images so that the chest wall is at the left. content: where the breast is tallest at the right.
    laterality: where the header says R. none: never."""
    resize: Literal["pad", "stretch"] = "pad"
    """pad: keep the aspect ratio and fill with black. stretch: fill the frame, as many older pipelines do."""
    detail: float = 1.0
    """Samples per output pixel, along a side, that the decoded wavelet level must have at least, 0.5 to 1. 0.75 halves
    the time of JPEG 2000 files whose next level falls just short of the size, and is a little softer there."""
    bit_planes: Literal["all", "visible"] = "all"
    """all: every lossless encoding of an image gives the same pixels. visible: leave out what JPEG 2000 codes below a
    grey level of each wavelet coefficient, most of which averages out: up to 1.6 times as fast, and some pixels are off
    by a grey level."""
    depth: Literal[8, 16] = 8
    """Bits of a decoded pixel. 8 is what a display window was made for and halves the cache; 16 keeps fine contrast."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("height", "width"):
            require(32 <= getattr(self, name) <= 8192, name, "32 to 8192 pixels", getattr(self, name))
        require(0.5 <= self.detail <= 1, "detail", "0.5 to 1", self.detail)


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """The decoded cache."""

    cache: str | None = None
    """Folder of the decoded cache, shared by all runs over the same files, or a URI of storage that pyarrow reaches
    (s3://bucket/prefix, gs://, abfs://, hdfs://), whose credentials are those of the environment; on a cluster all
    nodes must see it. Default: mammoray-cache beside the output folder."""
    shard_images: int = 64
    """Images per cache file. A killed run decodes at most the shards in flight, one a core, again."""
    limit_seconds: float = 120.0
    """Seconds that one file may take to be read and decoded; a file that takes longer is listed, and tried again by the
    next run. A storage that does not answer is waited for within them, for up to 90."""
    min_decoded: float = 0.95
    """The run stops when a smaller share of the files than this can be decoded, 0 to 1."""

    def __post_init__(self) -> None:
        if self.cache is not None:
            require_no_secret(self.cache, "--cache")
        require(self.shard_images >= 1, "shard_images", "at least 1 image", self.shard_images)
        require(0 < self.limit_seconds < math.inf, "limit_seconds", "above 0", self.limit_seconds)
        require(0 <= self.min_decoded <= 1, "min_decoded", "a share from 0 to 1", self.min_decoded)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """How closely the files of a data set are looked at."""

    pixels: bool = False
    """Decode every image too: finds images without content, values beyond Bits Stored, damage, and the same picture
    under two names. Takes about as long as decoding the data set; without it only the heads of the files are read."""
    min_readable: float = 0.95
    """The data set is not fit when a smaller share of its images than this can be read, 0 to 1."""
    limit_seconds: float = 120.0
    """With --pixels: seconds that one file may take. A storage that does not answer is waited for within them."""

    def __post_init__(self) -> None:
        require(0 <= self.min_readable <= 1, "min_readable", "a share from 0 to 1", self.min_readable)
        require(0 < self.limit_seconds < math.inf, "limit_seconds", "above 0", self.limit_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All that decides what a run computes. Where it runs is no part of it and changes nothing."""

    classes: Classes = "density"
    """density: the four BI-RADS classes A, B, C, D. binary: A and B against C and D. cancer: the column cancer of the
    rsna layout, 0 or 1 per image (or --label-column)."""
    seed: int = 0
    """Seed of the split, the order of the rows, the augmentation and the initial weights."""
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.seed >= 0, "seed", "0 or more", self.seed)
        twice = self.loss.class_weights != "none" and self.sample.sampler != "natural"
        if twice and not self.loss.double_correction:
            raise ConfigError(
                f"--class-weights {self.loss.class_weights} with --sampler {self.sample.sampler}",
                "one correction of the class imbalance",
                "two, which correct it twice",
                "Use either of them, or --double-correction if that is meant.",
            )
        if self.model.auxiliary and self.augment.augment and self.augment.mixup:
            raise ConfigError(
                f"--auxiliary {' '.join(self.model.auxiliary)} with --mixup {self.augment.mixup:g}",
                "images of one view, side and age",
                "mixtures of two",
                "Leave either out.",
            )
        if "laterality" in self.model.auxiliary and self.decode.orient != "none":
            raise ConfigError(
                f"--auxiliary laterality with --orient {self.decode.orient}",
                "images that show their side",
                "images that are all turned to one side",
                "Use --orient none, or leave laterality out.",
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return CLASS_NAMES[self.classes]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """A search over settings."""

    num_trials: int = 20
    """Trials of the search in all, those of an interrupted one that is gone on with included."""
    search: Literal["tpe", "random", "cmaes", "gp"] = "tpe"
    """Which settings to try next. tpe: by densities of good and bad trials, for most searches. gp: a Gaussian process,
    for a few dozen trials of few settings. cmaes: for hundreds of trials of many numbers. random: none of it."""
    scheduler: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    """Which trials to end early. asha: after --grace epochs, and each --reduction times as many, all but the best
    1/--reduction so far. hyperband: brackets of asha with different graces. median: those below the median of the
    others at the same epoch. pbt: a population that trains in generations of --grace epochs, in which the worst go on
    from the best with changed numbers; --num-trials counts members times generations. none: none."""
    grace: int = 2
    """Epochs, or with --folds-per-trial folds, that every trial may run; a few times what networks need until they
    predict more than one class."""
    reduction: int = 3
    """Of --scheduler asha and hyperband: one trial of so many goes on at each rung."""
    prune_collapsed: bool = True
    """End a trial whose network has collapsed in --grace epochs in a row (--collapse-after and the thresholds beside
    it)."""
    objectives: tuple[Literal["score", "gflops", "seconds"], ...] = ("score",)
    """What is searched for. score: the monitored validation metric at its best epoch (--monitor, --monitor-level).
    gflops: the cost of predicting one image, counted. seconds: of a training epoch, measured. Beside several of them
    no trial is ended early by its scores."""
    folds_per_trial: int = 1
    """Train each trial on so many parts of the patients in turn, those of the test set excluded, and take the mean;
    trials are then pruned on the mean so far. 1: one part, that of --fold, validates."""
    trials_at_once: int = 0
    """Trials that run side by side; 0 works it out from the cluster: as many as it has room for, on CPUs at most 4."""
    default_first: bool = True
    """Make the settings of the command line themselves the first trial, which all others have to beat."""
    points: Path | None = None
    """A TOML file of known good points to try first: [[point]] tables of settings by dotted name."""
    warm_start: tuple[str, ...] = ()
    """Journal files, or database URLs, of earlier studies (#NAME behind them), whose finished trials the sampler is
    told."""
    study_storage: str | None = None
    """URL of a database for the study, such as sqlite:////shared/study.db or that of a server; its password belongs in
    the environment of the database's driver (PGPASSWORD). Default: study.journal in the output folder."""
    study_name: str = "mammoray"
    """Name of the study in its storage."""
    retrain_best: bool = False
    """In the end, train with the best settings on training and validation patients together, and judge that model once
    on the test patients, which the search has not seen."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("num_trials", "grace", "folds_per_trial"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        require(self.folds_per_trial != 2, "folds_per_trial", "1, or 3 or more", self.folds_per_trial)
        require(self.reduction >= 2, "reduction", "2 or more", self.reduction)
        require_range(self, "trials_at_once", 0)
        once = len(set(self.objectives)) == len(self.objectives)
        require("score" in self.objectives and once, "objectives", "score, each at most once", self.objectives)
        for flag, places in (("--study-storage", (self.study_storage or "",)), ("--warm-start", self.warm_start)):
            for place in places:
                require_no_secret(place, flag)
        ok = len(self.objectives) == 1 or self.scheduler == "none"
        require(ok, "scheduler", "none beside several --objectives", self.scheduler)
        ok = len(self.objectives) == 1 or self.search in ("tpe", "random", "gp")
        require(ok, "search", "tpe, gp or random beside several --objectives", self.search)


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthConfig:
    """A synthetic data set."""

    patients: int = 60
    """Patients; each has the four standard views, some a view more."""
    layout: Literal["rsna", "irma", "study", "mamografias", "patches", "folders"] = "rsna"
    """On-disk layout.
    rsna: train.csv + train_images/<patient_id>/<image_id>.dcm, classes A to D.
    irma: classificacao.csv + archive/<AccessionNumber>/*.dcm, classes 1 to 4, and 5.
    study: metadata.csv + patient_<id>/study_<id>/series_<id>/*.dcm, classes 1 to 4.
    mamografias: PNG files such as DleftCC/d_left_cc (10).png, classes 0 to 3 in a featureS.txt a folder.
    patches: 128 x 128 PNG files such as p_d_left_cc(10).png, classes 0 to 3 in one featureS.txt.
    folders: PNG files in folders A, B, C and D, and nothing that tells the patient."""
    height: int = 1024
    """Rows of the written images, in pixels; real ones have 2,000 to 5,400."""
    width: int = 832
    """Columns of the written images, in pixels."""
    unlabelled: float = 0.0
    """rsna layout only: share of the patients of a second site whose density is blank, as 46 % of RSNA's rows are."""

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.patients >= 1, "patients", "at least 1", self.patients)
        require(0 <= self.unlabelled <= 1, "unlabelled", "a share from 0 to 1", self.unlabelled)
        for name in ("height", "width"):
            require(64 <= getattr(self, name) <= 8192, name, "64 to 8192 pixels", getattr(self, name))
