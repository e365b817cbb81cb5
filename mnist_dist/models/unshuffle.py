"""The default net. Its first layer only moves pixels: a 2x2 patch becomes four channels (Shi et al. 2016,
arXiv:1609.05158, run backwards), so that the convolutions work on a quarter of the positions."""

from __future__ import annotations

from torch import nn

from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import register_model


@register_model
def unshuffle() -> ImageClassifier:
    """Pixels of 2x2 patches as channels, 32 and 64 filters of 3x3, 128 hidden units: the default."""
    body = nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(4, 32, 3, padding=1),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    return ImageClassifier(body, nn.Sequential(nn.Linear(64 * 3 * 3, 128), nn.ReLU(), nn.Linear(128, 10)))
