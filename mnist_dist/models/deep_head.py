"""A tutorial's model with a hidden layer in its head: as published, with its mistake, and with that fixed."""

from __future__ import annotations

from torch import Tensor, nn

from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import register_model


def deep_body() -> nn.Sequential:
    """Feature maps of 24x24, 12x12 and 10x10; 2000 flat features."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(10, 20, 3),
        nn.ReLU(),
        nn.Flatten(),
    )


def deep_layers(num_classes: int) -> list[nn.Module]:
    """From 2000 features to 500 and to the logits."""
    return [nn.Linear(20 * 10 * 10, 500), nn.ReLU(), nn.Linear(500, num_classes)]


class SoftmaxClassifier(ImageClassifier):
    """A classifier whose `forward` returns probabilities, although the loss takes them for logits."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """What `forward` returned, as float32."""
        return logits.float()


@register_model
def deep_head(num_classes: int = 10) -> ImageClassifier:
    """As published, with its mistake: ReLU and softmax after the last layer, though the loss expects logits."""
    return SoftmaxClassifier(deep_body(), nn.Sequential(*deep_layers(num_classes), nn.ReLU(), nn.Softmax(dim=1)))


@register_model
def deep_head_fixed(num_classes: int = 10) -> ImageClassifier:
    """deep_head without the last ReLU and softmax: the head gives logits, as the loss expects."""
    return ImageClassifier(deep_body(), nn.Sequential(*deep_layers(num_classes)))
