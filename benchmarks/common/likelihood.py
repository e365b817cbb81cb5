"""Negative log-likelihood of labels, at the temperature that is best for a net (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INVERSE_TEMPERATURES = [step / 10 for step in range(1, 51)]
"""The factors of the logits that are tried: 0.1 to 5."""


class LogitCollector:
    """Collects the logits of an evaluation on one process (`mnist_dist.training.evaluation.Collector`)."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def add(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Keep a batch: logits float32 (B, K)."""
        self.batches.append(logits.cpu())

    def logits(self) -> Tensor:
        """The logits of all images, float32 (N, K), in their order."""
        return torch.cat(self.batches)


def negative_log_likelihood(logits: Tensor, labels: Tensor, inverse_temperature: float = 1.0) -> float:
    """Mean over the images, in nats, of logits float (N, K) times a factor and labels int64 (N,)."""
    return F.cross_entropy(logits.double() * inverse_temperature, labels).item()


def best_inverse_temperature(logits: Tensor, labels: Tensor) -> float:
    """The factor of the logits that makes the labels most likely, among `INVERSE_TEMPERATURES`."""
    return min(INVERSE_TEMPERATURES, key=lambda factor: negative_log_likelihood(logits, labels, factor))
