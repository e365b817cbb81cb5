"""Random affine maps, one a sample, drawn for a whole epoch by position and applied to a whole batch at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_dist.config.schema import DataConfig
from mnist_dist.utils.rng import derive_seed

SIDE = 28


def is_augmented(config: DataConfig) -> bool:
    """Whether any augmentation is asked for."""
    return any((config.shift, config.rotate, config.scale, config.shear))


def draw_affine(config: DataConfig, count: int, seed: int, epoch: int) -> Tensor:
    """Affine maps for the positions 0..count of an epoch's order: float32 (count, 2, 3), on the CPU.

    A position's map is a function of (seed, epoch, position), so any process can compute any slice of it. Each map
    takes output to input coordinates in [-1, 1], as `torch.nn.functional.affine_grid` wants them.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    angle, shear, scale, across, down = torch.rand(count, 5, generator=generator).mul_(2).sub_(1).unbind(1)
    angle = angle * math.radians(config.rotate)
    slope = torch.tan(shear * math.radians(config.shear))
    size = 1 + scale * config.scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    unit = 2 / SIDE  # one pixel in the coordinates of affine_grid
    rows = [cos, cos * slope - sin, across * config.shift * unit, sin, sin * slope + cos, down * config.shift * unit]
    return torch.stack(rows, dim=1).reshape(count, 2, 3)


def apply_affine(images: Tensor, maps: Tensor) -> Tensor:
    """Move float images (B, 1, 28, 28) by maps (B, 2, 3), bilinearly; what comes from outside is 0, as MNIST's border.

    Always in float32, and outside autocast: half a pixel is too much to lose to rounding.
    """
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
