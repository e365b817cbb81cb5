"""The base class of all models: a body from images to features, and a head from features to logits."""

from __future__ import annotations

import copy
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from mnist_dist.models.shifts import mean_over_shifts

Width = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class ImageClassifier(nn.Module):
    """Images float (B, 1, 28, 28) to logits (B, K).

    Args:
        body: from images to flat features (B, F).
        head: from features to logits.
    """

    def __init__(self, body: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.shifts = 0
        """Largest test-time shift, in pixels: see `shifts`."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K); in eval mode their mean over the test-time shifts, if the model has any."""
        if self.training or not self.shifts:
            return self.classify(images)
        return mean_over_shifts(self.classify, images, self.shifts)

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, K) of the images as they are."""
        return self.head(self.body(images))

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of the images as they are, and the flat features (B, F) that the head was given."""
        features = self.body(images)
        return self.head(features), features

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities, float32 (B, K), from what `forward` returned."""
        return logits.float().softmax(dim=1)


def dropout_of(probability: float) -> list[nn.Module]:
    """The end of a body: dropout of its flat features, or nothing for 0. No other layer's name depends on it."""
    return [nn.Dropout(probability)] if probability else []


def probabilities(model: nn.Module, logits: Tensor) -> Tensor:
    """Class probabilities, float32 (B, K), from what a model's `forward` returned.

    They are what its class's method `probabilities` makes of it, as in `ImageClassifier`; without one, the softmax.
    """
    if hasattr(type(model), "probabilities"):
        return model.probabilities(logits)  # type: ignore[operator]
    return logits.float().softmax(dim=1)


def without_shifts(model: nn.Module) -> nn.Module:
    """The model with one pass per image, of the same modules and weights: to look inside, with hooks on its layers.

    A model that has no test-time shifts is returned as it is.
    """
    if not isinstance(model, ImageClassifier) or not model.shifts:
        return model
    single = copy.copy(model)
    single.shifts = 0
    return single
