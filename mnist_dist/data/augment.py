"""Random affine and elastic augmentation: drawn for a whole epoch, applied to a whole batch in one sampling.

`torchvision.transforms.RandomAffine` draws one transform per call from the global generator; here the transform of an
image depends on (seed, epoch, position) alone, so that any process can compute any part of a batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_dist.config.sections import DataConfig
from mnist_dist.utils.rng import derive_seed

SIDE = 28
PIXEL = 2 / SIDE
"""A pixel in coordinates from -1 to 1."""
NODES = 5
"""Points of the elastic distortion along each axis, one every 7 pixels."""


def is_augmented(config: DataConfig) -> bool:
    """Whether the configuration asks for any augmentation."""
    return any((config.shift, config.rotate, config.scale, config.shear, config.elastic))


def random_affine(config: DataConfig, count: int, seed: int, epoch: int) -> Tensor:
    """Affine transforms for positions 0 to `count` of an epoch's order: float32 (count, 2, 3), on the CPU.

    A transform maps output to input coordinates in [-1, 1], as the `theta` of `torch.nn.functional.affine_grid`.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    rotate, shear, scale, shift_x, shift_y = torch.rand(count, 5, generator=generator).mul_(2).sub_(1).unbind(1)
    angle = rotate * math.radians(config.rotate)
    slope = torch.tan(shear * math.radians(config.shear))
    size = 1 + scale * config.scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    x_row = [cos, cos * slope - sin, shift_x * config.shift * PIXEL]
    y_row = [sin, sin * slope + cos, shift_y * config.shift * PIXEL]
    return torch.stack([*x_row, *y_row], dim=1).reshape(count, 2, 3)


def random_displacement(config: DataConfig, count: int, seed: int, epoch: int) -> Tensor | None:
    """Elastic distortions (Simard et al. 2003) for positions 0 to `count` of an epoch's order; None if there are none.

    Returns:
        float32 (count, 2, 5, 5), on the CPU: how far each of 5x5 points of the output is moved across and down in the
        input, in coordinates from -1 to 1. The first and last points are in the image's corners.
    """
    if not config.elastic:
        return None
    generator = torch.Generator().manual_seed(derive_seed(seed, "elastic", epoch))
    return torch.randn(count, 2, NODES, NODES, generator=generator).mul_(config.elastic * PIXEL)


def apply_affine(images: Tensor, theta: Tensor, displacement: Tensor | None = None) -> Tensor:
    """Transform float images (B, 1, 28, 28) by `theta` (B, 2, 3), bilinearly; pixels from outside are 0.

    In float32, outside autocast: bfloat16 would round the sampling coordinates.

    Args:
        displacement: further movement of 5x5 points (B, 2, 5, 5), between which it is interpolated bicubically.
    """
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        if displacement is not None:
            moved = F.interpolate(displacement, size=images.shape[-2:], mode="bicubic", align_corners=True)
            grid = grid + moved.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
