"""Which images each process computes at each step: a pure function of (seed, epoch), whatever the process count.

An epoch is one permutation of the images, cut into global batches; each of these is cut into shards, and each process
computes its contiguous run of them. Nothing is padded and nothing is dropped, so the last batch may be smaller, and a
shard of it may be empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mnist_dist.utils.rng import derive_seed


@dataclass(frozen=True)
class BatchSlice:
    """A part of one global batch that is computed at once, as positions in the epoch's order."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class GlobalBatch:
    """One step's rows: how many there are over all processes, and this process's shards, each in accumulated parts."""

    size: int
    shards: tuple[tuple[BatchSlice, ...], ...]


def batch_slice(start: int, stop: int, index: int, parts: int) -> BatchSlice:
    """The contiguous share `index` of `parts` of rows start..stop; sizes differ by one at most.

    Where the parts divide the rows, cuts nest: the shares of 4 parts are the halves of the shares of 2.
    """
    size = stop - start
    return BatchSlice(start + size * index // parts, start + size * (index + 1) // parts)


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields this process's image indices for each global batch of an epoch.

    Works as the `batch_sampler` of a `torch.utils.data.DataLoader`; the trainer itself uses `permutation` and
    `batches`, which also give the global size that a loss must be divided by.

    Args:
        images: number of images in the set.
        batch_size: images in one global batch, over all processes.
        rank, world_size: this process and how many there are.
        shards: parts of each global batch that are computed apart, a multiple of `world_size`; 0: one a process.
        accumulate: parts that each shard is split into in turn (`batches` only).
        seed: the run's seed; the order is a function of it and of the epoch.
        shuffle: False keeps the images' own order, as an evaluation does.
        drop_last: leave out a last batch that is smaller than `batch_size`.
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

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next, from its first batch."""
        self.epoch, self.start = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the next iteration begins; the order itself needs no saving."""
        return {"epoch": self.epoch, "start": self.start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the batch that `state_dict` described, with any number of processes."""
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
        """This process's shards of each global batch from `start` on; `start` follows, so state_dict may be called."""
        for index in range(self.start, len(self)):
            first = index * self.batch_size
            last = min(first + self.batch_size, self.images)
            shards = (batch_slice(first, last, shard, self.shards) for shard in self.local_shards)
            self.start = index + 1
            yield GlobalBatch(last - first, tuple(cut(shard, self.accumulate) for shard in shards))

    def __iter__(self) -> Iterator[list[int]]:
        order = self.permutation()
        for batch in self.batches():
            yield order[batch.shards[0][0].start : batch.shards[-1][-1].stop].tolist()


def cut(share: BatchSlice, parts: int) -> tuple[BatchSlice, ...]:
    """A share as this many shares."""
    return tuple(batch_slice(share.start, share.stop, part, parts) for part in range(parts))
