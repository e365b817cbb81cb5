"""Batches on the device: gathered by index from images that already live there, then augmented and normalised.

A `torch.utils.data.DataLoader` collates sample by sample on the CPU, which for images this small costs about as much as
the training itself; here a batch is one indexing operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mnist_dist.config.sections import DataConfig
from mnist_dist.data.augment import apply_affine, is_augmented, random_affine, random_displacement
from mnist_dist.data.dataset import ImageSet
from mnist_dist.data.sampler import BatchSlice, GlobalBatchSampler

Gather = Callable[[BatchSlice], tuple[Tensor, Tensor]]


class DeviceLoader:
    """The global batches of one epoch, on the device of the data set.

    The epoch's order and augmentation are copied to the device once, so that no step waits for a transfer.

    Args:
        data: the data set, on the device.
        sampler: the epoch, the first batch in it, and this process's shards of each batch.
        config: normalisation and augmentation.
        augment: False leaves out the augmentation that `config` asks for.
        measured: makes of the function that gathers images one whose time is measured.
    """

    def __init__(
        self,
        data: ImageSet,
        sampler: GlobalBatchSampler,
        config: DataConfig,
        *,
        augment: bool,
        measured: Callable[[Gather], Gather] = lambda gather: gather,
    ) -> None:
        self.data, self.sampler, self.config = data, sampler, config
        self.measured_gather = measured(self.gather)
        device = data.images.device
        self.order = sampler.permutation().to(device)
        self.theta: Tensor | None = None
        self.displacement: Tensor | None = None
        if augment and is_augmented(config):
            self.theta = random_affine(config, len(data), sampler.seed, sampler.epoch).to(device)
            displacement = random_displacement(config, len(data), sampler.seed, sampler.epoch)
            self.displacement = None if displacement is None else displacement.to(device)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.sampler.batches():
            yield Batch(batch.size, batch.shards, self.measured_gather)

    def gather(self, positions: BatchSlice) -> tuple[Tensor, Tensor]:
        """Images float32 (b, 1, 28, 28), ready for the model, and labels int64 (b,) of a slice of the epoch's order."""
        part = slice(positions.start, positions.stop)
        rows = self.order[part]
        images, labels = self.data.images.index_select(0, rows), self.data.labels.index_select(0, rows)
        if self.theta is None or not len(positions):
            return normalize(images, self.config), labels
        displacement = None if self.displacement is None else self.displacement[part]
        augmented = apply_affine(images.float(), self.theta[part], displacement)
        return normalize(augmented, self.config), labels


@dataclass(frozen=True)
class Batch:
    """One global batch, of which this process computes its shards."""

    size: int
    """Images over all processes."""
    shards: tuple[tuple[BatchSlice, ...], ...]
    """This process's shards, each as its microbatches."""
    gather: Gather

    def microbatches(self, shard: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels of one of this process's shards (counted from 0), by microbatch.

        Images are float32 (b, 1, 28, 28), ready for the model; labels are int64 (b,). In an epoch's last batch b may be
        0. Each microbatch is gathered when it is asked for, so that threads can share this work.
        """
        return map(self.gather, self.shards[shard])


def normalize(images: Tensor, config: DataConfig) -> Tensor:
    """Images of any shape, with pixels 0 to 255, to float32 (pixel / 255 - mean) / std."""
    return images.float().mul_(1 / (255 * config.std)).sub_(config.mean / config.std)
