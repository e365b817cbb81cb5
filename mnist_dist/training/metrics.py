"""Exact metrics: count on the device, all-reduce, divide once.

All sums are integers, the loss too (in units of 2**-24), so they do not depend on the order of addition. Any number of
ranks gives the same metrics for the same predictions, and one all-reduce of one int64 tensor sums them.

Why not a library: accelerate's `gather_for_metrics` drops the duplicates of the last batch only for a DataLoader that
accelerate prepared, and metric libraries sum floats, in an order that depends on the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_dist.checkpoint.state import NormSums
from mnist_dist.config.data_sets import MAX_MATRIX_CLASSES
from mnist_dist.utils.errors import UserError

LOSS_SCALE = 1 << 24  # losses are counted in units of 1 / LOSS_SCALE, about 6e-8
MAX_LOSS = float(1 << 14)  # larger losses count as this one, so that the sum over 2**24 images fits into 63 bits
MAX_PENDING = 50  # batches that are counted together


LOSS, NONFINITE, TOP2, CONFUSION = 0, 1, 2, 3  # indices in the tensor of counts; the confusion matrix is the rest of it


class Counts:
    """Counts of predictions on this rank: loss sum, non-finite losses, top-2 hits and confusion matrix.

    They are one int64 tensor (3 + K * K,) of K classes, on the device. Up to 50 batches are counted together: counting
    takes about ten small kernels, and launching them in every step would take longer than running them.

    Args:
        num_classes: K.
        tensor: earlier counts, int64 (3 + K * K,), to add to; zeros by default.
    """

    def __init__(self, device: torch.device, num_classes: int = 10, tensor: Tensor | None = None) -> None:
        self.num_classes = num_classes
        zeros = torch.zeros(CONFUSION + num_classes**2, dtype=torch.int64, device=device)
        self.totals = zeros if tensor is None else tensor.to(device)
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []  # batches that are not in the totals yet

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Count one batch. Does not wait for the device.

        The tensors are kept, not copied: do not modify them afterwards.

        Args:
            logits: (B, K), any floating dtype, without gradients.
            labels: int64 (B,).
            losses: loss of each image, any floating dtype (B,), without gradients.
        """
        self.pending.append((logits, labels, losses))
        if len(self.pending) == MAX_PENDING:
            self.flush()

    @property
    def tensor(self) -> Tensor:
        """Counts of all batches so far, int64 (3 + K * K,). The same tensor each time, not a copy."""
        self.flush()
        return self.totals

    @torch.no_grad()
    def flush(self) -> None:
        """Add the pending batches to the totals."""
        if not self.pending:
            return
        logits, labels, losses = (torch.cat(tensors) for tensors in zip(*self.pending, strict=True))
        self.pending = []
        losses = losses.float()
        finite = torch.isfinite(losses)
        scaled = losses.nan_to_num(0, 0, 0).clamp(max=MAX_LOSS).mul(LOSS_SCALE).round().to(torch.int64)
        # The negation counts nan as likelier than the label: with `logits > ...`, a model whose output is nan would
        # have a top-2 accuracy of 1.
        likelier = (~(logits <= logits.gather(1, labels[:, None]))).sum(1)
        indices = labels * self.num_classes + logits.argmax(1)
        self.totals[LOSS] += scaled.sum()
        self.totals[NONFINITE] += (~finite).sum()
        self.totals[TOP2] += (likelier < 2).sum()
        self.totals[CONFUSION:].scatter_add_(0, indices, torch.ones_like(indices))  # of integers: exact in any order

    def merge(self, other: Counts) -> None:
        """Add the counts of `other`."""
        self.tensor.add_(other.tensor)

    def clear(self) -> None:
        """Set all counts to zero."""
        self.pending = []
        self.totals.zero_()

    def restore(self, values: list[int], *, keep: bool) -> None:
        """Load the counts of a checkpoint.

        Args:
            values: the counts, summed over all ranks, as `pack_counts` gives them.
            keep: False sets all counts to zero instead: one rank keeps the sums, so that they are not added twice.

        Raises:
            UserError: they are of another number of classes.
        """
        self.clear()
        dense = unpack_counts(values, self.num_classes)
        if dense is None:
            raise UserError(f"the checkpoint's metrics ({len(values)} counts) are not of {self.num_classes} classes")
        if keep:
            self.totals.copy_(torch.tensor(dense))


def pack_counts(values: list[int]) -> list[int]:
    """Counts for a checkpoint: all of them; of more than MAX_MATRIX_CLASSES classes, only cells that are not 0.

    These follow the first three counts as pairs: index in the confusion matrix, count.
    """
    if len(values) <= CONFUSION + MAX_MATRIX_CLASSES**2:
        return values
    cells = enumerate(values[CONFUSION:])
    return values[:CONFUSION] + [number for index, count in cells if count for number in (index, count)]


