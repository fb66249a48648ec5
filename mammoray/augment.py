"""Augmentation of a batch on the device, from parameters drawn for the whole global batch.

The order is that of the fields of :class:`mammoray.recipe.AugmentConfig`: mirrors, then rotation, zoom and shift in one
resampling; within the breast, which is what is not black then, contrast, brightness, gamma and noise; cutout; and after
all that, images and labels are mixed.

All that is random is drawn by :func:`draw`, from (seed, epoch, step), and belongs to an image and not to its place: a
worker that takes its rows of the drawn parameters gets, to the bit, the pictures that one worker alone would make.
:func:`mix` pairs neighbours, which are random partners because the order of the rows is random: any even part of a
batch has all its partners in itself.

Shapes: ``B`` images, ``H, W`` pixels, ``K`` classes.

References
----------
DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout" (2017). Zhang et al., "mixup:
beyond empirical risk minimization" (ICLR 2018).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import scipy.special
import torch
import torch.nn.functional as F

from mammoray.errors import ConfigError
from mammoray.recipe import AugmentConfig

Floats = npt.NDArray[np.float32]
_STREAM = 2  # Keeps these draws apart from those of the row order, which start from the same seed.
_NUMBERS = 14  # Random numbers of an image, in an order that only ever grows at its end.
_NONE = AugmentConfig(
    augment=False, flip_horizontal=0, flip_vertical=0, rotation=0, zoom=0, shift=0,
    contrast=0, brightness=0, gamma=0, noise=0, cutout=0, mixup=0,
)  # fmt: skip
_DARKEST = 2.0**-16  # Below the first step of 16 bits: what gamma treats as black, since black has no logarithm.
_QUANTILES = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """What is done to each image of a batch; every array has one number an image, (B,)."""

    mirror_x: npt.NDArray[np.bool_]
    """Left to right: such an image has changed sides."""
    mirror_y: npt.NDArray[np.bool_]
    """Top to bottom."""
    angle: Floats
    """Radians; positive turns the picture counter-clockwise."""
    scale: Floats
    """Above 1 makes the breast larger."""
    shift_y: Floats
    """Down the frame, as a share of its height."""
    shift_x: Floats
    """To the right, as a share of its width."""
    contrast: Floats
    """Factor of the distance from the mean of the breast."""
    brightness: Floats
    """What is added, as a share of the full range."""
    gamma: Floats
    """Exponent."""
    noise: Floats
    """Standard deviation, as a share of the full range."""
    noise_seed: npt.NDArray[np.int32]
    """Of the image's own noise."""
    cutout: Floats
    """Side of the square, as a share of the frame's shorter side."""
    cutout_y: Floats
    """Place of the square, from 0, at the top, to below 1, at the bottom."""
    cutout_x: Floats
    """Place of the square, from 0, at the left, to below 1, at the right."""
    share: Floats
    """Of the image in its mixture with its neighbour, 0.5 to 1."""

    def part(self, start: int, stop: int) -> Drawn:
        """Rows ``start`` to ``stop`` (not included), such as those of a worker."""
        return Drawn(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


def draw(size: int, config: AugmentConfig, seed: int, epoch: int, step: int) -> Drawn:
    """Parameters of one global batch.

    All numbers are drawn whatever the config, and then scaled by it: another amount of one thing leaves all others as
    they were. An image's numbers do not depend on ``size`` either.

    Parameters
    ----------
    size : int
        Images in the batch, over all workers.
    config : AugmentConfig
        With ``augment=False`` nothing is done to any image.
    seed, epoch, step : int
        Not negative; each triple gives its own draw.

    Examples
    --------
    >>> drawn = draw(4, AugmentConfig(rotation=0.0), seed=0, epoch=1, step=0)
    >>> bool(drawn.angle.any()), drawn.part(2, 4).scale.shape
    (False, (2,))
    """
    config = config if config.augment else _NONE
    u = np.random.default_rng([seed, _STREAM, epoch, step]).random((size, _NUMBERS)).T
    spread = 2 * u - 1

    def real(values: npt.NDArray[np.float64]) -> Floats:
        return values.astype(np.float32)

    return Drawn(
        mirror_x=u[0] < config.flip_horizontal,
        mirror_y=u[1] < config.flip_vertical,
        angle=real(np.deg2rad(config.rotation) * spread[2]),
        scale=real(1 + config.zoom * spread[3]),
        shift_y=real(config.shift * spread[4]),
        shift_x=real(config.shift * spread[5]),
        contrast=real(1 + config.contrast * spread[6]),
        brightness=real(config.brightness * spread[7]),
        gamma=real(np.exp(config.gamma * spread[8])),
        noise=real(config.noise * u[9]),
        noise_seed=(u[10] * 2**31).astype(np.int32),
        cutout=np.full(size, config.cutout, np.float32),
        cutout_y=real(u[11]),
        cutout_x=real(u[12]),
        share=real(_share(u[13], config.mixup)),
    )


def _share(u: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """Shares from Beta(alpha, alpha), the larger of an image's and its partner's, so that an image keeps its place."""
    if not alpha:
        return np.ones_like(u)
    # The inverse of the distribution takes one number an image; a sampler would take as many as it happens to need.
    share = np.asarray(scipy.special.betaincinv(alpha, alpha, u), np.float64)
    return np.maximum(share, 1 - share)


def apply(x_B1HW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Augmented images; background stays 0.

    Steps whose amounts are all neutral are left out, at no cost, and change no bit.

    Parameters
    ----------
    x_B1HW : float tensor, 0 to 1
        On any device; not changed.
    drawn : Drawn
        Of these B images.

    Returns
    -------
    (B, 1, H, W) float tensor, 0 to 1
        ``x_B1HW`` itself where nothing is done.
    """
    out_B1HW = _move(x_B1HW, drawn)
    if any(np.any(values) for values in (drawn.contrast != 1, drawn.brightness, drawn.gamma != 1, drawn.noise)):
        breast_B1HW = out_B1HW.sign()
        out_B1HW = _tone(out_B1HW, breast_B1HW, drawn)
        if np.any(drawn.noise):
            out_B1HW = out_B1HW + _noise(breast_B1HW, drawn)
    out_B1HW = _cut_out(out_B1HW, drawn)
    return x_B1HW if out_B1HW is x_B1HW else out_B1HW.clamp_(0.0, 1.0)


def _numbers(like: torch.Tensor, *arrays: Floats) -> list[torch.Tensor]:
    """Arrays of a number an image as (B, 1, 1, 1) tensors on the device of ``like``, in one transfer."""
    together = torch.from_numpy(np.stack(arrays)).to(like)
    return list(together[..., None, None, None])


def _move(x_B1HW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Mirrors, then rotation, zoom and shift in one bilinear resampling; from outside of the frame comes black."""
    if any(np.any(values) for values in (drawn.angle, drawn.scale != 1, drawn.shift_y, drawn.shift_x)):
        grid = _grid(x_B1HW, drawn)
        return F.grid_sample(x_B1HW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    for mirrored, dim in ((drawn.mirror_x, 3), (drawn.mirror_y, 2)):
        if np.any(mirrored):
            chosen = torch.from_numpy(mirrored).to(x_B1HW.device)[:, None, None, None]
            x_B1HW = torch.where(chosen, x_B1HW.flip(dim), x_B1HW)
    return x_B1HW


def _grid(x_B1HW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Where each output pixel comes from, (B, H, W, 2), as x and y in -1 to 1 along each side of the frame."""
    height, width = x_B1HW.shape[2:]
    cos, sin = np.cos(drawn.angle) / drawn.scale, np.sin(drawn.angle) / drawn.scale
    flip_x, flip_y = (np.where(mirror, -1, 1) for mirror in (drawn.mirror_x, drawn.mirror_y))
    # The inverse of: mirror, then turn and zoom around the middle, then shift. A side is 2 long whatever its pixels:
    # the aspect ratio keeps a rotation from becoming a shear.
    aspect, down, right = width / height, 2 * drawn.shift_y, 2 * drawn.shift_x
    rows_23 = [
        [flip_x * cos, flip_x * -sin / aspect, flip_x * -(cos * right - sin / aspect * down)],
        [flip_y * sin * aspect, flip_y * cos, flip_y * -(sin * aspect * right + cos * down)],
    ]
    theta_B23 = torch.from_numpy(np.moveaxis(np.array(rows_23, np.float32), 2, 0).copy()).to(x_B1HW)
    x_W, y_H = (_centres(n).to(x_B1HW) for n in (width, height))
    along_BW2 = x_W[None, :, None] * theta_B23[:, None, :, 0]
    down_BH2 = y_H[None, :, None] * theta_B23[:, None, :, 1] + theta_B23[:, None, :, 2]
    # The sum of two complex numbers is the sum of both coordinates in one pass: 8 times as quick as F.affine_grid.
    grid = torch.view_as_complex(along_BW2)[:, None, :] + torch.view_as_complex(down_BH2)[:, :, None]
    return torch.view_as_real(grid)


def _centres(n: int) -> torch.Tensor:
    """Centres of ``n`` pixels along a side from -1 to 1."""
    return torch.from_numpy(((2 * np.arange(n) + 1) / n - 1).astype(np.float32))


def _tone(x_B1HW: torch.Tensor, breast_B1HW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Contrast around the mean of the breast, which therefore stays, then brightness, then gamma.

    Parameters
    ----------
    breast_B1HW : float tensor
        1 in the breast, 0 in the background.
    """
    contrast, brightness, gamma = _numbers(x_B1HW, drawn.contrast, drawn.brightness, drawn.gamma)
    if np.any(drawn.contrast != 1):
        brightness = brightness + _mean(x_B1HW, breast_B1HW) * (1 - contrast)
    if np.any(drawn.contrast != 1) or np.any(drawn.brightness):
        x_B1HW = (x_B1HW * contrast).addcmul_(breast_B1HW, brightness)
    if np.any(drawn.gamma != 1):
        # Not pow: on a CPU its last bit depends on where a thread's share of the pixels ends.
        x_B1HW = x_B1HW.clamp(_DARKEST, 1.0).log_().mul_(gamma).exp_().mul_(breast_B1HW)
    return x_B1HW


def _mean(x_B1HW: torch.Tensor, breast_B1HW: torch.Tensor) -> torch.Tensor:
    """Mean of each image's breast, (B, 1, 1, 1)."""
    # Row by row, then in float64: the order in which a device adds depends on how many images there are.
    total, pixels = (
        values.sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.float64) for values in (x_B1HW, breast_B1HW)
    )
    return (total / pixels.clamp(min=1)).to(x_B1HW)


def _noise(breast_B1HW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Gaussian noise within the breast."""
    (deviation,) = _numbers(breast_B1HW, drawn.noise)
    height, width = breast_B1HW.shape[2:]
    values_BN = gaussian(drawn.noise_seed, height * width, breast_B1HW.device)
    return values_BN.view(-1, 1, height, width).to(breast_B1HW).mul_(deviation).mul_(breast_B1HW)


def gaussian(seeds_B: npt.NDArray[np.int32], count: int, device: torch.device) -> torch.Tensor:
    """``count`` numbers of a standard normal distribution for each seed, (B, count) float32: the same on every device.

    Number ``i`` follows from the seed and ``i`` alone (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
    SC 2011): a counter is mixed by the finaliser of MurmurHash3, and two times 12 of the 32 bits each choose one of
    4096 quantiles, because integers and a table are exact everywhere, where logarithms and sines are not.
    """
    half = -(-count // 2)
    steps = np.arange(half, dtype=np.uint32) * np.uint32(0x9E3779B9)  # The golden ratio: neighbours differ in all bits.
    counter_N = torch.from_numpy(steps.view(np.int32)).to(device)
    bits = counter_N + torch.from_numpy(seeds_B).to(device)[:, None]
    for right, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits ^= (bits >> right).bitwise_and_(2 ** (32 - right) - 1)  # int32 shifts its sign in.
        bits *= factor - 2**32
    chosen = torch.stack([bits >> 20, bits >> 8], dim=1).bitwise_and_(_QUANTILES - 1)
    return _quantiles().to(device).index_select(0, chosen.view(-1)).view(len(seeds_B), -1)[:, :count]


@functools.cache
def _quantiles() -> torch.Tensor:
    """Quantiles of the standard normal distribution in equal steps of probability, scaled to a deviation of 1."""
    values = scipy.special.ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return torch.from_numpy((values / values.std()).astype(np.float32))


def _cut_out(x_B1HW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """A black square that lies wholly in the frame, anywhere in it alike."""
    sides = np.rint(drawn.cutout * min(x_B1HW.shape[2:])).astype(np.int64)
    if not np.any(sides):
        return x_B1HW
    inside = []
    for dim, place in ((2, drawn.cutout_y), (3, drawn.cutout_x)):
        first = np.floor(place.astype(np.float64) * (x_B1HW.shape[dim] - sides + 1)).astype(np.int64)
        at = torch.arange(x_B1HW.shape[dim], device=x_B1HW.device)
        start, stop = torch.from_numpy(np.stack([first, first + sides])).to(x_B1HW.device)[..., None]
        inside.append((at >= start) & (at < stop))
    return x_B1HW.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def mix(x_B1HW: torch.Tensor, targets_BK: torch.Tensor, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix image 2j with image 2j + 1, each by its own share, and their targets alike.

    Parameters
    ----------
    x_B1HW : float tensor
    targets_BK : float tensor
        Probabilities of the classes, or anything else that may be mixed by shares.
    drawn : Drawn
        Of these B images, the first of which has an even place in the global batch.

    Returns
    -------
    tuple of tensors
        Those given, where nothing is mixed.

    Raises
    ------
    ConfigError
        An odd number of images.
    """
    if not np.any(drawn.share != 1):
        return x_B1HW, targets_BK
    if len(x_B1HW) % 2:
        raise ConfigError(
            "--mixup", "an even number of images in each worker's part of a batch", str(len(x_B1HW)),
            "Change --batch-size, --num-workers or --accumulate, or use --mixup 0.",
        )  # fmt: skip
    return _mixed(x_B1HW, drawn.share), _mixed(targets_BK, drawn.share)


def _mixed(values: torch.Tensor, share_B: Floats) -> torch.Tensor:
    share = torch.from_numpy(share_B).to(values).view(-1, *[1] * (values.ndim - 1))
    partners = values.view(-1, 2, *values.shape[1:]).flip(1).view_as(values)
    return torch.lerp(partners, values, share)
