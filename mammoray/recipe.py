"""The settings of the learning itself, as frozen dataclasses: network, order of the rows, loss, optimiser, limits.

As in :mod:`mammoray.config`, a field's name is its flag, and the text under it is the help. ``docs/training.md`` says
when to use which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mammoray.checks import require, require_choices, require_range

Auxiliary = Literal["view", "laterality", "age"]
Balance = Literal["balanced", "sqrt", "effective"]
Seen = Literal["refuse", "leave_out", "allow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """In which order, and how often, training rows are drawn."""

    sampler: Literal["natural", "balanced", "sqrt", "effective"] = "natural"
    """natural: every row once an epoch. The others draw rows of rare classes more often, and of frequent ones less:
    balanced by (1 / n)^alpha, n being the size of the class (--alpha; 1 makes all classes equally frequent), sqrt by
    (1 / n)^0.5, effective by the effective number of samples (--beta)."""
    alpha: float = 1.0
    """Of --sampler balanced: 0 is natural, 1 makes all classes equally frequent; in between is between."""
    beta: float = 0.999
    """Of --sampler effective and --class-weights effective: 0 is natural, towards 1 becomes balanced (Cui et al.
    2019)."""
    sample_by: Literal["image", "patient"] = "image"
    """What counts alike. patient: one with 14 images is drawn as often as one with 4, and the sizes of the classes are
    counted in patients."""
    batch_size: int = 16
    """Images in one optimiser step, over all workers together; a multiple of --num-workers times --accumulate."""

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.batch_size >= 2, "batch_size", "at least 2 images", self.batch_size)
        require(0 <= self.alpha <= 2, "alpha", "0 to 2", self.alpha)
        require_range(self, "beta", 0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What is done to training images on the device, in this order; every amount is drawn anew for each image."""

    augment: bool = True
    """Whether training images are varied at all."""
    flip_horizontal: float = 0.0
    """Probability of a mirror left to right. For --orient none: otherwise all chest walls are at the left. Mirrored
    images change sides for --auxiliary laterality."""
    flip_vertical: float = 0.5
    """Probability of a mirror top to bottom."""
    rotation: float = 10.0
    """Largest rotation to either side, in degrees."""
    zoom: float = 0.1
    """Largest change of the scale, as a share: 0.1 is 0.9 to 1.1."""
    shift: float = 0.05
    """Largest shift along each side, as a share of the frame."""
    contrast: float = 0.15
    """Largest change of the contrast, as a share: 0.15 is 0.85 to 1.15 around the mean of the breast. This and the
    next three within the breast: the background stays black."""
    brightness: float = 0.05
    """Largest shift of the brightness, as a share of the full range."""
    gamma: float = 0.0
    """Largest logarithm of the exponent: 0.2 is exponents from exp(-0.2) to exp(0.2)."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, as a share of the full range."""
    cutout: float = 0.0
    """Side of a black square at a random place, as a share of the frame's shorter side."""
    mixup: float = 0.0
    """Mix each image with its neighbour in the batch, and their labels alike, by shares from Beta(mixup, mixup) (Zhang
    et al. 2018); 0 mixes nothing. --batch-size must be even."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("flip_horizontal", "flip_vertical"):
            require(0 <= getattr(self, name) <= 1, name, "a probability from 0 to 1", getattr(self, name))
        require_range(self, "rotation", 0, 180)
        require_range(self, "zoom shift contrast brightness gamma noise cutout", 0, 1)
        require_range(self, "mixup", 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network."""

    arch: str = "efficientnet_b0"
    """A timm model name, such as efficientnet_b0, resnet50 or convnext_tiny."""
    pretrained: bool = True
    """Start from timm's pretrained weights (needs a model hub within reach, or --weights)."""
    weights: Path | None = None
    """A file of weights to start from instead of the hub: .safetensors, or a torch state dict (loaded without pickle
    code), or the folder of a checkpoint of mammoray. Its classifier is left out when it has another number of
    outputs."""
    channels: Literal[1, 3] = 1
    """Input channels of the network. 1: the stem is converted, its filters summed. 3: the grey image is replicated,
    for backbones whose stem cannot be converted."""
    dropout: float = 0.2
    """Dropout before the classifier, a probability from 0 to below 1."""
    drop_path: float = 0.0
    """Stochastic depth: the probability that the last residual block of an image is left out, from 0 to below 1; less
    for those before it."""
    auxiliary: tuple[Auxiliary, ...] = ()
    """What the network learns beside the density, by a head each: view (CC, MLO, other), laterality, age. The table
    must have the column; blank cells do not count."""

    def __post_init__(self) -> None:
        require_choices(self)
        require_range(self, "dropout drop_path", 0, 1)
        require(len(set(self.auxiliary)) == len(self.auxiliary), "auxiliary", "each at most once", self.auxiliary)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What is minimised."""

    loss: Literal["cross_entropy", "focal", "corn", "coral"] = "cross_entropy"
    """cross_entropy. focal: images that are right already count less (Lin et al. 2017). corn and coral know that the
    classes are ordered: corn by conditional probabilities of "denser than" (Shi et al. 2021), coral by one score and a
    threshold between each two classes (Cao et al. 2020)."""
    label_smoothing: float = 0.0
    """Probability mass spread over all classes, 0 to below 1."""
    soft_labels: float = 0.0
    """Spread the label over its neighbours: the standard deviation of a Gaussian over the classes' numbers; 0.5 leaves
    79 % on B or C, and 88 % on A or D. 0 spreads nothing. For ordered classes, whose borders readers draw
    differently."""
    focal_gamma: float = 2.0
    """Of --loss focal: 0 is cross-entropy."""
    class_weights: Literal["none", "balanced", "sqrt", "effective"] = "none"
    """Weight each image by its class: balanced by 1 / n, sqrt by (1 / n)^0.5, effective by the effective number of
    samples (--beta)."""
    double_correction: bool = False
    """Allow --class-weights together with a --sampler other than natural, which correct the same imbalance twice."""
    auxiliary_weight: float = 0.2
    """Weight of each auxiliary loss beside the main one."""

    def __post_init__(self) -> None:
        require_choices(self)
        require_range(self, "label_smoothing", 0, 1)
        require_range(self, "soft_labels focal_gamma auxiliary_weight", 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimiser, the learning rate over time, and which weights learn when."""

    optimizer: Literal["adamw", "sgd", "nadamw", "lamb", "lion"] = "adamw"
    """sgd is with Nesterov momentum."""
    lr: float = 3e-4
    """Peak learning rate, for the global batch."""
    head_lr: float | None = None
    """Peak learning rate of the classifier and the auxiliary heads; by default --lr."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of the backbone to the one before it, above 0 to 1: pretrained early
    layers want to change less."""
    weight_decay: float = 0.05
    """Weight decay, apart from the gradient in adamw, nadamw and lion, part of it in sgd and lamb; not applied to
    biases and norms."""
    momentum: float = 0.9
    """Of --optimizer sgd."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up. cosine: down to --min-lr at the last epoch. plateau: times --plateau-factor after
    --plateau-patience epochs without a better --monitor."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up from zero to lr."""
    min_lr: float = 0.0
    """Lowest learning rate after the warm-up, as a share of the peak."""
    plateau_patience: int = 3
    """Epochs without a better value before the learning rate falls."""
    plateau_factor: float = 0.3
    """Of --schedule plateau, between 0 and 1."""
    accumulate: int = 1
    """Forward and backward passes of an optimiser step: the same gradient of the same batch in 1/n of the memory,
    but for batch norm, which sees the parts."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    ema: float = 0.0
    """Decay, for each step, of an exponential moving average of the weights, such as 0.999, which is then what is
    validated and kept; shorter at first. 0 for none."""
    freeze_epochs: int = 0
    """First epochs in which only the heads learn; the backbone's batch norms keep their statistics. Then it learns
    too, all at once or as --stage-epochs says."""
    stage_epochs: int = 0
    """After --freeze-epochs: epochs from the unfreezing of each stage of the backbone, the last one first, to the
    next; 0 unfreezes all at once."""
    freeze_norm: bool = False
    """Keep the statistics and weights of all batch norms as they are, through the whole training: for small batches,
    and where the result must not depend on how a batch is divided."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            ok = value is None if name == "head_lr" and value is None else 0 < value < math.inf
            require(ok, name, "a number above 0", value)
        require(0 < self.layer_decay <= 1, "layer_decay", "above 0 to 1", self.layer_decay)
        require(0 < self.plateau_factor < 1, "plateau_factor", "between 0 and 1", self.plateau_factor)
        require(self.accumulate >= 1, "accumulate", "1 or more", self.accumulate)
        require(self.plateau_patience >= 1, "plateau_patience", "1 or more epochs", self.plateau_patience)
        require_range(self, "weight_decay warmup_epochs clip_grad freeze_epochs stage_epochs", 0)
        require_range(self, "momentum min_lr ema", 0, 1)
        # timm's LAMB counts the steps of a group also while it is frozen, and corrects its first ones no more.
        ok = self.optimizer != "lamb" or not self.freeze_epochs
        require(ok, "freeze_epochs", "0 with --optimizer lamb", self.freeze_epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedConfig:
    """Arithmetic and memory of the passes."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass. bf16: autocast, for GPUs from Ampere on. fp16: autocast with a scaled loss, for
    older ones."""
    tf32: bool = True
    """Let GPUs from Ampere on round fp32 factors to 10 bits."""
    channels_last: bool = False
    """Memory format of images and weights that convolutions on tensor cores want."""
    compile: bool = False
    """torch.compile: some minutes at the start, faster steps after. Needs a C++ compiler, or Triton on a GPU."""
    sync_batchnorm: bool = False
    """Batch norm over the global batch instead of each worker's part of it; on GPUs."""
    grad_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, and the time of another forward pass."""
    fused: bool = False
    """The optimiser's fused form, where it has one (adamw, sgd)."""

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollapseConfig:
    """When a network counts as collapsed: judged on the validation images after each epoch."""

    collapse_share: float = 0.95
    """More than this share of the images is given one class, and more than have it."""
    collapse_classes: int = 2
    """Fewer different classes than this are predicted, and fewer than there are."""
    collapse_accuracy: float = 0.0
    """Balanced accuracy, adjusted so that chance is 0 and perfect is 1, is this or less."""
    collapse_kappa: float = 0.0
    """Quadratic weighted kappa is this or less."""
    collapse_f1: float = 0.0
    """The F1 of every class but one is this or less."""
    collapse_after: int = 3
    """First epoch that is judged; networks begin with one class."""
    collapse_stop: int = 0
    """Stop after this many collapsed epochs in a row; 0 only warns."""

    def __post_init__(self) -> None:
        require(0 < self.collapse_share <= 1, "collapse_share", "above 0 to 1", self.collapse_share)
        require_range(self, "collapse_classes collapse_after collapse_stop", 0)
        for name in ("collapse_accuracy", "collapse_kappa", "collapse_f1"):
            require(-1 <= getattr(self, name) <= 1, name, "-1 to 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long to train, and what to keep."""

    epochs: int = 20
    """Passes over the training rows."""
    stop_epoch: int = 0
    """End after this epoch, with the learning rates that a training of --epochs has until there; 0: after --epochs."""
    changes: tuple[str, ...] = ()
    """Numbers that change between epochs, such as "6: optim.lr = 0.0003", which holds from epoch 6 on: learning rate,
    weight decay, clipping, alpha, the amounts of augmentation, those of the loss. Population-based searches find
    them."""
    train_on: Literal["train", "train_and_val"] = "train"
    """train_and_val: the validation patients are learned from as well, for a final model whose settings are known.
    Nothing then chooses the epoch, so the last one is kept; the validation figures are of images that were learned;
    and there must be test patients."""
    monitor: Literal["kappa", "balanced_accuracy", "auc", "loss"] = "kappa"
    """The validation metric by which the best checkpoint is chosen; loss is minimised, the others maximised."""
    monitor_level: Literal["image", "patient"] = "image"
    """Whether --monitor is taken over images, or over patients, whose images' probabilities are averaged."""
    patience: int = 0
    """Stop after this many epochs without a better --monitor; 0 never."""
    min_delta: float = 0.0
    """By how much a value must be better to count, for --patience and --schedule plateau."""
    time_limit: float = 0.0
    """Stop after this many minutes of training, over all restarts, with the checkpoint of the last epoch; 0 never."""
    keep: int = 1
    """Checkpoints of the best epochs to keep; the last is kept besides."""
    checkpoint_minutes: float = 0.0
    """Also write a checkpoint within an epoch whenever this many minutes have passed; 0 only after epochs, and when
    the run is told to stop."""
    max_failures: int = 3
    """How many times the worker group is started again, from the last checkpoint, after a worker is lost."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where curves go beside history.jsonl: tensorboard (a folder of the run), mlflow (MLFLOW_TRACKING_URI, else a
    database in the run's folder), wandb (WANDB_MODE, WANDB_PROJECT); the last two are extras to be installed."""
    profile: bool = False
    """Time some steps of the first epoch with torch's profiler, into the run's folder profile/."""

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(0 <= self.stop_epoch <= self.epochs, "stop_epoch", f"0 to --epochs {self.epochs}", self.stop_epoch)
        ok = self.train_on == "train" or not self.patience
        require(
            ok, "patience", "0 with --train-on train_and_val: no images are left to be patient about", self.patience
        )
        require(self.keep >= 1, "keep", "at least 1", self.keep)
        require_range(self, "patience min_delta time_limit checkpoint_minutes max_failures", 0)

    @property
    def last_epoch(self) -> int:
        """The epoch that a training ends with, where nothing stops it before."""
        return self.stop_epoch or self.epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """The metrics."""

    bootstrap: int = 1000
    """Resamples of patients for the 95 % intervals; 0 leaves the intervals out."""
    examples: int = 24
    """Test images shown in the report, half of them wrong ones where there are as many."""
    breasts: bool = False
    """Also judge by breast: the mean over the images of one side of a patient."""
    average: Literal["images", "views"] = "images"
    """How the images of a patient or breast become one: images, each alike; views, each side and view alike, however
    many images it has."""

    def __post_init__(self) -> None:
        require_choices(self)
        require_range(self, "bootstrap examples", 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyConfig:
    """How a trained network is applied to images; what it needs to see in them, its checkpoint knows."""

    seen: Seen = "refuse"
    """Patients that the network has learned from, or was chosen by: those of folds train and val in the split.csv of
    its run, told by the ids in the tables, as they stand there, and by names and sizes of files. refuse: an error.
    leave_out: only the others. allow: all; they stand in the results as what they are."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether to use GPUs. auto: yes when the cluster has any."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; that of the training (--precision), where its own figures are to be met."""

    def __post_init__(self) -> None:
        require_choices(self)
