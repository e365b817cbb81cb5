"""Evaluate a model over all processes: every image counted exactly once, whatever number of processes divides them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mnist_dist.config import DataConfig
from mnist_dist.data.batches import normalize
from mnist_dist.data.order import share_of
from mnist_dist.data.splits import ImageSet
from mnist_dist.metrics import Counts, Metrics
from mnist_dist.runtime import Runtime


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageSet,
    config: DataConfig,
    runtime: Runtime,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
) -> Metrics:
    """Metrics of the unwrapped model on a whole set; the same on every process.

    Args:
        model: not the data-parallel wrapper, whose exchanges an uneven share would block. Set to eval mode here.
        data: the whole set, on this process's device.
        batch_size: images each process evaluates at a time.
        between: called after each batch, equally often on every process; what it raises ends the evaluation.
    """
    model.eval()
    counts = Counts(runtime.device)
    stride = batch_size * runtime.world_size
    for start in range(0, len(data), stride):
        share = share_of(start, min(start + stride, len(data)), runtime.rank, runtime.world_size)
        if len(share):
            labels = data.labels[share.start : share.stop]
            with runtime.autocast():
                logits = model(normalize(data.images[share.start : share.stop], config)).float()
            counts.add(logits, labels, F.cross_entropy(logits, labels, reduction="none"))
        between()
    return Metrics.from_counts(runtime.sum(counts.tensor).tolist())
