"""The harness itself: what ranks return, raise, or fail to do comes home, and nothing is left running."""

from __future__ import annotations

import os
import threading
import time
from typing import NoReturn

import psutil
import pytest
from harness import RanksFailed, run_ranks, try_ranks

from mnist_dist.distributed.topology import read_topology


def whoami(extra: str) -> tuple[int, int, int, int, str]:
    place = read_topology()
    return place.rank, place.world_size, place.local_rank, place.machines, extra


def complain_on_one() -> int:
    if os.environ["RANK"] == "1":
        raise KeyError("the reason")
    return os.getpid()


def die_on_one() -> None:
    if os.environ["RANK"] == "1":
        os._exit(7)


def hang_on_one() -> None:
    if os.environ["RANK"] == "1":
        wait_for_ever()


def wait_for_ever() -> NoReturn:
    threading.Event().wait()
    raise AssertionError


def test_each_rank_knows_its_place() -> None:
    assert run_ranks(3, whoami, "x") == [(rank, 3, rank, 1, "x") for rank in range(3)]
    assert run_ranks(4, whoami, "y", machines=2) == [(rank, 4, rank % 2, 2, "y") for rank in range(4)]


def test_an_exception_comes_home_with_its_traceback() -> None:
    with pytest.raises(RanksFailed, match=r"rank 1: (?s:.)*complain_on_one(?s:.)*the reason") as caught:
        run_ranks(2, complain_on_one)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "rank 0" not in str(caught.value)


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(RanksFailed, match="rank 1: died with exit code 7"):
        run_ranks(2, die_on_one)


def test_a_rank_that_hangs_says_where_and_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=r"rank 1: (?s:.)*in wait_for_ever"):
        run_ranks(2, hang_on_one, timeout=1)
    assert time.monotonic() - start < 8


def test_no_rank_outlives_its_test() -> None:
    pids = [outcome.value for outcome in try_ranks(3, complain_on_one)]
    assert pids[0]
    assert pids[2]
    assert not any(pid and psutil.pid_exists(pid) for pid in pids)
