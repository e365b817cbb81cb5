"""Runtime's collectives, its description, run_on_main and the check that ranks agree."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from harness import run_ranks, try_ranks
from small_training import BASICS

from mnist_dist.config.loader import load
from mnist_dist.distributed.consistency import check_ranks_agree
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.utils.errors import TrainingError, UserError


def start() -> Any:
    """The runtime of this rank, as a context manager."""
    return start_runtime(load(BASICS).config, read_topology())


def collectives() -> tuple[Any, ...]:
    with start() as runtime:
        total = runtime.all_reduce_sum(torch.tensor([runtime.rank, 1]))
        return total.tolist(), runtime.broadcast(f"from {runtime.rank}"), runtime.all_gather_object(runtime.rank * 10)


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_reduce_broadcast_and_all_gather(world_size: int) -> None:
    ranks = range(world_size)
    expected = ([sum(ranks), world_size], "from 0", [rank * 10 for rank in ranks])
    assert run_ranks(world_size, collectives) == [expected] * world_size


def describe() -> tuple[bool, int, dict[str, str]]:
    with start() as runtime:
        return runtime.is_main, runtime.topology.machines, runtime.describe()


def test_the_resolved_topology_is_described() -> None:
    answers = run_ranks(4, describe, machines=2)
    assert [answer[0] for answer in answers] == [True, False, False, False]
    for rank, (_, _, facts) in enumerate(answers):
        launcher = rf"RANK in the environment, rank {rank} of 4, rendezvous at 127\.0\.0\.1:\d+"
        assert re.fullmatch(launcher, facts.pop("launcher"))
    expected = {
        "processes": "4 on 2 machines, gloo",
        "device": "cpu, 1 CPU thread each",
        "precision": "fp32, channels last",
    }
    assert {answer[1] for answer in answers} == {2}
    assert all(answer[2] == expected for answer in answers)


def count_threads() -> int:
    with start_runtime(load(["--run.device=cpu"]).config, read_topology()):
        return torch.get_num_threads()


def test_processes_share_the_cores_of_their_machine() -> None:
    (alone,) = run_ranks(1, count_threads)
    assert alone >= 1
    assert run_ranks(2, count_threads) == [max(alone // 2, 1)] * 2
    assert run_ranks(2, count_threads, machines=2) == [alone, alone]


def try_on_main(kind: type[Exception] | None) -> Any:
    with start() as runtime:
        return runtime.run_on_main(lambda: act(runtime, kind))


def act(runtime: Runtime, kind: type[Exception] | None) -> int:
    """An action that must run on rank 0 only."""
    assert runtime.rank == 0
    if kind is not None:
        raise kind("the disk is full")
    return 42


def test_every_rank_gets_the_result_of_the_main_process() -> None:
    assert run_ranks(3, try_on_main, None) == [42, 42, 42]


@pytest.mark.parametrize("kind", [UserError, TrainingError])
def test_every_rank_gets_the_error_of_the_main_process(kind: type[Exception]) -> None:
    outcomes = try_ranks(3, try_on_main, kind)
    assert [type(outcome.error) for outcome in outcomes] == [kind] * 3
    assert {str(outcome.error) for outcome in outcomes} == {"the disk is full"}
    assert kind is UserError or all(getattr(outcome.error, "everywhere", False) for outcome in outcomes)


def agree(odd_rank: int, odd: dict[str, Any]) -> str:
    with start() as runtime:
        common = {"optim.lr": 0.1, "train.epochs": 3}
        check_ranks_agree(runtime, {"the configuration": odd if runtime.rank == odd_rank else common})
        return "agreed"


def test_ranks_with_equal_settings_agree() -> None:
    assert run_ranks(3, agree, 2, {"train.epochs": 3, "optim.lr": 0.1}) == ["agreed"] * 3


@pytest.mark.parametrize(
    ("odd", "difference"),
    [
        ({"optim.lr": 0.2, "train.epochs": 3}, "optim.lr=0.2 against 0.1"),
        ({"optim.lr": 0.1}, "train.epochs=None against 3"),
        ({"optim.lr": 0.1, "train.epochs": 3, "optim.new": 1}, "optim.new=1 against None"),
    ],
)
def test_a_setting_that_differs_is_named_on_every_rank(odd: dict[str, Any], difference: str) -> None:
    expected = f"the configuration of rank 1 differs from rank 0's: {difference}; start all with the same"
    for outcome in try_ranks(3, agree, 1, odd):
        assert isinstance(outcome.error, UserError)
        assert str(outcome.error) == expected
