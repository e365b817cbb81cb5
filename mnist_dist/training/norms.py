"""L2 norms of the updates' gradients: they stay on the device until a row, a checkpoint or a rollback asks for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class NormSums:
    """What is known of the norms since the last row; plain numbers, for a checkpoint."""

    count: int = 0
    """Updates, those with a norm that is not finite among them."""
    nonfinite: int = 0
    """Updates whose norm is not finite."""
    total: float = 0.0
    """Sum of the finite ones, one added after the other: a run that goes on adds up as one that was not stopped."""
    most: float = 0.0
    """The largest of the finite ones."""


class GradientNorms:
    """The norms of the updates since the last row. They are the same on every process, so nothing is exchanged."""

    def __init__(self) -> None:
        self.sums = NormSums()
        self.waiting: list[Tensor] = []

    def add(self, norm: Tensor) -> None:
        """Note an update's norm, a tensor () on the device, without waiting for it. The tensor must keep its value."""
        self.waiting.append(norm)

    def collect(self) -> NormSums:
        """The sums over everything that was added. Waits for the device."""
        sums = self.sums
        for norm in torch.stack(self.waiting).tolist() if self.waiting else []:
            sums.count += 1
            if math.isfinite(norm):
                sums.total += norm
                sums.most = max(sums.most, norm)
            else:
                sums.nonfinite += 1
        self.waiting = []
        return sums

    def row(self) -> dict[str, float]:
        """Mean and maximum as they appear in metrics.jsonl; nan if any was not finite, as with losses, or none."""
        sums = self.collect()
        sound = sums.count and not sums.nonfinite
        return {
            "gradient.norm": sums.total / sums.count if sound else math.nan,
            "gradient.norm_max": sums.most if sound else math.nan,
        }

    def clear(self) -> None:
        """Start again from nothing."""
        self.restore(NormSums())

    def restore(self, sums: NormSums) -> None:
        """Go on from what a checkpoint holds."""
        self.sums, self.waiting = sums, []
