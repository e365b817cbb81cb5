"""What a tracker gets beside rows of numbers: images with predictions, feature maps, filters, histograms.

Plain data without torch: `training.visualizer` computes it, a tracker logs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def wandb_key(key: str) -> str:
    """`train/loss` for `train.loss`: wandb groups charts by the part before the slash."""
    return key.replace(".", "/")


@dataclass(frozen=True)
class Example:
    """An image with its label and the model's prediction."""

    index: int
    """In the split, from 0."""
    image: np.ndarray
    """uint8 (28, 28), 0 black to 255 white, as in the data set."""
    label: int
    predicted: int
    probabilities: tuple[float, ...]
    """Of each class, 0 to 1."""
    loss: float


@dataclass(frozen=True)
class Histogram:
    """The distribution of a tensor's values."""

    counts: tuple[int, ...]
    """Number of finite values in each of n bins."""
    edges: tuple[float, ...]
    """The n + 1 edges of the bins, ascending."""


@dataclass(frozen=True)
class Media:
    """The media of one step."""

    split: str
    """`val` or `test`: the split of the examples."""
    mistakes: tuple[Example, ...] = ()
    """Misclassified images, by falling loss."""
    samples: tuple[Example, ...] = ()
    """The same images at every step, to see how their predictions change."""
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For each convolution, its feature maps of the first sample in one image: uint8 (H, W)."""
    filters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For each convolution, its filters in one image: uint8 (H, W)."""
    parameters: Mapping[str, Histogram] = field(default_factory=dict)
    """For each parameter, its values."""
    gradients: Mapping[str, Histogram] = field(default_factory=dict)
    """For each parameter, the gradient of the last update."""
