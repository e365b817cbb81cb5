"""The harness itself: returned values, exceptions, deaths and hangs of ranks are reported; no process is left."""

from __future__ import annotations

import os
import threading
import time
from typing import NoReturn

import psutil
import pytest
from harness import RanksFailed, run_ranks, try_ranks

from mnist_dist.distributed.topology import read_topology


def describe_rank(extra: str) -> tuple[int, int, int, int, str]:
    topology = read_topology()
    return topology.rank, topology.world_size, topology.local_rank, topology.machines, extra


def raise_on_one() -> int:
    if os.environ["RANK"] == "1":
        raise KeyError("the reason")
    return os.getpid()


def die_on_one() -> None:
    if os.environ["RANK"] == "1":
        os._exit(7)


def hang_on_one() -> None:
    if os.environ["RANK"] == "1":
        hang_forever()


def hang_forever() -> NoReturn:
    threading.Event().wait()
    raise AssertionError


def test_each_rank_reads_its_topology() -> None:
    assert run_ranks(3, describe_rank, "x") == [(rank, 3, rank, 1, "x") for rank in range(3)]
    assert run_ranks(4, describe_rank, "y", machines=2) == [(rank, 4, rank % 2, 2, "y") for rank in range(4)]


def test_an_exception_is_reported_with_its_traceback() -> None:
    with pytest.raises(RanksFailed, match=r"rank 1: (?s:.)*raise_on_one(?s:.)*the reason") as caught:
        run_ranks(2, raise_on_one)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "rank 0" not in str(caught.value)


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(RanksFailed, match="rank 1: died with exit code 7"):
        run_ranks(2, die_on_one)


def test_a_rank_that_hangs_writes_its_stack_and_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=r"rank 1: (?s:.)*in hang_forever"):
        run_ranks(2, hang_on_one, timeout=1)
    assert time.monotonic() - start < 8


def test_no_rank_outlives_its_test() -> None:
    pids = [outcome.value for outcome in try_ranks(3, raise_on_one)]
    assert pids[0]
    assert pids[2]
    assert not any(pid and psutil.pid_exists(pid) for pid in pids)
