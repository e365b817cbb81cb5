"""The output of a training step, the loss of each image, and views into a flat gradient: what all strategies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mnist_dist.config.schema import Config


class BatchOutput(NamedTuple):
    """Logits (b, 10), labels int64 (b,) and losses (b,) of b images; none requires a gradient."""

    logits: Tensor
    labels: Tensor
    losses: Tensor


class StepOutput(NamedTuple):
    """What a forward and backward pass over a global batch returns on one rank."""

    outputs: list[BatchOutput]
    """Of this rank's images, each of them once."""
    stop: bool | None = None
    """Whether any rank was asked to stop, if the exchange of gradients carried the answer; else None."""


def image_losses(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """The cross-entropy of each image (b,), in float32 or better."""
    full = logits.float() if logits.itemsize < 4 else logits
    return F.cross_entropy(full, labels, reduction="none", label_smoothing=config.optim.label_smoothing)


def flat_views(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive views into a flat row, each with the shape and the strides of one of the dense tensors.

    The strides matter: fused optimizers walk through the memory of a gradient and of its parameter alike.
    """
    views, start = [], int(row.storage_offset())
    for tensor in tensors:
        views.append(row.as_strided(tensor.shape, tensor.stride(), start))
        start += tensor.numel()
    return views