def unpack_counts(values: list[int], num_classes: int) -> list[int] | None:
    """All counts of K classes from `pack_counts`; None if they are not of K classes."""
    size = CONFUSION + num_classes**2
    if num_classes <= MAX_MATRIX_CLASSES:
        return values if len(values) == size else None
    dense, indices = values[:CONFUSION] + [0] * num_classes**2, values[CONFUSION::2]
    is_packed = len(values) % 2 == 1 and len(values) >= CONFUSION and indices == sorted(set(indices))
    if not is_packed or max(indices, default=0) >= num_classes**2:
        return None
    for index, count in zip(indices, values[CONFUSION + 1 :: 2], strict=True):
        dense[CONFUSION + index] = count
    return dense


@dataclass(frozen=True)
class Metrics:
    """Metrics of counts that were summed over all ranks."""

    count: int
    """Images."""
    correct: int
    """Images whose most likely class is the label."""
    top2_correct: int
    """Images with fewer than two classes more likely than the label."""
    nonfinite: int
    """Images whose loss was not finite."""
    loss_sum: float
    """Sum of the finite losses, each clamped to 2**14."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by label (row) and predicted class (column)."""

    @classmethod
    def from_counts(cls, values: list[int]) -> Metrics:
        """Metrics of the integers of `Counts.tensor`."""
        matrix = values[CONFUSION:]
        size = math.isqrt(len(matrix))
        confusion = tuple(tuple(matrix[row * size : (row + 1) * size]) for row in range(size))
        return cls(
            count=sum(matrix),
            correct=sum(row[i] for i, row in enumerate(confusion)),
            top2_correct=values[TOP2],
            nonfinite=values[NONFINITE],
            loss_sum=values[LOSS] / LOSS_SCALE,
            confusion=confusion,
        )

    @property
    def loss(self) -> float:
        """Mean loss per image; nan if the loss of any image was not finite, or without images."""
        return math.nan if self.nonfinite or not self.count else self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Fraction of images whose most likely class is the label; nan without images."""
        return ratio(self.correct, self.count)

    @property
    def top2(self) -> float:
        """Fraction of images with fewer than two classes more likely than the label; nan without images."""
        return ratio(self.top2_correct, self.count)

    def recall(self) -> list[float]:
        """For each class, the fraction of its images that were predicted as it; nan for a class without images."""
        return [ratio(row[i], sum(row)) for i, row in enumerate(self.confusion)]

    def precision(self) -> list[float]:
        """For each class, the fraction of its predictions that were right; nan for a class without predictions."""
        return [ratio(column[i], sum(column)) for i, column in enumerate(zip(*self.confusion, strict=True))]

    def row(self, prefix: str) -> dict[str, float]:
        """The scalars under `{prefix}.{name}`, for metrics.jsonl and summary.json."""
        values = {"loss": self.loss, "accuracy": self.accuracy, "top2": self.top2}
        return {f"{prefix}.{name}": value for name, value in values.items()} | {
            f"{prefix}.correct": self.correct,
            f"{prefix}.count": self.count,
        }

    def details(self, prefix: str) -> dict[str, list[Any]]:
        """Precision and recall of each class and the confusion matrix, as lists, under `{prefix}.{name}`.

        Of more than MAX_MATRIX_CLASSES classes, `confusion_cells` instead of the matrix: label, prediction and count of
        each cell that is not 0.
        """
        details: dict[str, list[Any]] = {f"{prefix}.precision": self.precision(), f"{prefix}.recall": self.recall()}
        if len(self.confusion) <= MAX_MATRIX_CLASSES:
            return details | {f"{prefix}.confusion": [list(row) for row in self.confusion]}
        cells = [
            [label, predicted, count]
            for label, row in enumerate(self.confusion)
            for predicted, count in enumerate(row)
            if count
        ]
        return details | {f"{prefix}.confusion_cells": cells}


class GradientNorms:
    """Mean and maximum gradient norm of the updates since the last row of metrics.

    The gradient is the same on every rank, and so are its norms: nothing is reduced over ranks. Norms stay on the
    device until a row or a checkpoint needs them.
    """

    def __init__(self) -> None:
        self.sums = NormSums()
        self.pending: list[Tensor] = []  # norms that are not in the sums yet

    def add(self, norm: Tensor) -> None:
        """Add the norm of an update. Does not wait for the device.

        Args:
            norm: a tensor () on the device. It is kept, not copied: do not modify it afterwards.
        """
        self.pending.append(norm)

    def collect(self) -> NormSums:
        """Sums over all norms so far. Waits for the device."""
        sums = self.sums
        for norm in torch.stack(self.pending).tolist() if self.pending else []:
            sums.count += 1
            if math.isfinite(norm):
                sums.total += norm
                sums.most = max(sums.most, norm)
            else:
                sums.nonfinite += 1
        self.pending = []
        return sums

    def row(self) -> dict[str, float]:
        """Mean and maximum, for metrics.jsonl; nan if any norm was not finite, or without updates."""
        sums = self.collect()
        finite = sums.count and not sums.nonfinite
        return {
            "gradient.norm": sums.total / sums.count if finite else math.nan,
            "gradient.norm_max": sums.most if finite else math.nan,
        }

    def clear(self) -> None:
        """Forget all norms."""
        self.restore(NormSums())

    def restore(self, sums: NormSums) -> None:
        """Continue from the sums of a checkpoint."""
        self.sums, self.pending = sums, []


def ratio(part: int, total: int) -> float:
    """part / total; nan if the total is 0."""
    return part / total if total else math.nan
