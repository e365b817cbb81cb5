"""DeviceLoader gathered from images that live on the device, augmented and normalised there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mnist_dist.config.schema import DataConfig
from mnist_dist.data.augment import apply_affine, draw_affine, is_augmented
from mnist_dist.data.dataset import ImageSet
from mnist_dist.data.sampler import BatchSlice, GlobalBatchSampler


def normalize(images: Tensor, config: DataConfig) -> Tensor:
    """uint8 images to float32 (pixel / 255 - mean) / std, as one multiplication and one addition."""
    return images.float().mul_(1 / (255 * config.std)).sub_(config.mean / config.std)


@dataclass(frozen=True)
class Batch:
    """One global batch: the size over all processes, and this process's shards of it."""

    size: int
    shards: tuple[tuple[BatchSlice, ...], ...]
    gather: Callable[[BatchSlice], tuple[Tensor, Tensor]]

    def parts(self, shard: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The accumulated parts of one of this process's shards (counted from 0), each ready for the model.

        A part is (images float32 (b, 1, 28, 28), labels int64 (b,)); b is 0 where a ragged tail has no row for it. Each
        is gathered when it is asked for, so that several threads may share that work.
        """
        return map(self.gather, self.shards[shard])


class DeviceLoader:
    """One epoch's batches for this process, gathered from a set that lives on the device.

    The epoch's order and augmentation go to the device once, so that a step starts no transfer.
    """

    def __init__(self, data: ImageSet, sampler: GlobalBatchSampler, config: DataConfig, *, augment: bool) -> None:
        self.data, self.sampler, self.config = data, sampler, config
        device = data.images.device
        self.order = sampler.permutation().to(device)
        self.maps: Tensor | None = None
        if augment and is_augmented(config):
            self.maps = draw_affine(config, len(data), sampler.seed, sampler.epoch).to(device)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.sampler.batches():
            yield Batch(batch.size, batch.shards, self.gather)

    def gather(self, share: BatchSlice) -> tuple[Tensor, Tensor]:
        """The images and labels at the share's positions of the epoch's order."""
        rows = self.order[share.start : share.stop]
        images = self.data.images[rows]
        if self.maps is None or not len(share):
            return normalize(images, self.config), self.data.labels[rows]
        moved = apply_affine(images.float(), self.maps[share.start : share.stop])
        return normalize(moved, self.config), self.data.labels[rows]
