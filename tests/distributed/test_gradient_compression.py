"""train.compress: gradients sent in half precision are the same on every rank, and runs resume bit for bit."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import run_ranks
from small_training import TrainResult, train

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrainConfig
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology

SIZES = (24 * 5 + 17, 30)
ARGUMENTS = ["--optim.name=sgd", "--optim.lr=0.05", "--train.epochs=4", "--train.batch_size=24", "--train.accumulate=2"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def trained(world_size: int, compress: str) -> list[TrainResult]:
    """The result of 24 steps on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*ARGUMENTS, "--train.shards=0", f"--train.compress={compress}"]
        return run_ranks(world_size, train, arguments, Path(folder), SIZES)


def losses(run: TrainResult) -> list[float]:
    return [row["train.loss"] for row in run.rows if "train.loss" in row]


@pytest.mark.parametrize("compress", DTYPES)
def test_ranks_have_equal_weights_and_losses_close_to_those_without_compression(compress: str) -> None:
    first, second = trained(2, compress)
    uncompressed = trained(2, "no")[0]
    assert first.sha256 == second.sha256 != uncompressed.sha256
    assert len(losses(first)) == 24
    assert losses(first)[-1] < losses(first)[0] * 0.8
    assert losses(first) == pytest.approx(losses(uncompressed), rel=0.02)


def test_on_one_process_compression_changes_nothing() -> None:
    assert trained(1, "bf16")[0].sha256 == trained(1, "no")[0].sha256


@pytest.mark.parametrize("compress", DTYPES)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(compress: str, tmp_path: Path) -> None:
    for last_step in (9, 0):
        arguments = [*ARGUMENTS, f"--train.compress={compress}", f"--train.max_steps={last_step}"]
        runs = run_ranks(2, train, arguments, tmp_path, SIZES)
    assert [run.sha256 for run in runs] == [trained(2, compress)[0].sha256] * 2
    assert len(losses(runs[0])) == 15


def all_reduces(compress: str) -> list[tuple[torch.dtype, int]]:
    """The dtype and the number of values of each all-reduce of a backward pass."""
    config = Config(train=TrainConfig(compress=compress, shards=0))  # type: ignore[arg-type]
    with start_runtime(config, read_topology()) as runtime:
        strategy = DDPStrategy(torch.nn.Linear(28, 10), config, runtime)
        strategy.wrap_model()
        found, original = [], dist.all_reduce

        def recording(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            found.append((tensor.dtype, tensor.numel()))
            return original(tensor, *arguments, **options)

        dist.all_reduce = recording
        strategy.wrapped_model(torch.ones(1, 1, 28, 28)).sum().backward()
        return found


@pytest.mark.parametrize("compress", DTYPES)
def test_each_gradient_is_sent_once_in_half_precision(compress: str) -> None:
    for found in run_ranks(2, all_reduces, compress):
        assert {dtype for dtype, _ in found} == {DTYPES[compress]}
        assert sum(count for _, count in found) == 28 * 10 + 10


def describe(compress: str) -> str:
    config = Config(train=TrainConfig(compress=compress, shards=0))  # type: ignore[arg-type]
    with start_runtime(config, read_topology()) as runtime:
        return DDPStrategy(torch.nn.Linear(28, 10), config, runtime).describe()


def test_the_compression_is_described() -> None:
    assert run_ranks(2, describe, "fp16")[0] == "averaged over 2 processes by DistributedDataParallel, sent in fp16"
    assert run_ranks(2, describe, "no")[0] == "averaged over 2 processes by DistributedDataParallel"
    assert run_ranks(1, describe, "fp16")[0] == "whole batch"
