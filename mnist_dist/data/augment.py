"""Random affine augmentation: one transform per image, drawn for a whole epoch and applied to a whole batch at once.

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


def is_augmented(config: DataConfig) -> bool:
    """Whether the configuration asks for any augmentation."""
    return any((config.shift, config.rotate, config.scale, config.shear))


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
    pixel = 2 / SIDE  # in coordinates from -1 to 1
    x_row = [cos, cos * slope - sin, shift_x * config.shift * pixel]
    y_row = [sin, sin * slope + cos, shift_y * config.shift * pixel]
    return torch.stack([*x_row, *y_row], dim=1).reshape(count, 2, 3)


def apply_affine(images: Tensor, theta: Tensor) -> Tensor:
    """Transform float images (B, 1, 28, 28) by `theta` (B, 2, 3), bilinearly; pixels from outside are 0.

    In float32, outside autocast: bfloat16 would round the sampling coordinates.
    """
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
