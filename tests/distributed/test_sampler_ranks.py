"""The sampler under torch's own DataLoader, on real ranks: together they see the batches that one process sees."""

from __future__ import annotations

import pytest
from harness import run_ranks
from torch.utils.data import DataLoader

from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.topology import read_topology

IMAGES, BATCH = 100, 24  # a tail of 4


def load_epochs(first_batches: int, workers: int) -> list[list[int]]:
    """This rank's shares: some of epoch 0, then, after state_dict and load_state_dict, its rest and epoch 1."""
    place = read_topology()

    def sampler() -> GlobalBatchSampler:
        return GlobalBatchSampler(IMAGES, BATCH, rank=place.rank, world_size=place.world_size, seed=7)

    def loader(batches: GlobalBatchSampler) -> DataLoader[int]:
        return DataLoader(range(IMAGES), batch_sampler=batches, num_workers=workers)  # type: ignore[arg-type]

    shares: list[list[int]] = []
    first = sampler()
    first.set_epoch(0)
    for batch, _ in zip(loader(first), range(first_batches), strict=False):
        shares.append(batch.tolist())
    second = sampler()
    second.load_state_dict({"epoch": 0, "start": first_batches})
    shares += [batch.tolist() for batch in loader(second)]
    second.set_epoch(1)
    return shares + [batch.tolist() for batch in loader(second)]


def whole_batches() -> list[list[int]]:
    """The global batches of epochs 0 and 1."""
    sampler = GlobalBatchSampler(IMAGES, BATCH, seed=7)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs += [batch.tolist() for batch in sampler.permutation().split(BATCH)]
    return epochs


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (3, 0), (2, 1)])
def test_ranks_together_load_the_global_batches(world_size: int, workers: int) -> None:
    ranks = run_ranks(world_size, load_epochs, 2, workers)
    together = [[index for share in shares for index in share] for shares in zip(*ranks, strict=True)]
    assert together == whole_batches()
    assert sorted(index for batch in together[:5] for index in batch) == list(range(IMAGES))
