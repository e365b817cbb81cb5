"""How the values of tensors are spread, counted on their device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnist_dist.tracking.media import Histogram

BINS = 64


@torch.no_grad()
def histograms(tensors: Sequence[Tensor]) -> list[Histogram]:
    """For each tensor a histogram from its least value to its largest.

    Tensors are of any shape and floating dtype, all on one device. Values that are not finite are left out. The host
    waits for the device once, whatever the number of tensors.
    """
    if not tensors:
        return []
    return [histogram(*row) for row in torch.stack([count(tensor) for tensor in tensors]).tolist()]


def count(tensor: Tensor) -> Tensor:
    """The lowest and the highest border and the counts of all bins, float64 (2 + BINS,), which holds counts exactly."""
    values = tensor.flatten()
    if values.device.type not in ("cpu", "cuda"):  # others may not know float64
        values = values.cpu()
    values = values.double()
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin().nan_to_num(posinf=0.0)
    high = torch.where(finite, values, -torch.inf).amax().nan_to_num(neginf=0.0)
    margin = torch.where(low < high, 0.0, low.abs().clamp(min=1) / 2)  # around a value that is the only one
    low, high = low - margin, high + margin
    bins = ((values - low) * (BINS / (high - low))).nan_to_num().clamp_(0, BINS - 1).long()
    bins = torch.where(finite, bins, BINS)
    counts = values.new_zeros(BINS + 1).scatter_add_(0, bins, torch.ones_like(values))
    return torch.cat([torch.stack([low, high]), counts[:BINS]])


def histogram(low: float, high: float, *counts: float) -> Histogram:
    """A row of `count` as plain numbers."""
    inner = (low + (high - low) * border / BINS for border in range(1, BINS))
    return Histogram(tuple(map(int, counts)), (low, *inner, high))
