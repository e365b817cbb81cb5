"""GlobalBatchSampler in torch's DataLoader on several ranks: together they load the global batches of one process."""

from __future__ import annotations

import pytest
from harness import run_ranks
from torch.utils.data import DataLoader

from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.topology import read_topology

IMAGES, BATCH = 100, 24  # the last batch has 4 images


def load_epochs(first_batches: int, workers: int) -> list[list[int]]:
    """This rank's slices of the batches: the first ones of epoch 0, then after a resume the rest of it and epoch 1."""
    topology = read_topology()

    def create_sampler() -> GlobalBatchSampler:
        return GlobalBatchSampler(IMAGES, BATCH, rank=topology.rank, world_size=topology.world_size, seed=7)

    def create_loader(sampler: GlobalBatchSampler) -> DataLoader[int]:
        return DataLoader(range(IMAGES), batch_sampler=sampler, num_workers=workers)  # type: ignore[arg-type]

    slices: list[list[int]] = []
    first = create_sampler()
    first.set_epoch(0)
    for batch, _ in zip(create_loader(first), range(first_batches), strict=False):
        slices.append(batch.tolist())
    resumed = create_sampler()
    resumed.load_state_dict({"epoch": 0, "start": first_batches})
    slices += [batch.tolist() for batch in create_loader(resumed)]
    resumed.set_epoch(1)
    return slices + [batch.tolist() for batch in create_loader(resumed)]


def global_batches() -> list[list[int]]:
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
    batches = [[index for rank_slice in slices for index in rank_slice] for slices in zip(*ranks, strict=True)]
    assert batches == global_batches()
    assert sorted(index for batch in batches[:5] for index in batch) == list(range(IMAGES))
