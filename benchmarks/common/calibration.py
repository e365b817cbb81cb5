"""Expected calibration error (Guo et al. 2017, arXiv:1706.04599): how far confidence is from accuracy.

Confidences are summed as integers, so the result does not depend on the order of the images or on the batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnist_dist.models.classifier import probabilities

BINS = 15
SCALE = 1 << 24
"""Confidences are counted in units of 1 / SCALE."""


class Calibration:
    """Counts of one evaluation: its collector (`mnist_dist.training.evaluation.Collector`).

    Args:
        model: makes probabilities of its logits.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        """Images by bin: bin i has the confidences above i / BINS, up to (i + 1) / BINS."""
        self.correct = torch.zeros(BINS, dtype=torch.int64)
        self.confidence = torch.zeros(BINS, dtype=torch.int64)
        """Sums of confidences, in units of 1 / SCALE."""

    def add(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Count a batch: logits float32 (B, K), labels int64 (B,)."""
        confidence, predicted = probabilities(self.model, logits).cpu().max(dim=1)
        bins = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
        self.counts.index_add_(0, bins, torch.ones_like(bins))
        self.correct.index_add_(0, bins, (predicted == labels.cpu()).long())
        self.confidence.index_add_(0, bins, (confidence.double() * SCALE).round().long())

    def error(self) -> float:
        """Mean distance of confidence and accuracy over the bins, weighted by their images."""
        gaps = (self.correct * SCALE - self.confidence).abs()
        return int(gaps.sum()) / (SCALE * int(self.counts.sum()))
