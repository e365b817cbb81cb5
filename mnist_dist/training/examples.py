"""The worst mistakes and the first images of an evaluation, whatever the number of ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mnist_dist.models.classifier import probabilities
from mnist_dist.tracking.media import Example

INDEX, LOSS, LABEL, LOGITS = 0, 1, 2, 3  # columns of an example's row; the logits are the rest of it

Examples = tuple[Example, ...]


class ExampleCollector:
    """Collects the predictions of an evaluation on this rank, and selects the worst mistakes and the first images.

    All predictions are kept until the collector is dropped: of ten classes 52 bytes per image, less than a tenth of the
    image itself.

    Args:
        count: number of mistakes and of first images to select.
        num_classes: K.
    """

    def __init__(self, count: int, num_classes: int = 10) -> None:
        self.count, self.num_classes = count, num_classes
        self.batches: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def add(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """See `evaluation.Collector`. Does not wait for the device."""
        if self.count:
            self.batches.append((start, logits, labels, losses))

    def rows(self, device: torch.device) -> Tensor:
        """Rows of this rank's mistakes with the largest losses, then of its first images: float32 (2 * count, 3 + K).

        A row has the index of the image (exact: below 2**24), loss, label and logits. Rows that are not used are -1.
        """
        rows = torch.full((2 * self.count, LOGITS + self.num_classes), -1.0, device=device)
        if not self.batches:
            return rows
        found = torch.cat([as_rows(*batch) for batch in self.batches])
        wrong = found[:, LOGITS:].argmax(1) != found[:, LABEL]
        # A loss of nan counts as infinite. Rows are in the order of the set, so that among equal losses the first image
        # comes first.
        loss = torch.where(wrong, found[:, LOSS].nan_to_num(torch.inf, torch.inf), -1.0)
        worst = loss.argsort(descending=True, stable=True)[: self.count]
        rows[: len(worst)] = torch.where(wrong[worst, None], found[worst], -1.0)
        for start, *batch in self.batches:
            if start < self.count:
                first = as_rows(start, *batch)[: self.count - start]
                rows[self.count + start : self.count + start + len(first)] = first
        return rows


def as_rows(start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """A batch as rows, float32 (B, 3 + K)."""
    index = torch.arange(start, start + len(labels), device=labels.device)
    return torch.cat([torch.stack([index, losses, labels], 1), logits], 1).float()


def select_examples(rows: Tensor, count: int, images: Tensor, model: nn.Module) -> tuple[Examples, Examples]:
    """The worst mistakes, by falling loss, and the first images, from `ExampleCollector.rows` of all ranks in order.

    Args:
        rows: float32 (R * 2 * count, 3 + K), of R ranks.
        count: as in `ExampleCollector`.
        images: uint8 (N, 1, 28, 28), the set.
        model: its probabilities are shown.
    """
    present = [(number // count % 2, row) for number, row in enumerate(rows.tolist()) if row[INDEX] >= 0]
    worst = sorted((row for kind, row in present if kind == 0), key=lambda row: (-loss_or_inf(row), row[INDEX]))
    first = sorted((row for kind, row in present if kind == 1), key=lambda row: row[INDEX])
    return as_examples(worst[:count], images, model), as_examples(first, images, model)


def as_examples(rows: list[list[float]], images: Tensor, model: nn.Module) -> Examples:
    """Rows as examples, with their images and probabilities."""
    if not rows:
        return ()
    table = torch.tensor(rows)
    indices = table[:, INDEX].long()
    shown = images[indices.to(images.device), 0].cpu().numpy()
    chances = probabilities(model, table[:, LOGITS:]).tolist()
    predicted = table[:, LOGITS:].argmax(1).tolist()
    return tuple(
        Example(index, shown[i], int(rows[i][LABEL]), predicted[i], tuple(chances[i]), rows[i][LOSS])
        for i, index in enumerate(indices.tolist())
    )


def loss_or_inf(row: list[float]) -> float:
    """The loss, by which mistakes are sorted; infinity for nan."""
    return math.inf if math.isnan(row[LOSS]) else row[LOSS]
