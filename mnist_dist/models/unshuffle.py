"""The default model.

Its first layer turns each 2x2 patch into four channels (pixel unshuffle, the inverse of Shi et al. 2016,
arXiv:1609.05158), so that the convolutions work on a quarter of the positions.
"""

from __future__ import annotations

from torch import Tensor, nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model


class PixelUnshuffle(nn.Module):
    """Images (B, 1, H, W) to (B, 4, H/2, W/2), as `torch.nn.PixelUnshuffle(2)`, but for empty batches too.

    torch's returns an empty batch in its old shape. A process may have no image of an epoch's last batch.
    """

    def forward(self, images: Tensor) -> Tensor:
        """The four pixels of each 2x2 patch as channels, row by row."""
        count, _, height, width = images.shape
        patches = images.reshape(count, height // 2, 2, width // 2, 2)
        return patches.permute(0, 2, 4, 1, 3).reshape(count, 4, height // 2, width // 2)


@register_model
def unshuffle(num_classes: int = 10, width: Width = 32, dropout: Dropout = 0.0) -> ImageClassifier:
    """Pixels of 2x2 patches as channels, 32 and 64 filters of 3x3, 128 hidden units: the default."""
    body = nn.Sequential(
        PixelUnshuffle(),
        nn.Conv2d(4, width, 3, padding=1),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        *dropout_of(dropout),
    )
    hidden = 4 * width
    head = nn.Sequential(nn.Linear(2 * width * 3 * 3, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
    return ImageClassifier(body, head)
