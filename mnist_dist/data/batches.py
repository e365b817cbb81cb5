"""The images on the device as one uint8 tensor, and batches gathered, augmented and normalised there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_dist.config import DataConfig
from mnist_dist.data.augment import apply_affine, draw_affine, is_augmented
from mnist_dist.data.order import GlobalBatchSampler, Share
from mnist_dist.errors import UserError
from mnist_dist.seeding import derive_seed


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 1, 28, 28) and labels int64 (N,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at int64 indices (M,), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> ImageSet:
        """The set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The three sets of a run; `val` is empty where nothing is held out."""

    train: ImageSet
    val: ImageSet
    test: ImageSet


def split(train: ImageSet, test: ImageSet, config: DataConfig, seed: int) -> Splits:
    """Hold out `val_size` training images drawn by the seed, then apply the limits.

    Raises:
        UserError: nothing would be left to train on.
    """
    if config.val_size >= len(train):
        raise UserError(
            f"data.val_size={config.val_size}: leaves nothing to train on, there are {len(train)} training images; "
            f"use {len(train) // 12} or 0"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(len(train), generator=generator)
    held_out, kept = order[: config.val_size], order[config.val_size :]
    if config.limit:
        kept = kept[: config.limit]
    tested = torch.arange(min(config.test_limit or len(test), len(test)))
    return Splits(train.take(kept.sort().values), train.take(held_out.sort().values), test.take(tested))


def as_image_set(images: Tensor, labels: Tensor) -> ImageSet:
    """An ImageSet of uint8 images (N, 28, 28) and uint8 labels (N,) as the IDX reader gives them."""
    return ImageSet(images.unsqueeze(1), labels.to(torch.int64))


def normalize(images: Tensor, config: DataConfig) -> Tensor:
    """uint8 images to float32 (pixel / 255 - mean) / std, as one multiplication and one addition."""
    return images.float().mul_(1 / (255 * config.std)).sub_(config.mean / config.std)


@dataclass(frozen=True)
class Batch:
    """One global batch: the size over all processes, and this process's parts, each ready for the model.

    A part is (images float32 (b, 1, 28, 28), labels int64 (b,)); b is 0 where this process has no row of a ragged tail.
    """

    size: int
    parts: tuple[tuple[Tensor, Tensor], ...]


class Batches:
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
            yield Batch(batch.size, tuple(self.gather(share) for share in batch.shares))

    def gather(self, share: Share) -> tuple[Tensor, Tensor]:
        """The images and labels at the share's positions of the epoch's order."""
        rows = self.order[share.start : share.stop]
        images = self.data.images[rows]
        if self.maps is None or not len(share):
            return normalize(images, self.config), self.data.labels[rows]
        moved = apply_affine(images.float(), self.maps[share.start : share.stop])
        return normalize(moved, self.config), self.data.labels[rows]
