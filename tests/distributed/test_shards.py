"""Fixed shards: the number of ranks and of threads changes no bit of the weights."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks
from measured_keys import MEASURED_ROW_KEYS
from small_training import open_trainer, synthetic_images
from torch import nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier, create_model

SIZES = (24 * 5 + 1, 31)  # the last batch of an epoch has one image: all but one of its shards are empty
ARGUMENTS = (
    "--train.epochs=2",
    "--train.batch_size=24",
    "--tracking.log_steps=1",
    "--train.eval_batch_size=7",
    "--run.device=cpu",
    "--run.threads=1",
)
SETTINGS: dict[str, tuple[str, ...]] = {
    "sgd": ("--optim.name=sgd", "--optim.lr=0.05", "--optim.nesterov=true"),
    "adamw, clipped": ("--optim.clip=0.5", "--optim.label_smoothing=0.1"),
    "muon": ("--optim.name=muon",),
    "augmentation": ("--data.shift=2", "--data.rotate=10", "--data.scale=0.1", "--data.shear=5", "--data.elastic=1"),
    "ema": ("--optim.ema=0.9",),
    "accumulation": ("--train.accumulate=2",),
    "bf16": ("--train.precision=bf16",),
    "drop_last": ("--data.drop_last=true",),
}


def dropout_and_batch_norm(dropout: float = 0.3) -> nn.Module:
    """A model with dropout, and batch norms with and without momentum."""
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        nn.Flatten(),
    )
    return ImageClassifier(body, nn.Linear(8 * 11 * 11, 10))


def batch_norm() -> nn.Module:
    """The same model without dropout, so that its shards are computed on several threads."""
    return dropout_and_batch_norm(dropout=0.0)


def default() -> nn.Module:
    """The model of the default recipe."""
    return create_model("unshuffle")


MODELS = {"dropout and batch norm": dropout_and_batch_norm, "batch norm": batch_norm, "default": default}


@dataclass(frozen=True)
class Run:
    """Result of a run on one rank."""

    sha256: str
    """Of the model in training."""
    eval_sha256: str
    """Of the evaluated model."""
    rows: list[str]
    """As JSON, because nan is not equal to itself."""
    uses_rng: bool | None
    """Of the strategy; None with DDP."""


def train(model: str, arguments: tuple[str, ...], folder: Path) -> Run:
    """Train one of MODELS in float32, from the folder's newest checkpoint if there is one."""
    topology = read_topology()
    config = load([*ARGUMENTS, *arguments], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        rows: list[dict[str, Any]] = []
        trainer = open_trainer(runtime, config, folder, SIZES, build_model=MODELS[model], rows=rows)
        trainer.train()
        comparable = [
            json.dumps({key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS}) for row in rows
        ]
        return Run(
            weights_sha256(trainer.state.model),
            weights_sha256(trainer.state.eval_model),
            comparable,
            getattr(trainer.train_step.strategy, "uses_rng", None),
        )


@cache
def trained(world_size: int, model: str, arguments: tuple[str, ...]) -> Run:
    """The result of a run on rank 0, after checking that it is the same on all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        first, *others = run_ranks(world_size, train, model, arguments, Path(folder))
    for other in others:
        assert_same_bits(other, first)
    return first


def assert_same_bits(run: Run, expected: Run) -> None:
    assert run.rows == expected.rows
    assert (run.sha256, run.eval_sha256) == (expected.sha256, expected.eval_sha256)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", ["dropout and batch norm", "default"])
def test_the_number_of_ranks_changes_no_bit(model: str, setting: str, world_size: int) -> None:
    arguments = ("--train.shards=4", *SETTINGS[setting])
    single = trained(1, model, arguments)
    assert_same_bits(trained(world_size, model, arguments), single)
    assert single.uses_rng == (model == "dropout and batch norm")
    assert json.loads(single.rows[-1])["step"] == (10 if setting == "drop_last" else 12)


@pytest.mark.parametrize("shards", [3, 6, 12])
def test_the_number_of_ranks_changes_no_bit_if_the_number_of_shards_is_no_power_of_two(shards: int) -> None:
    """Ranks have odd and even numbers of shards, and there are odd and even numbers of ranks."""
    arguments = (f"--train.shards={shards}",)
    model = "dropout and batch norm"
    for world_size in {2, 3, 4} & {n for n in range(2, shards + 1) if shards % n == 0}:
        assert_same_bits(trained(world_size, model, arguments), trained(1, model, arguments))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_the_number_of_threads_changes_no_bit(model: str, threads: int) -> None:
    arguments = ("--train.shards=4", "--data.rotate=10", "--optim.ema=0.9")
    for world_size in (1, 2):
        threaded = trained(world_size, model, (*arguments, f"--run.threads={threads}"))
        assert_same_bits(threaded, trained(1, model, arguments))


@pytest.mark.parametrize("model", ["dropout and batch norm", "default"])
def test_another_number_of_ranks_at_each_resume_changes_no_bit(model: str, tmp_path: Path) -> None:
    """One resume is before the last batch of an epoch, of which the first rank has no images."""
    arguments = ("--train.shards=4", "--data.shift=2", "--optim.ema=0.9", "--train.accumulate=2", "--run.threads=2")
    rows: list[str] = []
    for world_size, last_step in ((1, 2), (4, 5), (2, 9), (1, 12)):
        stopping = (*arguments, f"--train.max_steps={last_step}")
        run = run_ranks(world_size, train, model, stopping, tmp_path)[0]
        rows += [row for row in run.rows if '"train.loss' in row]
    uninterrupted = trained(1, model, arguments)
    assert (run.sha256, run.eval_sha256) == (uninterrupted.sha256, uninterrupted.eval_sha256)
    assert rows == [row for row in uninterrupted.rows if '"train.loss' in row]


def test_the_losses_equal_those_without_shards_up_to_rounding() -> None:
    """The model has no batch norm, and in 12 steps rounding moves no activation over the kink of a ReLU."""
    settings = ("--optim.name=sgd", "--optim.lr=0.05", "--train.accumulate=2", "--train.precision=no")
    with_shards, without = (trained(1, "default", (*settings, f"--train.shards={n}")) for n in (4, 0))
    first, second = ([json.loads(row).get("train.loss") for row in run.rows] for run in (with_shards, without))
    first, second = ([loss for loss in losses if loss] for losses in (first, second))
    assert first == pytest.approx(second, rel=1e-5)
    assert with_shards.sha256 != without.sha256


def test_running_statistics_are_the_mean_over_all_shards_weighted_by_images() -> None:
    """After one step on five images in four shards."""
    (found,) = run_ranks(1, one_step_of_batch_norm)
    images = synthetic_images(5, seed=1).images.double()
    shards = [images[a:b] for a, b in ((0, 1), (1, 2), (2, 3), (3, 5))]
    expected = torch.zeros(1, dtype=torch.double)
    for shard in shards:
        expected += (0.9 * 0 + 0.1 * shard.mean()) * len(shard) / 5
    assert found == (pytest.approx(expected.item(), rel=1e-6), 1)


def one_step_of_batch_norm() -> tuple[float, int]:
    """running_mean and num_batches_tracked of a batch norm of unnormalised images, after one step."""
    arguments = ["--train.batch_size=8", "--train.shards=4", "--train.max_steps=1", "--train.overfit_batches=1"]
    config = load([*ARGUMENTS, *arguments, "--data.mean=0", f"--data.std={1 / 255}"]).config
    with start_runtime(config, read_topology()) as runtime, tempfile.TemporaryDirectory() as folder:
        norm = nn.BatchNorm2d(1)
        body = nn.Sequential(norm, nn.Flatten())
        trainer = open_trainer(
            runtime, config, Path(folder), (5, 3), build_model=lambda: ImageClassifier(body, nn.Linear(784, 10))
        )
        trainer.train()
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        return norm.running_mean.item(), int(norm.num_batches_tracked)
