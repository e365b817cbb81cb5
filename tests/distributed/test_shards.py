"""With fixed shards, the number of processes and of threads does not change a single bit."""

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

SIZES = (24 * 5 + 1, 31)  # the last batch of an epoch has one image: all of its shards but one are empty
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
    "augmentation": ("--data.shift=2", "--data.rotate=10", "--data.scale=0.1", "--data.shear=5"),
    "average": ("--optim.ema=0.9",),
    "accumulation": ("--train.accumulate=2",),
    "bf16": ("--train.precision=bf16",),
    "drop_last": ("--data.drop_last=true",),
}


def noisy(dropout: float = 0.3) -> nn.Module:
    """A net with everything that could depend on who computes what: dropout, batch norm, a mean without momentum."""
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


def normed() -> nn.Module:
    """The same without randomness, so that several threads compute it."""
    return noisy(dropout=0.0)


def default() -> nn.Module:
    """The net of the default recipe."""
    return create_model("unshuffle")


NETWORKS = {"noisy": noisy, "normed": normed, "default": default}


@dataclass(frozen=True)
class Run:
    """How a run ended: digests of the weights and of what is evaluated, the rows, and whether dropout was noticed."""

    raw: str
    network: str
    rows: list[str]
    """As JSON: nan is not equal to itself."""
    draws: bool | None


def train(network: str, arguments: tuple[str, ...], folder: Path) -> Run:
    """Train one of NETWORKS in float32, from the folder's newest checkpoint on."""
    topology = read_topology()
    config = load([*ARGUMENTS, *arguments], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        rows: list[dict[str, Any]] = []
        trainer = open_trainer(runtime, config, folder, SIZES, network=NETWORKS[network], rows=rows)
        trainer.train()
        kept = [json.dumps({key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS}) for row in rows]
        return Run(
            weights_sha256(trainer.state.model),
            weights_sha256(trainer.state.eval_model),
            kept,
            getattr(trainer.train_step.strategy, "uses_rng", None),
        )


@cache
def trained(world_size: int, network: str, arguments: tuple[str, ...]) -> Run:
    """A whole run; all ranks end with the same."""
    with tempfile.TemporaryDirectory() as folder:
        first, *others = run_ranks(world_size, train, network, arguments, Path(folder))
    assert all((other.raw, other.network, other.rows) == (first.raw, first.network, first.rows) for other in others)
    return first


def assert_same_bits(run: Run, expected: Run) -> None:
    assert run.rows == expected.rows
    assert (run.raw, run.network) == (expected.raw, expected.network)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("network", ["noisy", "default"])
def test_the_number_of_processes_changes_no_bit(network: str, setting: str, world_size: int) -> None:
    arguments = ("--train.shards=4", *SETTINGS[setting])
    single = trained(1, network, arguments)
    assert_same_bits(trained(world_size, network, arguments), single)
    assert single.draws == (network == "noisy")
    assert json.loads(single.rows[-1])["step"] == (10 if setting == "drop_last" else 12)


@pytest.mark.parametrize("shards", [3, 6, 12])
def test_nor_does_a_number_of_shards_that_is_no_power_of_two(shards: int) -> None:
    """Among them odd sums of even shares, and even sums of odd ones."""
    arguments = (f"--train.shards={shards}",)
    for world_size in {2, 3, 4} & {n for n in range(2, shards + 1) if shards % n == 0}:
        assert_same_bits(trained(world_size, "noisy", arguments), trained(1, "noisy", arguments))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_nor_does_the_number_of_threads(network: str, threads: int) -> None:
    arguments = ("--train.shards=4", "--data.rotate=10", "--optim.ema=0.9")
    assert_same_bits(trained(1, network, (*arguments, f"--run.threads={threads}")), trained(1, network, arguments))
    several = trained(2, network, (*arguments, f"--run.threads={threads}"))
    assert_same_bits(several, trained(1, network, arguments))


@pytest.mark.parametrize("network", ["noisy", "default"])
def test_nor_do_other_numbers_of_processes_at_each_resume(network: str, tmp_path: Path) -> None:
    """Once in front of the last batch of an epoch, of which the first rank has nothing to compute."""
    arguments = ("--train.shards=4", "--data.shift=2", "--optim.ema=0.9", "--train.accumulate=2", "--run.threads=2")
    rows: list[str] = []
    for world_size, last_step in ((1, 2), (4, 5), (2, 9), (1, 12)):
        stopping = (*arguments, f"--train.max_steps={last_step}")
        run = run_ranks(world_size, train, network, stopping, tmp_path)[0]
        rows += [row for row in run.rows if '"train.loss' in row]
    whole = trained(1, network, arguments)
    assert (run.raw, run.network) == (whole.raw, whole.network)
    assert rows == [row for row in whole.rows if '"train.loss' in row]


def test_shards_give_the_mean_over_the_global_batch_as_without() -> None:
    """Up to rounding, in a net without statistics of its own: for 12 steps, one kink is not yet in sight."""
    settings = ("--optim.name=sgd", "--optim.lr=0.05", "--train.accumulate=2", "--train.precision=no")
    with_shards, without = (trained(1, "default", (*settings, f"--train.shards={n}")) for n in (4, 0))
    first, second = ([json.loads(row).get("train.loss") for row in run.rows] for run in (with_shards, without))
    first, second = ([loss for loss in losses if loss] for losses in (first, second))
    assert first == pytest.approx(second, rel=1e-5)
    assert with_shards.raw != without.raw


def test_batch_norms_end_with_the_mean_of_all_shards_weighted_by_images() -> None:
    """One step by hand, of five images in four shards."""
    (found,) = run_ranks(1, one_step_of_batch_norm)
    images = synthetic_images(5, seed=1).images.double()
    shards = [images[a:b] for a, b in ((0, 1), (1, 2), (2, 3), (3, 5))]
    expected = torch.zeros(1, dtype=torch.double)
    for shard in shards:
        expected += (0.9 * 0 + 0.1 * shard.mean()) * len(shard) / 5
    assert found == (pytest.approx(expected.item(), rel=1e-6), 1)


def one_step_of_batch_norm() -> tuple[float, int]:
    """The running mean and the count of a batch norm right behind unnormalised images, after one step."""
    arguments = ["--train.batch_size=8", "--train.shards=4", "--train.max_steps=1", "--train.overfit_batches=1"]
    config = load([*ARGUMENTS, *arguments, "--data.mean=0", f"--data.std={1 / 255}"]).config
    with start_runtime(config, read_topology()) as runtime, tempfile.TemporaryDirectory() as folder:
        norm = nn.BatchNorm2d(1)
        body = nn.Sequential(norm, nn.Flatten())
        trainer = open_trainer(
            runtime, config, Path(folder), (5, 3), network=lambda: ImageClassifier(body, nn.Linear(784, 10))
        )
        trainer.train()
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        return norm.running_mean.item(), int(norm.num_batches_tracked)
