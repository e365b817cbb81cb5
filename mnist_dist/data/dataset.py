"""The train, validation and test sets, each as one uint8 tensor of images and one tensor of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mnist_dist.config.data_sets import CLASS_NAMES, MIN_CLASSES
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.identity import content_digest, short
from mnist_dist.data.idx import INTEGERS, UINT8, LabelFormat, read_pair
from mnist_dist.data.sets import DATA_SETS, SPLITS, TRAIN_LABELS
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
        return ImageSet(self.images.index_select(0, indices), self.labels.index_select(0, indices))

    def to(self, device: torch.device) -> ImageSet:
        """The set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The three sets of a run; `val` is empty with data.val_size=0."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    name: str = "mnist"
    """As data.name says."""
    class_names: tuple[str, ...] = CLASS_NAMES["mnist"]
    """Names of the classes, in the order of the labels."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the whole training set (`train`) and of the whole test set (`test`), as `identity.content_digest`."""
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
        """The name, the number of classes, the three sizes and the two digests, for the console."""
        digests = f", sha256 {' and '.join(self.shown_digests.values())}" if self.digests else ""
        sizes = f"{len(self.train)} train, {len(self.val)} val, {len(self.test)} test"
        return f"{self.name}, {len(self.class_names)} classes: {sizes}{digests}"


def read_splits(files: Mapping[str, Path], config: DataConfig, seed: int, limit: int = 0) -> Splits:
    """Read the four IDX files and split them. The sets are on the CPU.

    Args:
        files: role to path, as `prepare.provide_files` gives them.
        seed: the run's seed.
        limit: training images to keep; 0 keeps all.

    Raises:
        UserError: a file is damaged or of another kind, a label is beyond the classes, or nothing would be left to
            train on.
    """
    train, test = (ImageSet(*read_pair_of(files, name, config)) for name in ("train", "test"))
    digests = {"train": content_digest(train.images, train.labels), "test": content_digest(test.images, test.labels)}
    names = config.class_names or number_classes(train, test, files)
    return replace(split(train, test, config, seed, limit), name=config.name, class_names=names, digests=digests)


def read_pair_of(files: Mapping[str, Path], split: str, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 28, 28), the right way round, and labels int64 (N,) from 0, of `train` or `test`.

    Raises:
        UserError: a file is damaged or of another kind, or a label is beyond the classes.
    """
    data_set, count = DATA_SETS[config.name], len(config.class_names)
    hint = "; --data.name=idx takes any number of classes"
    if config.name == "idx":
        hint = f", as data.classes has {count} names" if count else ""
    kinds = (UINT8,) if data_set.label_types == ("ubyte",) else tuple(INTEGERS)
    form = LabelFormat(count, data_set.first_label, data_set.label_columns, kinds, hint)
    images_role, labels_role = SPLITS[split]
    images, labels = read_pair(files[images_role], files[labels_role], form)
    if data_set.transposed:
        images = images.mT.contiguous()
    return images.unsqueeze(1), labels.to(torch.int64)


def number_classes(train: ImageSet, test: ImageSet, files: Mapping[str, Path]) -> tuple[str, ...]:
    """Names of classes that have none: their labels, from 0 to the largest one that occurs.

    Raises:
        UserError: there is one class only.
    """
    count = int(max(train.labels.max(), test.labels.max())) + 1
    if count < MIN_CLASSES:
        raise UserError(f"{files[TRAIN_LABELS]}: all labels are 0; a data set has at least {MIN_CLASSES} classes")
    return tuple(map(str, range(count)))


def name_classes(config: Config, splits: Splits) -> Config:
    """The configuration with the names of all classes: idx has none before its labels were read."""
    if config.data.class_names:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"classes": splits.class_names})})


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
