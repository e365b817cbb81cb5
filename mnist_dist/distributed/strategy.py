"""How parameters, gradients and optimizer state are spread over the processes: the Strategy protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch


class BatchOutput(NamedTuple):
    """Of some images: logits (b, 10), labels int64 (b,) and losses (b,), all without gradients."""

    logits: Tensor
    labels: Tensor
    losses: Tensor


class Strategy(Protocol):
    """A way to compute gradients."""

    def compute(self, batch: Batch, step: int) -> Sequence[BatchOutput]:
        """Put the gradient of the mean loss over the global batch into `grad`.

        Args:
            step: number of the batch, from which dropout is seeded.

        Returns:
            what this process saw of the batch; its images only, once each.
        """

    def norm(self) -> Tensor:
        """L2 norm of that whole gradient, a tensor () on the device."""

    def clip(self, limit: float) -> Tensor:
        """The same; if it is larger than `limit`, the gradient is scaled down to that."""

    def describe(self) -> str:
        """The way in words, for the console."""


def losses_of(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Each image's loss (b,), in float32 or better."""
    full = logits.float() if logits.itemsize < 4 else logits
    return F.cross_entropy(full, labels, reduction="none", label_smoothing=config.optim.label_smoothing)


def views(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of a flat row, one after the other, each with the shape and the memory format of a dense tensor.

    Of the same memory format, because fused optimizers walk through the memory of gradient and parameter alike.
    """
    pieces, start = [], int(row.storage_offset())
    for tensor in tensors:
        pieces.append(row.as_strided(tensor.shape, tensor.stride(), start))
        start += tensor.numel()
    return pieces


class Whole:
    """Every process keeps the whole model.

    Attributes:
        engine: computes logits of images. Every process must call it alike where it is cut up.
        own: what this process keeps and updates, as plain tensors. It computes nothing where the model is cut up.
        outline: the shapes of the whole model, on whatever device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.engine = self.own = self.outline = model

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors for those that this process keeps, by name: of the model, or `{parameter}/{what}`.

        Every process must call it.
        """
        return dict(tensors)

    def cut(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """What this process keeps of whole tensors, by the same names.

        Args:
            source: where they come from, for the message.

        Raises:
            UserError: one to be cut up is not of the model's shape.
        """
        return dict(tensors)

    def assemble(self, own: nn.Module) -> nn.Module:
        """The whole network of `own`, or of a module with the same tensors. Every process must call it."""
        return own
