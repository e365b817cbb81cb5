"""Evaluate a model on all ranks: every image is counted exactly once, at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.config.schema import DataConfig
from mnist_dist.data.dataset import ImageSet
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.training.metrics import Counts, Metrics


class Collector(Protocol):
    """Keeps predictions of an evaluation beside the counts."""

    def add(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Take a batch of this rank; batches come in the order of the set.

        Args:
            start: index of its first image in the set.
            logits: float32 (B, 10), on the device.
            labels: int64 (B,).
            losses: float32 (B,).
        """


def evaluate(
    model: nn.Module,
    data: ImageSet,
    config: DataConfig,
    runtime: Runtime,
    batch_size: int,
    check_stop: Callable[[], None] = lambda: None,
    collector: Collector | None = None,
) -> Metrics:
    """Metrics of a model on a whole set, the same on every rank.

    The set is split into batches that do not depend on the number of ranks, so that no rounding does.

    Args:
        model: not wrapped: DDP's exchanges would wait for a rank that has fewer batches. Set to eval mode here.
        data: the whole set, on this rank's device.
        batch_size: images of one batch.
        check_stop: called between batches, equally often on every rank; what it raises ends the evaluation.
        collector: given each batch of this rank.
    """
    model.eval()
    counts = Counts(runtime.device)

    def predict(start: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = slice(start, start + batch_size)
        with torch.no_grad(), runtime.mixed_precision.autocast():  # here, because both are local to a thread
            logits = model(normalize(data.images[rows], config)).float()
        return logits, data.labels[rows], F.cross_entropy(logits, data.labels[rows], reduction="none")

    # In rounds of as many batches per rank as it has threads for.
    own, stride = runtime.local_shards * batch_size, runtime.world_size * runtime.local_shards * batch_size
    for first in range(runtime.rank * own, len(data) + runtime.rank * own, stride):
        starts = range(first, min(first + own, len(data)), batch_size)
        for start, predictions in zip(starts, runtime.map(predict, starts), strict=True):
            counts.add(*predictions)
            if collector is not None:
                collector.add(start, *predictions)
        check_stop()
    return Metrics.from_counts(runtime.all_reduce_sum(counts.tensor).tolist())
