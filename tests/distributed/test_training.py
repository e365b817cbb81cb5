"""The number of ranks is not a hyperparameter: 1, 2 and 3 ranks train on the same batches to the same weights."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from harness import run_ranks
from small_training import TrainResult, train
from torch import Tensor

from mnist_dist.data.sampler import GlobalBatchSampler

BATCH = 24
SIZES = {"full": (BATCH * 6, 30), "last of 17": (BATCH * 5 + 17, 31), "last of 1": (BATCH * 5 + 1, 32)}
"""Number of training images and of test images, by the size of the last batch of an epoch."""
SETTINGS = {
    "plain": [],
    "accumulated": ["--train.accumulate=2"],
    "augmented": ["--data.shift=2", "--data.rotate=10", "--data.scale=0.1", "--data.shear=5", "--data.elastic=1"],
    "ema": ["--optim.ema=0.9", "--optim.clip=0.5", "--optim.label_smoothing=0.1"],
    "adamw": ["--optim.name=adamw", "--optim.lr=0.002"],
    "combined": ["--train.accumulate=2", "--data.shift=2", "--optim.ema=0.9", "--optim.clip=1"],
}
SGD = ["--optim.name=sgd", "--optim.lr=0.05", "--optim.schedule=linear"]
STEPS = ["--train.epochs=4", f"--train.batch_size={BATCH}", "--train.shards=0"]


@cache
def trained(world_size: int, settings: tuple[str, ...], sizes: tuple[int, int]) -> list[TrainResult]:
    """The result of 24 steps on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(world_size, train, [*SGD, *STEPS, *settings], Path(folder), sizes)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two state dicts."""
    assert first.keys() == second.keys()
    return max(float((first[name] - tensor).abs().max()) for name, tensor in second.items())


def values(rows: list[dict[str, float]], key: str) -> list[float]:
    """The values of a key in the rows that have it."""
    return [row[key] for row in rows if key in row]


def assert_same(run: TrainResult, single: TrainResult) -> None:
    """Assert equal losses and weights in float64, up to the order of sums."""
    for key in ("train.loss", "epoch.train.loss"):
        assert values(run.rows, key) == pytest.approx(values(single.rows, key), rel=1e-7), key
    for key in ("lr", "train.accuracy", "epoch.train.correct", "epoch.train.count"):
        assert values(run.rows, key) == values(single.rows, key), key
    assert len(values(run.rows, "train.loss")) == 24
    assert distance(run.weights, single.weights) < 1e-12
    assert distance(run.eval_weights, single.eval_weights) < 1e-12


CASES = [(setting, "last of 1") for setting in SETTINGS] + [("plain", "full"), ("combined", "last of 17")]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("setting", "size"), CASES)
def test_any_number_of_ranks_trains_the_same(world_size: int, setting: str, size: str) -> None:
    arguments, sizes = tuple(SETTINGS[setting]), SIZES[size]
    single, several = trained(1, arguments, sizes)[0], trained(world_size, arguments, sizes)
    assert len({run.sha256 for run in several}) == 1, "ranks hold different weights"
    assert_same(several[0], single)
    assert values(several[0].rows, "test.count") == [sizes[1]] * 4
    assert values(several[0].rows, "test.correct") == values(single.rows, "test.correct")


@pytest.mark.parametrize("model", ["unshuffle", "cnn", "convnet", "deep_head", "deep_head_fixed"])
def test_every_model_trains_on_a_last_batch_with_fewer_images_than_ranks(model: str) -> None:
    arguments, sizes = (f"--model.name={model}", "--optim.lr=0.01"), SIZES["last of 1"]
    assert_same(trained(3, arguments, sizes)[0], trained(1, arguments, sizes)[0])


def test_two_ranks_have_the_bits_of_one_rank_with_two_microbatches() -> None:
    arguments = ("--optim.name=adamw", "--optim.lr=0.002", "--optim.ema=0.9")
    single = trained(1, (*arguments, "--train.accumulate=2"), SIZES["last of 1"])[0]
    assert trained(2, arguments, SIZES["last of 1"])[1].sha256 == single.sha256


def test_muon_trains_the_same_up_to_its_rounding() -> None:
    arguments, sizes = ("--optim.name=muon", "--optim.lr=0.002"), SIZES["last of 1"]
    several, single = trained(2, arguments, sizes)[0], trained(1, arguments, sizes)[0]
    # torch's Muon orthogonalises in bfloat16: a difference in the last bit of a gradient becomes 1e-3 of the update.
    assert values(several.rows, "train.loss") == pytest.approx(values(single.rows, "train.loss"), rel=2e-3)
    assert distance(several.weights, single.weights) < 1e-2


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_images_of_every_step_are_those_of_the_permutation(world_size: int, accumulate: int) -> None:
    sizes = SIZES["last of 1"]
    runs = trained(world_size, (f"--train.accumulate={accumulate}",), sizes)
    assert global_batches(runs) == expected_batches(sizes[0])


@pytest.mark.parametrize("stages", [(1, 2, 3), (3, 2, 1)])
def test_a_run_resumed_on_other_numbers_of_ranks_equals_an_uninterrupted_one(
    stages: tuple[int, ...], tmp_path: Path
) -> None:
    sizes = SIZES["last of 17"]
    settings = ("--optim.ema=0.9", "--train.accumulate=2")
    batches, rows = [], []
    for world_size, last_step in zip(stages, (7, 15, 24), strict=True):  # stops within an epoch
        arguments = [*SGD, *STEPS, *settings, f"--train.max_steps={last_step}"]
        runs = run_ranks(world_size, train, arguments, tmp_path, sizes)
        batches += global_batches(runs)
        rows += runs[0].rows
        assert len(batches) == last_step
    assert batches == expected_batches(sizes[0])
    assert values(rows, "epoch.train.count") == [sizes[0]] * 4
    resumed = TrainResult(rows, batches, runs[0].weights, runs[0].eval_weights, runs[0].sha256)
    assert_same(resumed, trained(1, settings, sizes)[0])


def global_batches(runs: list[TrainResult]) -> list[list[int]]:
    """The image indices of each step, over all ranks in rank order."""
    return [
        [index for rank_slice in slices for index in rank_slice]
        for slices in zip(*(run.batches for run in runs), strict=True)
    ]


def expected_batches(images: int) -> list[list[int]]:
    """The batches of four epochs, from the permutations."""
    sampler = GlobalBatchSampler(images, BATCH)
    batches: list[list[int]] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        permutation: Tensor = sampler.permutation()
        assert not torch.equal(permutation, torch.arange(images))
        batches += [batch.tolist() for batch in permutation.split(BATCH)]
    return batches
