"""Three tutorials' models of one shape: two blocks of convolution, ReLU and max-pool; then one linear layer.

Here the pooling comes before the ReLU: the same values and gradients, bit for bit, for a quarter of the ReLU's work.
"""

from __future__ import annotations

from torch import nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model


def plain_body(width: int, kernel: int, padding: int, dropout: float) -> nn.Sequential:
    """Two blocks of convolution, 2x2 max-pool and ReLU, then flat features.

    Args:
        width: filters of the first convolution; the second has twice as many.
        kernel: side of the filters.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, kernel, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, kernel, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        *dropout_of(dropout),
    )


@register_model
def cnn(num_classes: int = 10, width: Width = 16, dropout: Dropout = 0.0) -> ImageClassifier:
    """16 and 32 filters of 5x5, padded: 28x28 -> 14x14 -> 7x7, 1568 features."""
    return ImageClassifier(plain_body(width, 5, 2, dropout), nn.Linear(2 * width * 7 * 7, num_classes))


@register_model
def convnet(num_classes: int = 10, width: Width = 8, dropout: Dropout = 0.0) -> ImageClassifier:
    """8 and 16 filters of 3x3, padded, 784 features; weights from N(0, 0.01), biases 0."""
    model = ImageClassifier(plain_body(width, 3, 1, dropout), nn.Linear(2 * width * 7 * 7, num_classes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.01)  # as its tutorial calls it: 0.01 is the standard deviation
        else:
            nn.init.zeros_(parameter)
    return model


@register_model
def basic(num_classes: int = 10, width: Width = 10, dropout: Dropout = 0.0) -> ImageClassifier:
    """10 and 20 filters of 5x5, not padded: 24x24 -> 12x12 -> 8x8 -> 4x4, 320 features."""
    return ImageClassifier(plain_body(width, 5, 0, dropout), nn.Linear(2 * width * 4 * 4, num_classes))
