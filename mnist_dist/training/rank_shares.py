"""How many images each of N processes computes, in training and in an evaluation: asked of the real samplers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import Splits
from mnist_dist.data.sampler import GlobalBatch
from mnist_dist.training.evaluation import batch_rounds
from mnist_dist.training.state import sampler_of_rank


@dataclass(frozen=True)
class RankShares:
    """Images of each rank, by rank."""

    steps_per_epoch: int
    batch: tuple[int, ...]
    """Of an epoch's first global batch, and of all others but the last one."""
    last_batch: tuple[int, ...]
    """Of an epoch's last global batch."""
    evaluation: Mapping[str, tuple[int, ...]]
    """Of the validation set (`val`) and of the test set (`test`)."""


def find_rank_shares(config: Config, data: Splits, world_size: int, shards: int) -> RankShares:
    """The shares of `world_size` ranks.

    Args:
        shards: number of fixed shards of a global batch; 0 without them.

    Raises:
        UserError: with data.drop_last there is no full batch to train on.
    """
    images, steps = len(data.train), 0
    first, last = [], []
    for rank in range(world_size):
        sampler = sampler_of_rank(config, images, rank, world_size, shards)
        steps = len(sampler)
        first.append(count_images(next(sampler.batches())))
        sampler.load_state_dict({"epoch": 0, "start": steps - 1})
        last.append(count_images(next(sampler.batches())))
    local_shards = max(shards // world_size, 1)
    evaluation = {
        name: tuple(
            sum(
                min(start + config.train.eval_batch_size, images) - start
                for starts in batch_rounds(images, config.train.eval_batch_size, rank, world_size, local_shards)
                for start in starts
            )
            for rank in range(world_size)
        )
        for name, images in (("val", len(data.val)), ("test", len(data.test)))
    }
    return RankShares(steps, tuple(first), tuple(last), evaluation)


def count_images(batch: GlobalBatch) -> int:
    """Images of a global batch that one rank computes."""
    return sum(len(microbatch) for shard in batch.shards for microbatch in shard)
