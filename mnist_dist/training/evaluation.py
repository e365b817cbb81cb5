"""Evaluate a model on all ranks; every image is counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.config.sections import DataConfig
from mnist_dist.data.dataset import ImageSet
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.training.metrics import Counts, Metrics


class Collector(Protocol):
    """Collects the predictions of an evaluation on this rank."""

    def add(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Add a batch. Batches come in the order of the set.

        Args:
            start: index of the batch's first image in the set.
            logits: float32 (B, K), on the device.
            labels: int64 (B,), on the device.
            losses: float32 (B,), on the device.
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
    """Metrics of a model on a set of images, the same on every rank. Every rank must call it.

    The batches do not depend on the number of ranks, so neither does rounding. Each rank evaluates some of them.

    Args:
        model: not wrapped in DDP, whose collectives would wait for ranks that have fewer batches. It is left in eval
            mode.
        data: the same set on every rank, on its device.
        config: the classes, and mean and std of the pixels.
        batch_size: images per forward pass.
        check_stop: called after each round of batches, equally often on every rank. If it raises, the evaluation ends.
        collector: given each batch of this rank.
    """
    model.eval()
    counts = Counts(runtime.device, len(config.class_names))

    def predict(start: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = slice(start, start + batch_size)
        with torch.no_grad(), runtime.mixed_precision.autocast():  # both are thread-local
            logits = model(normalize(data.images[rows], config)).float()
        return logits, data.labels[rows], F.cross_entropy(logits, data.labels[rows], reduction="none")

    for starts in batch_rounds(len(data), batch_size, runtime.rank, runtime.world_size, runtime.num_local_shards):
        for start, predictions in zip(starts, runtime.map(predict, starts), strict=True):
            counts.add(*predictions)
            if collector is not None:
                collector.add(start, *predictions)
        check_stop()
    return Metrics.from_counts(runtime.all_reduce_sum(counts.tensor).tolist())


def batch_rounds(images: int, batch_size: int, rank: int, world_size: int, local_shards: int) -> Iterator[range]:
    """The batches of an evaluation that a rank computes, by their first images; equally many rounds on every rank.

    In each round, each rank evaluates as many consecutive batches as it has shards, which run on its threads.

    Args:
        images: number of images of the set.
        local_shards: shards of each rank; 1 without fixed shards.
    """
    per_rank = local_shards * batch_size
    per_round = world_size * per_rank
    for first in range(rank * per_rank, images + rank * per_rank, per_round):
        yield range(first, min(first + per_rank, images), batch_size)
