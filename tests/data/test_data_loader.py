"""Splits, the device loader and normalisation: which images, in which order, with which pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mnist import fill
from torch import Tensor

from mnist_dist.config.sections import DataConfig
from mnist_dist.data.augment import apply_affine, random_affine, random_displacement
from mnist_dist.data.dataset import ImageSet, read_splits, split
from mnist_dist.data.loader import Batch, DeviceLoader, normalize
from mnist_dist.data.prepare import ensure_files
from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.utils.errors import UserError


def numbered(count: int) -> ImageSet:
    """Images of random pixels whose labels are their numbers."""
    generator = torch.Generator().manual_seed(count)
    return ImageSet(torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator), torch.arange(count))


# Splits


@settings(max_examples=100, deadline=None)
@given(images=st.integers(1, 60), val_size=st.integers(0, 59), limit=st.integers(0, 70), test_limit=st.integers(0, 30))
def test_splits_share_no_image_and_keep_images_and_labels_together(
    images: int, val_size: int, limit: int, test_limit: int
) -> None:
    train, test = numbered(images), numbered(20)
    config = DataConfig(val_size=min(val_size, images - 1), test_limit=test_limit)
    splits = split(train, test, config, seed=1, limit=limit)
    ours, held_out = splits.train.labels.tolist(), splits.val.labels.tolist()
    assert len(held_out) == config.val_size
    assert len(ours) == min(limit or images, images - config.val_size)
    assert not set(ours) & set(held_out)
    assert len({*ours, *held_out}) == len(ours) + len(held_out)
    assert splits.test.labels.tolist() == list(range(min(test_limit or 20, 20)))
    for part in (splits.train, splits.val):
        assert part.images.equal(train.images[part.labels])
    assert splits.describe() == f"mnist, 10 classes: {len(ours)} train, {len(held_out)} val, {len(splits.test)} test"


def test_the_held_out_images_depend_on_the_seed_but_not_on_the_limit() -> None:
    train, test = numbered(100), numbered(5)

    def held_out(seed: int, limit: int = 0, test_limit: int = 0) -> list[int]:
        config = DataConfig(val_size=30, test_limit=test_limit)
        return split(train, test, config, seed, limit).val.labels.tolist()

    torch.manual_seed(9)
    assert held_out(0) == held_out(0, limit=7) == held_out(0, test_limit=2) != held_out(1)
    assert held_out(0) != list(range(30))  # drawn, not cut off


@pytest.mark.parametrize("val_size", [10, 11, 5000])
def test_holding_out_everything_is_refused(val_size: int) -> None:
    with pytest.raises(UserError, match=rf"^data\.val_size={val_size}: .*10 training images; use \d+ or 0$"):
        split(numbered(10), numbered(5), DataConfig(val_size=val_size), seed=0)


def test_reads_files_as_images_with_a_channel_and_int64_labels(tmp_path: Path) -> None:
    fill(tmp_path)
    splits = read_splits(ensure_files(tmp_path, "local", print), DataConfig(val_size=1, test_limit=4), seed=0, limit=3)
    assert splits.describe().startswith("mnist, 10 classes: 3 train, 1 val, 4 test, sha256 ")
    for part in (splits.train, splits.val, splits.test):
        assert part.images.shape == (len(part), 1, 28, 28)
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)


# Pixels


@pytest.mark.parametrize(("mean", "std"), [(0.1307, 0.3081), (0.0, 1.0), (0.5, 0.25)])
def test_normalizes_every_pixel_value(mean: float, std: float) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    expected = [(value / 255 - mean) / std for value in range(256)]
    normal = normalize(pixels, DataConfig(mean=mean, std=std))
    assert normal.dtype == torch.float32
    assert normal.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert pixels.equal(torch.arange(256, dtype=torch.uint8))


# Batches


def first_images(batch: Batch) -> Tensor:
    """The images of the first microbatch of a process's first shard."""
    return next(batch.microbatches(0))[0]


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_is_every_image_once_in_the_samplers_order(augment: bool) -> None:
    """21 images in batches of 8: the last batch is smaller, and so is each microbatch of it."""
    data, config = numbered(21), DataConfig(shift=2, rotate=10, elastic=1)
    sampler = GlobalBatchSampler(21, 8, accumulate=2, seed=3)
    sampler.set_epoch(1)
    batches = list(DeviceLoader(data, sampler, config, augment=augment))
    assert [batch.size for batch in batches] == [8, 8, 5]
    assert [[len(labels) for _, labels in batch.microbatches(0)] for batch in batches] == [[4, 4], [4, 4], [2, 3]]

    order = sampler.permutation()
    assert torch.cat([labels for batch in batches for _, labels in batch.microbatches(0)]).equal(order)
    expected = data.images[order].float()
    if augment:
        drawn = (draw(config, 21, seed=3, epoch=1) for draw in (random_affine, random_displacement))
        expected = apply_affine(expected, *drawn)
    images = torch.cat([images for batch in batches for images, _ in batch.microbatches(0)])
    assert images.dtype == torch.float32
    assert images.equal(normalize(expected, config))


