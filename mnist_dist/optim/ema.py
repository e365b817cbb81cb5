"""Exponential moving average (EMA) of the weights, which is then what is evaluated and exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMA(AveragedModel):
    """Exponential moving average of a model's parameters and buffers. The averaged model is `.module`.

    torch's own update asks the host whether it is the first one, and cannot be skipped by the device.

    Args:
        decay: fraction of the average that each update keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, next(model.parameters()).device, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, skipped: Tensor | None = None) -> None:
        """Move the average towards the model; the first update makes them equal. Does not wait for the device.

        Args:
            skipped: bool (), on the device: whether the optimizer skipped its update. Then nothing changes.
        """
        first = self.n_averaged == 0
        skipped = torch.zeros_like(first) if skipped is None else skipped
        dtype = next(model.parameters()).dtype
        weight = torch.full_like(first, 1 - self.decay, dtype=dtype).masked_fill(first, 1.0).masked_fill(skipped, 0.0)
        averages = [*self.module.parameters(), *self.module.buffers()]
        for old, new in zip(averages, [*model.parameters(), *model.buffers()], strict=True):
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:  # a batch norm's count of batches
                old.copy_(torch.where(skipped, old, new))
        self.n_averaged += ~skipped


def build_ema(model: nn.Module, decay: float) -> EMA | None:
    """The EMA of a model, to update after each optimizer step; None for decay 0.

    Args:
        decay: fraction of the average that each update keeps.
    """
    return EMA(model, decay).to(memory_format=torch.channels_last) if decay else None
