"""Corruptions of digits in five severities, each one batched operation on the whole test set.

The ideas are those of MNIST-C (Mu and Gilmer 2019, arXiv:1906.02337) and, for the width of strokes, of Morpho-MNIST
(Castro et al. 2019, arXiv:1809.10780). Sizes are in units of the image, and every severity draws the same random
numbers: only the size differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_dist.data.augment import SIDE, apply_affine
from mnist_dist.utils.rng import derive_seed

SEED = 0
CHUNK = 100
"""Images that are corrupted at once: what they need fits into a cache. The result does not depend on it."""
WHITE = 255.0


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt images."""

    sizes: tuple[float, ...]
    """Of severity 1 to 5."""
    unit: str
    meaning: str
    """What a size is, for the page of results."""
    apply: Callable[[Tensor, float, Tensor], Tensor]
    """Takes images float32 (B, 1, 28, 28) with pixels 0 to 255, a size, and the draws (B, ...) of these images."""
    draw: Callable[..., Tensor] = torch.rand
    """Of the random numbers: torch.rand or torch.randn."""
    shape: tuple[int, ...] = ()
    """Of one image's draws."""


def corrupt(images: Tensor, name: str, size: float) -> Tensor:
    """Images uint8 (N, 1, 28, 28), corrupted and rounded to uint8. The same each time, on any machine's CPU.

    Args:
        name: of CORRUPTIONS.
        size: in its unit.
    """
    corruption = CORRUPTIONS[name]
    generator = torch.Generator().manual_seed(derive_seed(SEED, name))
    draws = corruption.draw(len(images), *corruption.shape, generator=generator)
    parts = zip(images.split(CHUNK), draws.split(CHUNK), strict=True)
    changed = [corruption.apply(part.float(), size, drawn) for part, drawn in parts]
    return torch.cat([part.round().clamp(0, WHITE).to(torch.uint8) for part in changed])


def shift(images: Tensor, pixels: float, turns: Tensor) -> Tensor:
    """Move each image by so many pixels, in a direction of its own: bilinearly, black from outside.

    Args:
        turns: (B,) in [0, 1).
    """
    angle = 2 * math.pi * turns
    step = pixels * 2 / SIDE  # in coordinates from -1 to 1
    ones, zeros = torch.ones_like(angle), torch.zeros_like(angle)
    rows = [ones, zeros, step * torch.cos(angle), zeros, ones, step * torch.sin(angle)]
    return apply_affine(images, torch.stack(rows, dim=1).view(-1, 2, 3))


def rotate(images: Tensor, degrees: float, sides: Tensor) -> Tensor:
    """Rotate each image by so many degrees, to the left or to the right: bilinearly, black from outside.

    Args:
        sides: (B,) in [0, 1); below 0.5 it is the one direction.
    """
    angle = torch.where(sides < 0.5, -1.0, 1.0) * math.radians(degrees)
    cos, sin, zeros = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return apply_affine(images, torch.stack([cos, -sin, zeros, sin, cos, zeros], dim=1).view(-1, 2, 3))


def add_noise(images: Tensor, deviation: float, noise: Tensor) -> Tensor:
    """Add normal noise of this standard deviation, where black is 0 and white 1, and clip.

    Args:
        noise: (B, 1, 28, 28), standard normal.
    """
    return images + WHITE * deviation * noise


def blur(images: Tensor, deviation: float, _: Tensor) -> Tensor:
    """Convolve with a Gaussian of this standard deviation in pixels, cut off at three of them; outside is black."""
    reach = math.ceil(3 * deviation)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    line = line / line.sum()
    columns = F.conv2d(images, line.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(columns, line.view(1, 1, 1, -1), padding=(0, reach))


def thicken(images: Tensor, radius: float, _: Tensor) -> Tensor:
    """Dilate by a disc of this radius in pixels, a multiple of 0.5: each edge of a stroke moves out by it."""
    return dilate(images, round(2 * radius), scale=2)


def thin(images: Tensor, radius: float, _: Tensor) -> Tensor:
    """Erode by a disc of this radius in pixels, a multiple of 0.25: each edge of a stroke moves in by it."""
    return WHITE - dilate(WHITE - images, round(4 * radius), scale=4)


def dilate(images: Tensor, radius: int, scale: int) -> Tensor:
    """The largest value within a disc, on a grid that is `scale` times finer, averaged back to pixels.

    Args:
        radius: of the disc, in cells of the finer grid. 0 changes nothing. What is outside an image does not count.
    """
    fine = F.interpolate(images, scale_factor=scale, mode="nearest")
    height = fine.shape[2]
    widest = F.pad(fine, (0, 0, radius, radius))  # rows of black above and below, so that rows can be shifted
    result = fine
    for offset in range(radius + 1):
        half = math.isqrt(radius**2 - offset**2)
        rows = F.max_pool2d(widest, (1, 2 * half + 1), stride=1, padding=(0, half))
        for start in {radius - offset, radius + offset}:
            result = torch.maximum(result, rows[:, :, start : start + height])
    return F.avg_pool2d(result, scale)


CORRUPTIONS = {
    "shift": Corruption((1, 2, 3, 4, 5), "px", "moved by so many pixels, in a random direction", shift),
    "rotation": Corruption((10, 20, 30, 40, 50), "°", "turned by so many degrees, to a random side", rotate),
    "noise": Corruption(
        (0.1, 0.2, 0.3, 0.4, 0.5),
        "σ",
        "normal noise of this standard deviation added; black is 0, white 1",
        add_noise,
        torch.randn,
        (1, SIDE, SIDE),
    ),
    "blur": Corruption((0.5, 1, 1.5, 2, 2.5), "px", "Gaussian blur of this standard deviation, in pixels", blur),
    "thick": Corruption((0.5, 1, 1.5, 2, 2.5), "px", "strokes dilated by a disc of this radius, in pixels", thicken),
    "thin": Corruption((0.25, 0.5, 0.75, 1, 1.25), "px", "strokes eroded by a disc of this radius, in pixels", thin),
}
"""By name, in the order of the tables."""
