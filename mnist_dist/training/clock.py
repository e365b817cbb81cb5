"""The clock of training: seconds spent in steps, without evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mnist_dist.checkpoint.position import Position
from mnist_dist.distributed.comm_timer import Waits


class Clock:
    """Adds the time while it runs to a position's `seconds`, and has waits for other processes counted meanwhile."""

    def __init__(self, at: Position, waits: Waits) -> None:
        self.at, self.waits = at, waits
        self.started = 0.0  # by the system's clock; 0 while it stands

    @property
    def seconds(self) -> float:
        """Time spent in training steps so far, by this process and those it goes on from."""
        return self.at.seconds + (time.perf_counter() - self.started if self.started else 0.0)

    def start(self) -> None:
        """Time counts from here."""
        self.started, self.waits.counting = time.perf_counter(), True

    def stop(self) -> None:
        """Time no longer counts; the position says how much did."""
        self.at.seconds, self.started = self.seconds, 0.0
        self.waits.counting = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here does not count."""
        was_running = bool(self.started)
        self.stop()
        yield
        if was_running:
            self.start()
