"""The base class of all models: a body from images to features, and a head from features to logits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

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

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.body(images))

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the flat features (B, F) that the head was given."""
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
