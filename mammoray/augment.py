"""Augmentation of a batch on the device, from parameters drawn for the whole global batch.

Drawing for all workers at once, from (seed, epoch, step), makes the pictures independent of how many workers there are.
The order: mirror top to bottom, then rotation, scale and shift in one resampling, then contrast and brightness.

Shapes: ``B`` images, ``H, W`` pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

_STREAM = 2  # Keeps these draws apart from those of the row order, which start from the same seed.
_ROTATION = np.deg2rad(10.0)
_SCALE = 0.10
_SHIFT = 0.05  # Of the frame's height and width.
_CONTRAST = 0.15
_BRIGHTNESS = 0.05  # Of the full range.


def draw(size: int, seed: int, epoch: int, step: int) -> npt.NDArray[np.float32]:
    """Parameters of one global batch.

    Returns
    -------
    (size, 7) float32
        Mirror sign (1 or -1), angle in radians, scale, shift along y and x as shares of the frame, contrast factor,
        brightness offset as a share of the full range.
    """
    rng = np.random.default_rng([seed, _STREAM, epoch, step])
    spread = rng.uniform(-1.0, 1.0, size=(size, 6)) * [_ROTATION, _SCALE, _SHIFT, _SHIFT, _CONTRAST, _BRIGHTNESS]
    spread[:, [1, 4]] += 1.0
    mirror = rng.choice([-1.0, 1.0], size=(size, 1))
    return np.concatenate([mirror, spread], axis=1).astype(np.float32)


def apply(x_B1HW: torch.Tensor, parameters: npt.NDArray[np.float32]) -> torch.Tensor:
    """Augmented copies, float, of images in 0 to 1; background stays 0.

    Parameters
    ----------
    x_B1HW : float tensor, 0 to 1
    parameters : (B, 7) float32
        Rows of :func:`draw`.
    """
    p = torch.from_numpy(parameters).to(x_B1HW)
    mirror, angle, scale, shift_y, shift_x, contrast, brightness = p.unbind(dim=1)
    aspect = x_B1HW.shape[3] / x_B1HW.shape[2]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # affine_grid works in -1 to 1 along each side: the aspect ratio keeps a rotation from becoming a shear.
    theta_B23 = torch.stack(
        [
            torch.stack([cos, -sin / aspect * mirror, 2 * shift_x], dim=1),
            torch.stack([sin * aspect, cos * mirror, 2 * shift_y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta_B23, list(x_B1HW.shape), align_corners=False)
    moved = F.grid_sample(x_B1HW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    toned = moved * contrast[:, None, None, None] + brightness[:, None, None, None] * (moved > 0)
    return toned.clamp(0.0, 1.0)
