"""Waiting for other processes counts only while training time counts."""

from __future__ import annotations

import pytest

from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.distributed.comm_timer import CommTimer
from mnist_dist.training.metric_logger import TrainTimer


def test_waits_count_while_the_clock_runs_only() -> None:
    comm_timer = CommTimer()
    clock = TrainTimer(TrainProgress(), comm_timer)

    def wait() -> float:
        with comm_timer.exchange():
            pass
        return comm_timer.take()

    assert wait() == 0
    clock.start()
    assert wait() > 0
    with clock.paused():
        assert wait() == 0
    assert wait() > 0
    clock.stop()
    assert wait() == 0


def test_what_an_exchange_that_fails_took_counts_too() -> None:
    comm_timer = CommTimer()
    comm_timer.counting = True
    with pytest.raises(RuntimeError), comm_timer.exchange():
        raise RuntimeError("a peer is gone")
    assert comm_timer.take() > 0 == comm_timer.take()


def test_an_end_without_a_begin_counts_nothing() -> None:
    comm_timer = CommTimer()
    comm_timer.counting = True
    comm_timer.end()
    with comm_timer.exchange():
        pass
    assert comm_timer.take() > 0
    comm_timer.end()
    assert comm_timer.take() == 0
