"""The sampler: the order is a pure function of (seed, epoch), split alike for any number of processes."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mnist_dist.data.sampler import BatchSlice, GlobalBatchSampler

SIZES = {"images": st.integers(0, 200), "batch_size": st.integers(1, 40)}


@given(start=st.integers(0, 50), size=st.integers(0, 300), count=st.integers(1, 17))
def test_chunks_cover_a_slice_once_and_differ_by_one_at_most(start: int, size: int, count: int) -> None:
    chunks = BatchSlice(start, start + size).chunks(count)
    assert (chunks[0].start, chunks[-1].stop) == (start, start + size)
    assert all(before.stop == after.start for before, after in pairwise(chunks))
    sizes = {len(chunk) for chunk in chunks}
    assert max(sizes) - min(sizes) <= 1


@given(start=st.integers(0, 50), rows=st.integers(0, 30), outer=st.integers(1, 8), inner=st.integers(1, 8))
def test_chunks_nest_where_their_number_divides_the_size(start: int, rows: int, outer: int, inner: int) -> None:
    """`outer` processes of `inner` microbatches split a whole batch where `outer * inner` processes split it."""
    batch = BatchSlice(start, start + rows * outer * inner)
    nested = [chunk for outer_chunk in batch.chunks(outer) for chunk in outer_chunk.chunks(inner)]
    assert nested == list(batch.chunks(outer * inner))


@settings(max_examples=200, deadline=None)
@given(**SIZES, world_size=st.integers(1, 7), accumulate=st.integers(1, 4), drop_last=st.booleans())
def test_global_batches_are_the_same_at_any_number_of_processes(
    images: int, batch_size: int, world_size: int, accumulate: int, drop_last: bool
) -> None:
    def samplers(count: int, accumulate: int) -> list[GlobalBatchSampler]:
        found = [
            GlobalBatchSampler(
                images, batch_size, rank=rank, world_size=count, accumulate=accumulate, seed=3, drop_last=drop_last
            )
            for rank in range(count)
        ]
        for sampler in found:
            sampler.set_epoch(2)
        return found

    alone, everyone = samplers(1, 1)[0], samplers(world_size, accumulate)
    whole = list(alone)
    assert [[image for mine in step for image in mine] for step in zip(*everyone, strict=True)] == whole
    assert len(whole) == len(alone) == len(everyone[-1])
    order = [image for batch in whole for image in batch]
    assert order == alone.permutation().tolist()[: len(order)]
    assert len(order) == (images // batch_size * batch_size if drop_last else images)

    for sampler in everyone:
        sampler.set_epoch(2)
    for step, batch in zip(zip(*(sampler.batches() for sampler in everyone), strict=True), whole, strict=True):
        slices = [microbatch for mine in step for shard in mine.shards for microbatch in shard]
        assert {mine.size for mine in step} == {len(batch)} == {sum(map(len, slices))}
        assert len(slices) == world_size * accumulate
        assert all(before.stop == after.start for before, after in pairwise(slices))


@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int, **other: int) -> list[int]:
        sampler = GlobalBatchSampler(64, 8, seed=seed, **other)
        sampler.set_epoch(epoch)
        return sampler.permutation().tolist()

    torch.manual_seed(epoch)
    expected = order(seed, epoch)
    assert sorted(expected) == list(range(64))
    assert order(seed, epoch, rank=2, world_size=5, accumulate=3) == expected
    assert order(seed + 1, epoch) != expected != order(seed, epoch + 1)


def test_order_of_seed_0_is_that_of_earlier_versions() -> None:
    """Runs of earlier versions can be repeated and resumed only while this holds."""
    assert GlobalBatchSampler(10, 2).permutation().tolist() == [7, 0, 4, 8, 9, 2, 5, 6, 1, 3]


def test_without_shuffle_the_order_is_that_of_the_data_set() -> None:
    sampler = GlobalBatchSampler(5, 2, shuffle=False, seed=1)
    assert list(sampler) == [[0, 1], [2, 3], [4]]


@given(**SIZES, stop=st.integers(0, 60), world_size=st.integers(1, 4))
def test_resumes_at_any_batch_with_another_number_of_processes(
    images: int, batch_size: int, stop: int, world_size: int
) -> None:
    before = GlobalBatchSampler(images, batch_size, seed=1)
    before.set_epoch(4)
    whole = list(before)
    before.set_epoch(4)
    stop = min(stop, len(whole))
    taken = list(islice(before.batches(), stop))
    state = before.state_dict() if stop else {"epoch": 4, "start": 0}
    assert len(taken) == stop

    after = [GlobalBatchSampler(images, batch_size, rank=r, world_size=world_size, seed=1) for r in range(world_size)]
    for sampler in after:
        sampler.load_state_dict(state)
        assert sampler.state_dict() == state
    rest = [[image for mine in step for image in mine] for step in zip(*after, strict=True)]
    assert rest == whole[stop:]


def test_set_epoch_starts_at_the_first_batch() -> None:
    sampler = GlobalBatchSampler(10, 4)
    list(sampler)
    assert sampler.state_dict() == {"epoch": 0, "start": 3}
    sampler.set_epoch(1)
    assert sampler.state_dict() == {"epoch": 1, "start": 0}
    assert len(list(sampler)) == 3


def test_is_the_batch_sampler_of_a_data_loader() -> None:
    sampler = GlobalBatchSampler(10, 4, seed=5)
    loader: DataLoader[int] = DataLoader(range(100, 110), batch_sampler=sampler)  # type: ignore[arg-type]
    assert len(loader) == 3
    assert torch.cat(list(loader)).tolist() == [100 + image for image in sampler.permutation().tolist()]


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_refuses_an_impossible_rank(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not in"):
        GlobalBatchSampler(10, 2, rank=rank, world_size=world_size)
