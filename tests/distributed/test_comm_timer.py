"""CommTimer measures collectives while training time is measured, and not otherwise."""

from __future__ import annotations

import pytest

from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.distributed.comm_timer import CommTimer
from mnist_dist.training.metric_logger import TrainTimer


def test_collectives_are_measured_only_while_the_train_timer_runs() -> None:
    comm_timer = CommTimer()
    timer = TrainTimer(TrainProgress(), comm_timer)

    def measure() -> float:
        with comm_timer.measure():
            pass
        return comm_timer.pop_seconds()

    assert measure() == 0
    timer.start()
    assert measure() > 0
    with timer.paused():
        assert measure() == 0
    assert measure() > 0
    timer.stop()
    assert measure() == 0


def test_a_collective_that_fails_is_measured_too() -> None:
    comm_timer = CommTimer()
    comm_timer.enabled = True
    with pytest.raises(RuntimeError), comm_timer.measure():
        raise RuntimeError("a peer is gone")
    assert comm_timer.pop_seconds() > 0 == comm_timer.pop_seconds()


def test_stop_without_start_measures_nothing() -> None:
    comm_timer = CommTimer()
    comm_timer.enabled = True
    comm_timer.stop()
    with comm_timer.measure():
        pass
    assert comm_timer.pop_seconds() > 0
    comm_timer.stop()
    assert comm_timer.pop_seconds() == 0
