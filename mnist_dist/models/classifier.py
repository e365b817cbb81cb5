"""What every network here is: a body that turns images into features, and a head that turns features into logits."""

from __future__ import annotations

from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """Images float (B, 1, 28, 28) to logits (B, 10).

    Args:
        body: images to flat features (B, F).
        head: features to logits.
    """

    def __init__(self, body: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.head(self.body(images))

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 10) and the flat features (B, F) before the head, to look at."""
        features = self.body(images)
        return self.head(features), features

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the model's output means as probabilities (B, 10)."""
        return logits.float().softmax(dim=1)
