"""Waits for other processes count as long as the clock of training runs."""

from __future__ import annotations

import pytest

from mnist_dist.checkpoint.state import Position
from mnist_dist.distributed.comm_timer import Waits
from mnist_dist.training.metric_logger import Clock


def test_waits_count_while_the_clock_runs_only() -> None:
    waits = Waits()
    clock = Clock(Position(), waits)

    def wait() -> float:
        with waits.exchange():
            pass
        return waits.take()

    assert wait() == 0
    clock.start()
    assert wait() > 0
    with clock.paused():
        assert wait() == 0
    assert wait() > 0
    clock.stop()
    assert wait() == 0


def test_what_an_exchange_that_fails_took_counts_too() -> None:
    waits = Waits()
    waits.counting = True
    with pytest.raises(RuntimeError), waits.exchange():
        raise RuntimeError("a peer is gone")
    assert waits.take() > 0 == waits.take()


def test_an_end_without_a_begin_counts_nothing() -> None:
    waits = Waits()
    waits.counting = True
    waits.end()
    with waits.exchange():
        pass
    assert waits.take() > 0
    waits.end()
    assert waits.take() == 0
