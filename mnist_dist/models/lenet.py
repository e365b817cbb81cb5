"""The default net: LeNet's plan (LeCun et al. 1998, doi:10.1109/5.726791) with wider layers, ReLU and max-pooling."""

from __future__ import annotations

from torch import nn

from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import register_model


@register_model
def lenet() -> ImageClassifier:
    """32 filters of 5x5 and 64 of 3x3, each max-pooled, then 128 hidden units: the default."""
    body = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    return ImageClassifier(body, nn.Sequential(nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)))
