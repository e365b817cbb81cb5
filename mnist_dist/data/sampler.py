"""Which images each process computes at each step: a pure function of (seed, epoch) and the global batch size.

An epoch is one permutation of the images, cut into global batches; a global batch is cut into shards, and each process
computes a contiguous run of shards. No image is repeated, and none is left out unless `drop_last` asks for it: the last
batch may be smaller, and some of its shards empty.

Why not `torch.utils.data.DistributedSampler`, or a loader prepared by accelerate: both repeat images until every
process has equally many, and neither saves how far into an epoch a run was. Here a run resumes in the middle of an
epoch, on any number of processes, from (epoch, batch).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mnist_dist.utils.rng import derive_seed


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields this process's image indices for each global batch of an epoch.

    Works as the `batch_sampler` of a `torch.utils.data.DataLoader`; the trainer itself uses `permutation` and
    `batches`, which also give the global batch size that a loss must be divided by.

    Args:
        images: number of images in the data set.
        batch_size: images in one global batch, over all processes.
        rank, world_size: this process and the number of processes.
        shards: shards of each global batch, a multiple of `world_size`; 0 for one shard per process.
        accumulate: microbatches that each shard is split into (`batches` only).
        seed: the run's seed; the order is a function of it and of the epoch.
        shuffle: False keeps the order of the data set.
        drop_last: leave out a last batch that is smaller than `batch_size`.

    Raises:
        ValueError: `rank` is out of range, or `shards` is not a multiple of `world_size`.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shards: int = 0,
        accumulate: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in [0, {world_size})")
        if shards % world_size:
            raise ValueError(f"{shards} shards cannot be divided by {world_size} processes")
        self.images, self.batch_size, self.drop_last = images, batch_size, drop_last
        self.shards, self.accumulate = shards or world_size, accumulate
        local = self.shards // world_size
        self.local_shards = range(rank * local, (rank + 1) * local)
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0
        self.start = 0
        """Index, within the epoch, of the next global batch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through, from its first batch."""
        self.epoch, self.start = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch and index of the next global batch. The order needs no saving."""
        return {"epoch": self.epoch, "start": self.start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the batch that `state_dict` named, with any number of processes."""
        self.epoch, self.start = state["epoch"], state["start"]

    def __len__(self) -> int:
        """Global batches in a whole epoch: the same on every process."""
        return self.images // self.batch_size if self.drop_last else -(-self.images // self.batch_size)

    def permutation(self) -> Tensor:
        """The epoch's order of all images, int64 (images,), on the CPU."""
        if not self.shuffle:
            return torch.arange(self.images)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        return torch.randperm(self.images, generator=generator)

    def batches(self) -> Iterator[GlobalBatch]:
        """The epoch's global batches from `start` on. `start` is advanced before each one is yielded."""
        for index in range(self.start, len(self)):
            first = index * self.batch_size
            batch = BatchSlice(first, min(first + self.batch_size, self.images))
            shards = (batch.chunk(shard, self.shards) for shard in self.local_shards)
            self.start = index + 1
            yield GlobalBatch(len(batch), tuple(shard.chunks(self.accumulate) for shard in shards))

    def __iter__(self) -> Iterator[list[int]]:
        order = self.permutation()
        for batch in self.batches():
            yield order[batch.shards[0][0].start : batch.shards[-1][-1].stop].tolist()


@dataclass(frozen=True)
class GlobalBatch:
    """One global batch, as this process sees it."""

    size: int
    """Images over all processes."""
    shards: tuple[tuple[BatchSlice, ...], ...]
    """This process's shards, each as its microbatches."""


@dataclass(frozen=True)
class BatchSlice:
    """A contiguous slice of a global batch, as positions `start` to `stop` in the epoch's order."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def chunk(self, index: int, count: int) -> BatchSlice:
        """Chunk `index` of `count` contiguous ones, whose sizes differ by one at most.

        Chunks nest where `count` divides the size: the chunks of 4 are the halves of the chunks of 2.
        """
        size = len(self)
        return BatchSlice(self.start + size * index // count, self.start + size * (index + 1) // count)

    def chunks(self, count: int) -> tuple[BatchSlice, ...]:
        """All `count` chunks, in order."""
        return tuple(self.chunk(index, count) for index in range(count))
