"""Shared by the strategies: the output of a training step, the loss of each image, and views into a flat gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mnist_dist.config.schema import Config


class BatchOutput(NamedTuple):
    """Output of a forward pass over b images: logits (b, K), labels int64 (b,) and losses (b,), detached."""

    logits: Tensor
    labels: Tensor
    losses: Tensor


class StepOutput(NamedTuple):
    """Output of a forward and backward pass over this rank's part of a global batch."""

    outputs: list[BatchOutput]
    """One per forward pass; together they have each image of this rank once."""
    stop: bool | None = None
    """Whether any rank was asked to stop; None if the gradient exchange carried no stop flags."""


def image_losses(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Cross-entropy of each image (b,), with label smoothing, in float32 or float64.

    Args:
        logits: (b, K), any floating dtype.
        labels: int64 (b,).
    """
    full = logits.float() if logits.itemsize < 4 else logits
    return F.cross_entropy(full, labels, reduction="none", label_smoothing=config.optim.label_smoothing)


def flat_views(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat tensor into consecutive views, each with the shape and the strides of one of `tensors`.

    A gradient must have the strides of its parameter: fused optimizers read the memory of both in the same order.

    Args:
        row: one-dimensional, with at least as many elements as all tensors together.
        tensors: dense.
    """
    views, start = [], int(row.storage_offset())
    for tensor in tensors:
        views.append(row.as_strided(tensor.shape, tensor.stride(), start))
        start += tensor.numel()
    return views
