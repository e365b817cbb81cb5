"""A network that is not part of the package: docs/own-net.md uses it."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions, whose result is added to their input; feature maps (B, C, H, W) of the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.first_norm(self.first(maps)).relu()
        return (maps + self.second_norm(self.second(inner))).relu()


def build(num_classes: int = 10, width: int = 32, blocks: int = 1, dropout: float = 0.0) -> nn.Module:
    """Residual blocks of 3x3 filters at 7x7 positions."""
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=4),
        *(Residual(width) for _ in range(blocks)),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width * 7 * 7, num_classes),
    )
