"""evaluate on several ranks: every image is counted once, in the same batches, and the counts are equal."""

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


def evaluate_untrained(images: int, eval_batch_size: int) -> Metrics:
    """The metrics of an untrained model on this rank."""
    topology = read_topology()
    config = load([*BASICS, "--train.batch_size=6"], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = runtime.to_device(create_model("basic"))
        return evaluate(model, synthetic_images(images, seed=3), config.data, runtime, eval_batch_size)


def evaluated_batches(images: int, eval_batch_size: int, shards: int) -> list[list[int]]:
    """The indices of the images in each batch that this rank evaluates."""
    topology = read_topology()
    config = load([*BASICS, "--train.batch_size=12", f"--train.shards={shards}"], topology.world_size).config
    batches: list[list[int]] = []
    with start_runtime(config, topology) as runtime:
        model = runtime.to_device(create_model("basic"))
        model.register_forward_pre_hook(lambda _, inputs: batches.append(decode_indices(inputs[0], config.data)))
        evaluate(model, synthetic_images(images, seed=3), config.data, runtime, eval_batch_size)
    return batches


@cache
def one_process(images: int, eval_batch_size: int) -> Metrics:
    """The metrics on one process. On some CPUs a batch of another size rounds its losses otherwise."""
    (metrics,) = run_ranks(1, evaluate_untrained, images, eval_batch_size)
    return metrics


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_have_the_counts_of_one_process(world_size: int) -> None:
    expected = one_process(IMAGES, 1000)
    assert expected.count == IMAGES
    assert 0 < expected.correct < expected.top2_correct < IMAGES
    assert run_ranks(world_size, evaluate_untrained, IMAGES, 1000) == [expected] * world_size


@pytest.mark.parametrize(("world_size", "images"), [(2, 1), (3, 1), (3, 2), (3, 7)])
def test_ranks_without_images_have_the_counts_of_one_process(world_size: int, images: int) -> None:
    expected = one_process(images, 2)
    assert expected.count == images
    assert run_ranks(world_size, evaluate_untrained, images, 2) == [expected] * world_size


@pytest.mark.parametrize("shards", [0, 6])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_batches_do_not_depend_on_the_number_of_ranks(world_size: int, shards: int) -> None:
    """So rounding does not, either. The ranks evaluate about equally many batches."""
    ranks = run_ranks(world_size, evaluated_batches, 100, 8, shards)
    assert sorted(batch for batches in ranks for batch in batches) == [
        list(range(i, min(i + 8, 100))) for i in range(0, 100, 8)
    ]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= max(shards // world_size, 1)
