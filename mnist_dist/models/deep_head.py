"""A tutorial's model with a hidden layer in its head: as published, with its mistake, and with that fixed."""

from __future__ import annotations

from torch import Tensor, nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model


def deep_body(width: int, dropout: float) -> nn.Sequential:
    """Feature maps of 24x24, 12x12 and 10x10; 200 * width flat features."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(),
        nn.Flatten(),
        *dropout_of(dropout),
    )


def deep_layers(width: int, num_classes: int) -> list[nn.Module]:
    """From 200 * width features to 500 and to the logits."""
    return [nn.Linear(2 * width * 10 * 10, 500), nn.ReLU(), nn.Linear(500, num_classes)]


class SoftmaxClassifier(ImageClassifier):
    """A classifier whose `forward` returns probabilities, although the loss takes them for logits."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """What `forward` returned, as float32."""
        return logits.float()


@register_model
def deep_head(num_classes: int = 10, width: Width = 10, dropout: Dropout = 0.0) -> ImageClassifier:
    """As published, with its mistake: ReLU and softmax after the last layer, though the loss expects logits."""
    body = deep_body(width, dropout)  # before the head: a seed gives both models the same weights
    head = nn.Sequential(*deep_layers(width, num_classes), nn.ReLU(), nn.Softmax(dim=1))
    return SoftmaxClassifier(body, head)


@register_model
def deep_head_fixed(num_classes: int = 10, width: Width = 10, dropout: Dropout = 0.0) -> ImageClassifier:
    """deep_head without the last ReLU and softmax: the head gives logits, as the loss expects."""
    return ImageClassifier(deep_body(width, dropout), nn.Sequential(*deep_layers(width, num_classes)))
