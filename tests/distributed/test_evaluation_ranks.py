"""Metrics are the same 103 integers at any number of processes: no image is counted twice, none is left out."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from harness import run_ranks
from small_training import BASICS, decode_indices, synthetic_images

from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import create_model
from mnist_dist.training.evaluation import evaluate
from mnist_dist.training.metrics import Metrics

IMAGES = 10007  # a prime: no number of processes divides it


def count(images: int, eval_batch_size: int) -> Metrics:
    """The metrics of a fixed, untrained net, as this rank sees them after the exchange."""
    topology = read_topology()
    config = load([*BASICS, "--train.batch_size=6"], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = runtime.to_device(create_model("basic"))
        return evaluate(model, synthetic_images(images, seed=3), config.data, runtime, eval_batch_size)


def evaluated(images: int, eval_batch_size: int, shards: int) -> list[list[int]]:
    """The images of each batch that this rank's network is given, spelt by their first two pixels."""
    topology = read_topology()
    config = load([*BASICS, "--train.batch_size=12", f"--train.shards={shards}"], topology.world_size).config
    seen: list[list[int]] = []
    with start_runtime(config, topology) as runtime:
        model = runtime.to_device(create_model("basic"))
        model.register_forward_pre_hook(lambda _, inputs: seen.append(decode_indices(inputs[0], config.data)))
        evaluate(model, synthetic_images(images, seed=3), config.data, runtime, eval_batch_size)
    return seen


@cache
def single(images: int) -> Metrics:
    """The truth: one process, all images at once."""
    (metrics,) = run_ranks(1, count, images, images)
    return metrics


@pytest.mark.parametrize("world_size", [2, 3])
def test_counts_of_a_set_that_no_process_count_divides_are_those_of_one_process(world_size: int) -> None:
    one = single(IMAGES)
    assert one.count == IMAGES
    assert 0 < one.correct < one.top2_correct < IMAGES
    assert run_ranks(world_size, count, IMAGES, 1000) == [one] * world_size


@pytest.mark.parametrize(("world_size", "images"), [(2, 1), (3, 1), (3, 2), (3, 7)])
def test_ranks_without_a_row_count_nothing(world_size: int, images: int) -> None:
    assert single(images).count == images
    assert run_ranks(world_size, count, images, 2) == [single(images)] * world_size


@pytest.mark.parametrize("shards", [0, 6])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_batches_of_an_evaluation_do_not_depend_on_who_computes_them(world_size: int, shards: int) -> None:
    """Neither does any rounding, then."""
    ranks = run_ranks(world_size, evaluated, 100, 8, shards)
    assert sorted(batch for seen in ranks for batch in seen) == [
        list(range(i, min(i + 8, 100))) for i in range(0, 100, 8)
    ]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= max(shards // world_size, 1)
