"""The train, validation and test sets, each as one uint8 tensor of images and one tensor of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mnist_dist.config.schema import DataConfig
from mnist_dist.data.identity import content_digest, short
from mnist_dist.data.idx import read_pair
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.rng import derive_seed


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 1, 28, 28) and labels int64 (N,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """The images and labels at int64 indices (M,), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> ImageSet:
        """The set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The three sets of a run; `val` is empty with data.val_size=0."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the whole training set (`train`) and of the whole test set (`test`), as the files hold them."""
    total: int = 0
    """Images of the whole training set, from which `train` and `val` are drawn."""

    def to(self, device: torch.device) -> Splits:
        """All three sets on `device`."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))

    @property
    def held_out(self) -> tuple[str, ImageSet]:
        """The set that is evaluated during training, and its name: `val`, or `test` if `val` is empty."""
        return ("val", self.val) if len(self.val) else ("test", self.test)

    @property
    def shown_digests(self) -> dict[str, str]:
        """The digests' first digits, for people."""
        return {f"sha256 of {name}": short(digest) for name, digest in self.digests.items()}

    def describe(self) -> str:
        """The three sizes and the two digests, for the console."""
        digests = f", sha256 {' and '.join(self.shown_digests.values())}" if self.digests else ""
        return f"{len(self.train)} train, {len(self.val)} val, {len(self.test)} test{digests}"


def read_splits(files: Mapping[str, Path], config: DataConfig, seed: int, limit: int = 0) -> Splits:
    """Read the four IDX files and split them. The sets are on the CPU.

    Args:
        files: name to path, as `prepare.provide_files` gives them.
        seed: the run's seed.
        limit: training images to keep; 0 keeps all.

    Raises:
        UserError: a file is damaged or of another kind, or nothing would be left to train on.
    """
    train, test = (
        read_set(files[f"{name}-images-idx3-ubyte"], files[f"{name}-labels-idx1-ubyte"]) for name in ("train", "t10k")
    )
    digests = {"train": content_digest(train.images, train.labels), "test": content_digest(test.images, test.labels)}
    return replace(split(train, test, config, seed, limit), digests=digests)


def read_set(images: Path, labels: Path) -> ImageSet:
    """One pair of IDX files as an ImageSet."""
    pixels, classes = read_pair(images, labels)
    return ImageSet(pixels.unsqueeze(1), classes.to(torch.int64))


def split(train: ImageSet, test: ImageSet, config: DataConfig, seed: int, limit: int = 0) -> Splits:
    """Hold out `data.val_size` random training images for validation; of the others keep `limit` random ones, or all.

    The test set is cut to its first `data.test_limit` images. Which images are held out depends on the seed alone.

    Raises:
        UserError: nothing would be left to train on.
    """
    if config.val_size >= len(train):
        raise UserError(
            f"data.val_size={config.val_size}: leaves nothing to train on, there are {len(train)} training images; "
            f"use {len(train) // 12} or 0"
        )
    kept, held_out = split_indices(len(train), config.val_size, seed, limit)
    tested = torch.arange(min(config.test_limit or len(test), len(test)))
    return Splits(train.subset(kept), train.subset(held_out), test.subset(tested), total=len(train))


def split_indices(total: int, val_size: int, seed: int, limit: int = 0) -> tuple[Tensor, Tensor]:
    """Which of `total` training images a run trains on and which it holds out for validation: int64, sorted.

    Args:
        seed: the run's seed.
        limit: training images to keep; 0 keeps all.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(total, generator=generator)
    held_out, kept = order[:val_size], order[val_size:]
    return (kept[:limit] if limit else kept).sort().values, held_out.sort().values
