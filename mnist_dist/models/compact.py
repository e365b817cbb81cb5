"""The fastest net to 99 %: the middle 24x24 pixels, 2x2 patches as channels, and batch norms after the pooling."""

from __future__ import annotations

from torch import Tensor, nn

from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import register_model


class CentreUnshuffle(nn.Module):
    """Images (B, 1, 28, 28) to (B, 4, 12, 12): the border of two pixels, empty in nearly all of MNIST, is left out."""

    def forward(self, images: Tensor) -> Tensor:
        """The four pixels of each patch as channels, in the memory order that convolutions are fastest in."""
        patches = images[:, 0, 2:26, 2:26].reshape(-1, 12, 2, 12, 2).transpose(2, 3)
        return patches.reshape(-1, 12, 12, 4).permute(0, 3, 1, 2)


class FlattenChannelsLast(nn.Module):
    """Maps (B, C, H, W) to features (B, H*W*C): in the order they lie in memory, so that nothing is copied."""

    def forward(self, maps: Tensor) -> Tensor:
        """The channels of each position, one position after the other."""
        return maps.permute(0, 2, 3, 1).flatten(1)


@register_model
def compact() -> ImageClassifier:
    """The middle 24x24 pixels in 2x2 patches, 32 and 64 filters of 3x3 with batch norms: the fastest to 99 %."""
    body = nn.Sequential(
        CentreUnshuffle(),
        nn.Conv2d(4, 32, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(32),  # after the pooling: a quarter of the work
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(64),
        nn.SiLU(),
        FlattenChannelsLast(),
    )
    return ImageClassifier(body, nn.Sequential(nn.Linear(64 * 2 * 2, 256), nn.SiLU(), nn.Linear(256, 10)))
