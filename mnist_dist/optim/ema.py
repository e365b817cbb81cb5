"""Exponential moving average (EMA) of the weights, which is then what is evaluated and exported."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of the model's parameters and buffers; None for decay 0.

    Call its `update_parameters(model)` after each optimizer step. The averaged model is its `.module`.

    Args:
        decay: fraction of the average that each update keeps.
    """
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.to(memory_format=torch.channels_last)
