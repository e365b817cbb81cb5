"""What trackers show beside rows of numbers: images with what the network makes of them, maps, filters, histograms.

Plain data without torch, the same on any number of processes: `insights` computes it, a tracker shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def wandb_key(key: str) -> str:
    """`train.loss` as `train/loss`: wandb groups charts by what stands before the slash."""
    return key.replace(".", "/")


@dataclass(frozen=True)
class Example:
    """An image and what the network says of it."""

    index: int
    """Its place in the split, from 0."""
    image: np.ndarray
    """uint8 (28, 28), 0 black to 255 white, as the data set has it."""
    label: int
    predicted: int
    probabilities: tuple[float, ...]
    """Of each class, 0 to 1."""
    loss: float


@dataclass(frozen=True)
class Histogram:
    """How values are spread."""

    counts: tuple[int, ...]
    """Finite values in each of n bins."""
    edges: tuple[float, ...]
    """The n + 1 borders of the bins, rising."""


@dataclass(frozen=True)
class Media:
    """What is shown of one step."""

    split: str
    """`val` or `test`: where the examples are from."""
    mistakes: tuple[Example, ...] = ()
    """Wrongly recognised images, those of the largest loss first."""
    samples: tuple[Example, ...] = ()
    """The same images each time, to see how what the network makes of them changes."""
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For each convolution, what it makes of the first sample: uint8 (H, W), its maps side by side."""
    filters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For each convolution, its filters side by side: uint8 (H, W)."""
    parameters: Mapping[str, Histogram] = field(default_factory=dict)
    gradients: Mapping[str, Histogram] = field(default_factory=dict)
    """By the parameter's name, of the last update's gradient."""
