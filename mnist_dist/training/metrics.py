"""Exact metrics: count on the device, add over processes, divide once.

Everything is an integer, the loss too (in units of 2**-24), so sums do not depend on their order: any number of
processes gives the same metrics for the same predictions, and one all-reduce of one int64 tensor carries them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_dist.checkpoint.state import NormSums
from mnist_dist.utils.errors import UserError

CLASSES = 10
LOSS_UNIT = 1 << 24  # resolution 6e-8 an image
LOSS_LIMIT = float(1 << 14)  # one image's loss counts as this at most, so that 2**24 of them still fit into 63 bits
LOSS, NONFINITE, TOP2, CONFUSION = 0, 1, 2, 3  # places in the tensor; the confusion matrix fills the rest
SIZE = CONFUSION + CLASSES * CLASSES
MOST_WAITING = 50  # batches that are counted at once


class Counts:
    """Sums over the images seen so far, as one int64 tensor (103,) on the device.

    Predictions wait in a list and are counted many batches at a time: a dozen small kernels a step would cost more than
    they compute.

    Args:
        tensor: earlier counts to go on from; zeros where absent.
    """

    def __init__(self, device: torch.device, tensor: Tensor | None = None) -> None:
        self.counted = torch.zeros(SIZE, dtype=torch.int64, device=device) if tensor is None else tensor.to(device)
        self.cells = torch.arange(CLASSES * CLASSES, device=device)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Count one batch, without waiting for the device. The tensors must keep their values.

        Args:
            logits: (B, 10), any floating dtype, without gradients.
            labels: int64 (B,).
            losses: each image's loss, float (B,), without gradients.
        """
        self.waiting.append((logits, labels, losses))
        if len(self.waiting) == MOST_WAITING:
            self.count()

    @property
    def tensor(self) -> Tensor:
        """The counts of everything that was added. Later ones are added to the same tensor."""
        self.count()
        return self.counted

    @torch.no_grad()
    def count(self) -> None:
        """Count the predictions that wait."""
        if not self.waiting:
            return
        logits, labels, losses = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        losses = losses.float()
        finite = torch.isfinite(losses)
        units = losses.nan_to_num(0, 0, 0).clamp(max=LOSS_LIMIT).mul(LOSS_UNIT).round().to(torch.int64)
        # Not `logits > truth`, or a net that gives nothing but nan would seem to be right.
        rank_of_truth = (~(logits <= logits.gather(1, labels[:, None]))).sum(1)
        cells = labels * CLASSES + logits.argmax(1)
        self.counted[LOSS] += units.sum()
        self.counted[NONFINITE] += (~finite).sum()
        self.counted[TOP2] += (rank_of_truth < 2).sum()
        self.counted[CONFUSION:] += (cells[:, None] == self.cells).sum(0)

    def merge(self, other: Counts) -> None:
        """Add the counts of `other`."""
        self.tensor.add_(other.tensor)

    def clear(self) -> None:
        """Start again from zero."""
        self.waiting = []
        self.counted.zero_()

    def restore(self, values: list[int], *, keep: bool) -> None:
        """Go on from counts that a checkpoint holds.

        Args:
            keep: False starts from zero instead, as all processes but one do with sums over all of them.

        Raises:
            UserError: they are of another number of classes.
        """
        self.clear()
        if len(values) != len(self.counted):
            raise UserError(f"the checkpoint holds {len(values)} counts, this run's metrics {len(self.counted)}")
        if keep:
            self.counted.copy_(torch.tensor(values))


@dataclass(frozen=True)
class Metrics:
    """What counts say, once they are summed over all processes."""

    count: int
    correct: int
    top2_correct: int
    nonfinite: int
    loss_sum: float
    confusion: tuple[tuple[int, ...], ...]
    """Row: the true class. Column: the predicted one."""

    @classmethod
    def from_counts(cls, values: list[int]) -> Metrics:
        """Read the 103 integers of `Counts.tensor`."""
        cells = values[CONFUSION:]
        confusion = tuple(tuple(cells[row * CLASSES : (row + 1) * CLASSES]) for row in range(CLASSES))
        return cls(
            count=sum(cells),
            correct=sum(confusion[i][i] for i in range(CLASSES)),
            top2_correct=values[TOP2],
            nonfinite=values[NONFINITE],
            loss_sum=values[LOSS] / LOSS_UNIT,
            confusion=confusion,
        )

    @property
    def loss(self) -> float:
        """Mean loss an image; nan if any image's loss was not finite, or there was none."""
        return math.nan if self.nonfinite or not self.count else self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Fraction of images whose most likely class is the true one; nan without images."""
        return self.correct / self.count if self.count else math.nan

    @property
    def top2(self) -> float:
        """Fraction of images with fewer than two classes more likely than the true one; nan without images."""
        return self.top2_correct / self.count if self.count else math.nan

    def recall(self) -> list[float]:
        """For each class, the fraction of its images that were recognised; nan for a class without images."""
        return [ratio(row[i], sum(row)) for i, row in enumerate(self.confusion)]

    def precision(self) -> list[float]:
        """For each class, the fraction of its predictions that were right; nan for one never predicted."""
        return [ratio(column[i], sum(column)) for i, column in enumerate(zip(*self.confusion, strict=True))]

    def row(self, prefix: str) -> dict[str, float]:
        """The scalars as they appear in metrics.jsonl and summary.json."""
        values = {"loss": self.loss, "accuracy": self.accuracy, "top2": self.top2}
        return {f"{prefix}.{name}": value for name, value in values.items()} | {
            f"{prefix}.correct": self.correct,
            f"{prefix}.count": self.count,
        }

    def details(self, prefix: str) -> dict[str, list[Any]]:
        """What is known of each class, as it appears beside `row`: precision, recall, and the rows of the matrix."""
        return {
            f"{prefix}.precision": self.precision(),
            f"{prefix}.recall": self.recall(),
            f"{prefix}.confusion": [list(row) for row in self.confusion],
        }


def ratio(part: int, whole: int) -> float:
    """part / whole; nan where there is nothing."""
    return part / whole if whole else math.nan


class GradientNorms:
    """The norms of the updates since the last row. They are the same on every process, so nothing is exchanged."""

    def __init__(self) -> None:
        self.sums = NormSums()
        self.waiting: list[Tensor] = []

    def add(self, norm: Tensor) -> None:
        """Note an update's norm, a tensor () on the device, without waiting for it. The tensor must keep its value."""
        self.waiting.append(norm)

    def collect(self) -> NormSums:
        """The sums over everything that was added. CommTimer for the device."""
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
