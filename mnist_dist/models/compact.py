"""The fastest model to 99 %: the central 24x24 pixels, 2x2 patches as channels, and batch norms after the pooling."""

from __future__ import annotations

from torch import Tensor, nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model


class CentreUnshuffle(nn.Module):
    """Images (B, 1, 28, 28) to (B, 4, 12, 12), without the border of two pixels, empty in nearly all of MNIST."""

    def forward(self, images: Tensor) -> Tensor:
        """The four pixels of each 2x2 patch as channels; the result is in channels-last memory format."""
        patches = images[:, 0, 2:26, 2:26].reshape(-1, 12, 2, 12, 2).transpose(2, 3)
        return patches.reshape(-1, 12, 12, 4).permute(0, 3, 1, 2)


class FlattenChannelsLast(nn.Module):
    """Feature maps (B, C, H, W) to features (B, H*W*C): of channels-last maps this is a view, without a copy."""

    def forward(self, maps: Tensor) -> Tensor:
        """Features (B, H*W*C), the channel varying fastest."""
        return maps.permute(0, 2, 3, 1).flatten(1)


@register_model
def compact(num_classes: int = 10, width: Width = 32, dropout: Dropout = 0.0) -> ImageClassifier:
    """The middle 24x24 pixels in 2x2 patches, 32 and 64 filters of 3x3 with batch norms: the fastest to 99 %."""
    body = nn.Sequential(
        CentreUnshuffle(),
        nn.Conv2d(4, width, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(width),  # after the pooling: a quarter of the work
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(2 * width),
        nn.SiLU(),
        FlattenChannelsLast(),
        *dropout_of(dropout),
    )
    hidden = 8 * width
    head = nn.Sequential(nn.Linear(2 * width * 2 * 2, hidden), nn.SiLU(), nn.Linear(hidden, num_classes))
    return ImageClassifier(body, head)
