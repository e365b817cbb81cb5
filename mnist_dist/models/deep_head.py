"""A tutorial net with a hidden layer in its head, as published (with its mistake) and mended."""

from __future__ import annotations

from torch import Tensor, nn

from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import register_model


def deep_body() -> nn.Sequential:
    """28x28 -> 24x24 -> 12x12 -> 10x10, 2000 flat features."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(10, 20, 3),
        nn.ReLU(),
        nn.Flatten(),
    )


def deep_layers() -> list[nn.Module]:
    """2000 features -> 500 -> 10."""
    return [nn.Linear(20 * 10 * 10, 500), nn.ReLU(), nn.Linear(500, 10)]


class SoftmaxClassifier(ImageClassifier):
    """A classifier whose output went through a softmax already."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """The output itself."""
        return logits.float()


@register_model
def deep_head() -> ImageClassifier:
    """As published: ReLU and softmax after the last layer, and the loss then takes probabilities for logits."""
    return SoftmaxClassifier(deep_body(), nn.Sequential(*deep_layers(), nn.ReLU(), nn.Softmax(dim=1)))


@register_model
def deep_head_fixed() -> ImageClassifier:
    """The same net without the last ReLU and softmax: the head gives logits, as the loss expects."""
    return ImageClassifier(deep_body(), nn.Sequential(*deep_layers()))
