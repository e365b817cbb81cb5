"""The most accurate model here: 3x3 convolutions in stages, as in VGG (Simonyan & Zisserman 2015), with batch norms."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model

Depth = Annotated[int, Field(ge=1)]
STAGES = 3  # 28x28 -> 14x14 -> 7x7 -> 3x3


@register_model
def vgg(num_classes: int = 10, width: Width = 32, depth: Depth = 2, dropout: Dropout = 0.0) -> ImageClassifier:
    """Three stages of two 3x3 convolutions with batch norms, 32, 64 and 128 filters: the most accurate.

    Args:
        depth: convolutions of each stage.
    """
    layers: list[nn.Module] = []
    channels = 1
    for stage in range(STAGES):
        filters = width << stage
        for index in range(depth):
            layers.append(nn.Conv2d(channels, filters, 3, padding=1, bias=False))
            if index == depth - 1:
                layers.append(nn.MaxPool2d(2))  # before the batch norm: a quarter of the work
            layers += [nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
            channels = filters
    body = nn.Sequential(*layers, nn.Flatten(), *dropout_of(dropout))
    return ImageClassifier(body, nn.Linear(channels * 3 * 3, num_classes))
