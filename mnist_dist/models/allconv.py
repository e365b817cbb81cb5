"""A net for few errors: 3x3 convolutions alone, without padding or pooling, each wider than the last one.

Springenberg et al. 2015 (arXiv:1412.6806) called a net without pooling all-convolutional. This one is as in An et al.
2020 (arXiv:2008.10400), who had ten convolutions on single pixels: `patch=1`, `depth=10` and `width=32` here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model
from mnist_dist.models.unshuffle import PixelUnshuffle

WIDER = 16
"""Number of filters that each convolution has more than the one before."""
Depth = Annotated[int, Field(ge=1, le=13)]
Patch = Literal[1, 2]


@register_model
def allconv(
    num_classes: int = 10, width: Width = 48, depth: Depth = 5, patch: Patch = 2, dropout: Dropout = 0.0
) -> ImageClassifier:
    """Pixels of 2x2 patches as channels, five convolutions without padding, 48 to 112 filters: few errors.

    Args:
        width: filters of the first convolution.
        depth: number of convolutions; each leaves two rows and two columns less. At most 6 on patches of 2x2 pixels.
        patch: side of the square patches, in pixels.
    """
    side = 28 // patch - 2 * depth
    if side < 1:
        raise ValueError(f"depth={depth}: at most {(28 // patch - 1) // 2} convolutions fit patches of {patch} pixels")
    layers: list[nn.Module] = [PixelUnshuffle()] if patch > 1 else []
    channels = patch**2
    for index in range(depth):
        filters = width + WIDER * index
        layers += [nn.Conv2d(channels, filters, 3, bias=False), nn.BatchNorm2d(filters), nn.SiLU(inplace=True)]
        channels = filters
    body = nn.Sequential(*layers, nn.Flatten(), *dropout_of(dropout))
    return ImageClassifier(body, nn.Linear(channels * side**2, num_classes))
