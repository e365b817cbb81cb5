"""Evaluate a model over all processes: every image counted exactly once, whatever number of processes divides them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.config.schema import DataConfig
from mnist_dist.data.dataset import ImageSet
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.training.metrics import Counts, Metrics

Note = Callable[[int, Tensor, Tensor, Tensor], None]


def ignore(start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """A Note that keeps nothing."""


def evaluate(
    model: nn.Module,
    data: ImageSet,
    config: DataConfig,
    runtime: Runtime,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
    note: Note = ignore,
) -> Metrics:
    """Metrics of the unwrapped model on a whole set; the same on every process.

    The set is cut into batches that do not depend on the number of processes, so that nor does any rounding.

    Args:
        model: not the data-parallel wrapper, whose exchanges an uneven share would block. Set to eval mode here.
        data: the whole set, on this process's device.
        batch_size: images of one batch.
        between: called now and then, equally often on every process; what it raises ends the evaluation.
        note: given, of each batch of this process in the order of the set, the place of its first image in it, its
            logits float32 (B, 10), labels and losses float32 (B,), all on the device.
    """
    model.eval()
    counts = Counts(runtime.device)

    def predict(start: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = slice(start, start + batch_size)
        with torch.no_grad(), runtime.autocast():  # both are a thread's own
            logits = model(normalize(data.images[rows], config)).float()
        return logits, data.labels[rows], F.cross_entropy(logits, data.labels[rows], reduction="none")

    mine, stride = runtime.local_shards * batch_size, runtime.world_size * runtime.local_shards * batch_size
    for first in range(runtime.rank * mine, len(data) + runtime.rank * mine, stride):
        starts = range(first, min(first + mine, len(data)), batch_size)
        for start, predictions in zip(starts, runtime.map(predict, starts), strict=True):
            counts.add(*predictions)
            note(start, *predictions)
        between()
    return Metrics.from_counts(runtime.all_reduce_sum(counts.tensor).tolist())