def test_augmented_pixels_do_not_depend_on_processes_microbatches_or_the_first_batch() -> None:
    data, config = numbered(19), DataConfig(shift=3, rotate=30, scale=0.2, shear=10, elastic=1.5)
    alone = GlobalBatchSampler(19, 6, seed=7)
    whole = list(DeviceLoader(data, alone, config, augment=True))

    shared = [GlobalBatchSampler(19, 6, rank=rank, world_size=3, accumulate=2, seed=7) for rank in range(3)]
    steps = zip(*(DeviceLoader(data, sampler, config, augment=True) for sampler in shared), strict=True)
    for step, expected in zip(steps, whole, strict=True):
        images, labels = (torch.cat([part[i] for mine in step for part in mine.microbatches(0)]) for i in (0, 1))
        assert images.equal(next(expected.microbatches(0))[0])
        assert labels.equal(next(expected.microbatches(0))[1])

    alone.load_state_dict({"epoch": 0, "start": 2})
    later = list(DeviceLoader(data, alone, config, augment=True))
    assert [first_images(batch).tolist() for batch in later] == [first_images(batch).tolist() for batch in whole[2:]]


def test_a_process_without_an_image_of_the_last_batch_gets_empty_microbatches() -> None:
    sampler = GlobalBatchSampler(7, 6, rank=0, world_size=3, seed=0)
    *_, tail = DeviceLoader(numbered(7), sampler, DataConfig(rotate=5, elastic=1), augment=True)
    assert tail.size == 1
    ((images, labels),) = tail.microbatches(0)
    assert images.shape == (0, 1, 28, 28)
    assert (images.dtype, labels.shape, labels.dtype) == (torch.float32, (0,), torch.int64)


@pytest.mark.parametrize("config", [DataConfig(rotate=20), DataConfig(elastic=1)])
def test_each_epoch_draws_its_own_augmentation(config: DataConfig) -> None:
    data = numbered(5)
    sampler = GlobalBatchSampler(5, 5, shuffle=False)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        (batch,) = DeviceLoader(data, sampler, config, augment=True)
        epochs.append(first_images(batch))
    assert not epochs[0].equal(epochs[1])


def test_shards_hold_the_same_images_at_any_number_of_processes() -> None:
    """Four shards of two microbatches each, of batches of 8; the last batch of 3 leaves one shard empty."""
    data, config = numbered(19), DataConfig(rotate=10)

    def epoch(world_size: int) -> list[list[list[int]]]:
        samplers = [
            GlobalBatchSampler(19, 8, rank=rank, world_size=world_size, shards=4, accumulate=2, seed=1)
            for rank in range(world_size)
        ]
        steps = zip(*(DeviceLoader(data, sampler, config, augment=True) for sampler in samplers), strict=True)
        return [
            [
                labels.tolist()
                for mine in step
                for shard in range(len(mine.shards))
                for _, labels in mine.microbatches(shard)
            ]
            for step in steps
        ]

    alone = epoch(1)
    assert [[len(part) for part in step] for step in alone] == [[1] * 8, [1] * 8, [0, 0, 0, 1, 0, 1, 0, 1]]
    assert epoch(2) == epoch(4) == alone


def test_shards_that_the_processes_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="4 shards cannot be divided by 3 processes"):
        GlobalBatchSampler(19, 8, world_size=3, shards=4)
