"""A network that hangs on purpose: the process of rank 1 falls asleep in its 31st step. For docs/hangs.md."""

import os
import time

from torch import Tensor, nn


class HangingNet(nn.Sequential):
    """A linear classifier whose forward pass does not return on rank 1 after 30 training steps."""

    steps = 0

    def forward(self, images: Tensor) -> Tensor:
        HangingNet.steps += self.training
        if HangingNet.steps > 30 and os.environ.get("RANK") == "1":
            time.sleep(3600)  # a lock, a dead disk, an endless loop
        return super().forward(images)


def build() -> nn.Module:
    """A network of 7,850 parameters."""
    return HangingNet(nn.Flatten(), nn.Linear(784, 10))
