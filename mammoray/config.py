"""Every setting, as frozen dataclasses.

The command line is made from these classes: a field's name is its flag, its type and default are the help's, and the
text under it is the help. A field name is therefore unique over all sections.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mammoray.errors import ConfigError

Classes = Literal["density", "binary", "cancer"]
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "density": ("A", "B", "C", "D"),
    "binary": ("AB", "CD"),
    "cancer": ("negative", "cancer"),
}
"""What the model's outputs stand for."""
LABELS: dict[str, tuple[str, ...]] = {**CLASS_NAMES, "binary": CLASS_NAMES["density"]}
"""The labels of images, in the order of the classes: density and binary have the same, and so one split."""


def _require(ok: bool, name: str, expected: str, found: object) -> None:
    if not ok:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(flag, expected, repr(found), f"Change {flag}, or {name} in the config file.")


def _require_choices(section: Any) -> None:
    """Check every ``Literal`` field of ``section``: dataclasses do not, and a TOML file can hold anything."""
    for name, hint in get_type_hints(type(section)).items():
        if get_origin(hint) is Literal:
            choices, value = get_args(hint), getattr(section, name)
            ok = value in choices and not isinstance(value, bool)
            _require(ok, name, f"one of {', '.join(map(repr, choices))}", value)


def require_no_secret(uri: str, flag: str) -> None:
    """Refuse a URI with a password or a key in it: settings are written down and shown.

    Raises
    ------
    ConfigError
        Without the URI.
    """
    head, _, query = uri.partition("?")
    user = head.partition("://")[2].partition("/")[0].rpartition("@")[0]
    keys = [part.partition("=")[0] for part in query.split("&")] if "://" in head else []
    if ":" in user or any(re.search("sig|secret|token|passw|credential|access_?key", key, re.I) for key in keys):
        remedy = "Set them in the environment (such as AWS_ACCESS_KEY_ID), or give the machines a role."
        raise ConfigError(flag, "a URI without credentials", "some in it", remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How the table and the folder tree are read."""

    dataset: Literal["auto", "rsna", "study", "irma", "mamografias", "patches", "folders", "csv"] = "auto"
    """Layout of table and tree. auto: found from both, with the evidence shown. rsna: train.csv +
    train_images/<patient_id>/<image_id>.dcm. study: metadata.csv + patient_<id>/study_<id>/series_<id>/*.dcm. irma:
    classificacao.csv + archive/<AccessionNumber>/*.dcm. mamografias: folders of images, a featureS.txt in each.
    patches: images and one featureS.txt in one folder. folders: a folder of images per class. csv: any table with a
    column of image paths."""
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
        _require_choices(self)


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
        _require_choices(self)
        _require(self.folds >= 3, "folds", "an integer of at least 3 (train, validation and test)", self.folds)
        _require(0 <= self.fold < self.folds, "fold", f"0 to {self.folds - 1}", self.fold)
        val, test = self.val_share, self.test_share or 0.0
        _require(val is None or 0.001 <= val < 1, "val_share", "a share from 0.001 to below 1", val)
        _require(test == 0 or 0.001 <= test < 1, "test_share", "0, or a share from 0.001 to below 1", test)
        _require(test + (val or 0.0) <= 0.999, "test_share", "room for training beside the other shares", test)
        others = {
            "split_file": ("val_share", "test_share", "test_file"),
            "test_file": ("test_share",),
            "val_share": ("fold",),
        }
        for name in [n for n in others if getattr(self, n) is not None]:
            for other in others[name]:
                ok = getattr(self, other) in (None, 0)
                _require(ok, other, f"no such setting beside --{name.replace('_', '-')}", getattr(self, other))
        _require(not test or val is not None, "test_share", "--val-share beside it", test)
        ok = self.test_patients == "test" or self.test_file is not None
        _require(ok, "test_patients", "--test-file beside it", self.test_patients)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """In which order, and how often, training rows are drawn."""

    sampler: Literal["natural", "balanced"] = "natural"
    """natural: every row once an epoch. balanced: rows drawn with replacement so that all classes are equally
    frequent."""
    batch_size: int = 16
    """Images in one optimiser step, over all workers together; a multiple of --num-workers."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.batch_size >= 2, "batch_size", "at least 2 images", self.batch_size)


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
        _require_choices(self)
        for name in ("height", "width"):
            _require(32 <= getattr(self, name) <= 8192, name, "32 to 8192 pixels", getattr(self, name))
        _require(0.5 <= self.detail <= 1, "detail", "0.5 to 1", self.detail)


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """The decoded cache."""

    cache: str | None = None
    """Folder of the decoded cache, shared by all runs over the same files, or a URI of storage that pyarrow reaches
    (s3://bucket/prefix, gs://, abfs://, hdfs://), whose credentials are those of the environment; on a cluster all
    nodes must see it. Default: mammoray-cache beside the output folder."""
    shard_images: int = 64
    """Images per cache file. A killed run decodes at most the shards in flight, one a core, again."""
    limit_seconds: float = 60.0
    """Seconds that one file may take to be read and decoded; a file that takes longer is listed, and tried again by the
    next run."""
    min_decoded: float = 0.95
    """The run stops when a smaller share of the files than this can be decoded, 0 to 1."""

    def __post_init__(self) -> None:
        if self.cache is not None:
            require_no_secret(self.cache, "--cache")
        _require(self.shard_images >= 1, "shard_images", "at least 1 image", self.shard_images)
        _require(0 < self.limit_seconds < math.inf, "limit_seconds", "above 0", self.limit_seconds)
        _require(0 <= self.min_decoded <= 1, "min_decoded", "a share from 0 to 1", self.min_decoded)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """How closely the files of a data set are looked at."""

    pixels: bool = False
    """Decode every image too: finds images without content, values beyond Bits Stored, damage, and the same picture
    under two names. Takes about as long as decoding the data set; without it only the heads of the files are read."""
    min_readable: float = 0.95
    """The data set is not fit when a smaller share of its images than this can be read, 0 to 1."""
    limit_seconds: float = 60.0
    """With --pixels: seconds that one file may take."""

    def __post_init__(self) -> None:
        _require(0 <= self.min_readable <= 1, "min_readable", "a share from 0 to 1", self.min_readable)
        _require(0 < self.limit_seconds < math.inf, "limit_seconds", "above 0", self.limit_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network."""

    arch: str = "efficientnet_b0"
    """A timm model name, such as efficientnet_b0, resnet50 or convnext_tiny."""
    pretrained: bool = True
    """Start from timm's pretrained weights (needs a model hub within reach, or --weights)."""
    weights: Path | None = None
    """A file of weights to start from instead of the hub: .safetensors, or a torch state dict (loaded without pickle
    code). Its classifier is left out when it has another number of classes."""
    channels: Literal[1, 3] = 1
    """Input channels of the network. 1: the stem is converted, its filters summed. 3: the grey image is replicated,
    for backbones whose stem cannot be converted."""
    dropout: float = 0.2
    """Dropout before the classifier, a probability from 0 to below 1."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(0 <= self.dropout < 1, "dropout", "0 to below 1", self.dropout)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 20
    """Passes over the training rows."""
    lr: float = 3e-4
    """Peak learning rate of AdamW for the global batch; reached after the warm-up, then a cosine down to zero."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up from zero to lr."""
    label_smoothing: float = 0.0
    """Probability mass spread over the other classes, 0 to below 1."""
    class_weights: bool = False
    """Weight the loss by inverse class frequency. Not together with --sampler balanced: both correct the same
    imbalance."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    augment: bool = True
    """Mirror top to bottom, rotate, scale, shift, and vary brightness and contrast, on the device, in training only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; bf16 is autocast and wants a GPU that has it."""
    monitor: Literal["kappa", "balanced_accuracy", "auc", "loss"] = "kappa"
    """The validation metric by which the best checkpoint is chosen; loss is minimised, the others maximised."""
    max_failures: int = 3
    """How many times the worker group is started again, from the last checkpoint, after a worker or a node is lost."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _require(0 < self.lr < math.inf, "lr", "a number above 0", self.lr)
        _require(0 <= self.label_smoothing < 1, "label_smoothing", "0 to below 1", self.label_smoothing)
        for name in ("weight_decay", "warmup_epochs", "clip_grad", "max_failures"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """The metrics."""

    bootstrap: int = 1000
    """Resamples of patients for the 95 % intervals; 0 leaves the intervals out."""
    examples: int = 24
    """Test images shown in the report, half of them wrong ones where there are as many."""

    def __post_init__(self) -> None:
        _require(self.bootstrap >= 0, "bootstrap", "0 or more", self.bootstrap)
        _require(self.examples >= 0, "examples", "0 or more", self.examples)


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
    sample: SampleConfig = field(default_factory=SampleConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        if self.train.class_weights and self.sample.sampler == "balanced":
            raise ConfigError(
                "--class-weights with --sampler balanced",
                "one correction of the class imbalance",
                "two, which correct it twice",
                "Use either of them.",
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return CLASS_NAMES[self.classes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Where a run runs: a laptop and a cluster differ in nothing else."""

    num_workers: int = 1
    """Ray Train workers (DDP processes), one a GPU where there are GPUs."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU per worker. auto: yes when the cluster has at least num_workers of them."""
    cpus_per_worker: float = 0.0
    """CPUs reserved for each worker; 0 works it out so that Ray Data keeps at least one CPU to read and decode with."""
    address: str | None = None
    """A Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: the cluster of the job this runs in, or one begun on
    this machine by 'ray start', else a new local one."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.num_workers >= 1, "num_workers", "at least 1", self.num_workers)
        _require(self.cpus_per_worker >= 0, "cpus_per_worker", "0 or more", self.cpus_per_worker)


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
        _require_choices(self)
        _require(self.patients >= 1, "patients", "at least 1", self.patients)
        _require(0 <= self.unlabelled <= 1, "unlabelled", "a share from 0 to 1", self.unlabelled)
        for name in ("height", "width"):
            _require(64 <= getattr(self, name) <= 8192, name, "64 to 8192 pixels", getattr(self, name))
