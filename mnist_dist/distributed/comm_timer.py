"""Time that this process spends in collectives, so that training time can be split into its own work and waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class CommTimer:
    """Sums up the seconds from `start` to `stop`, on the host's clock, while `enabled`.

    Waiting for other ranks and the transfer itself are not told apart. With NCCL, collectives run on the device and
    return to the host at once, so that almost nothing of them is measured.
    """

    def __init__(self) -> None:
        self.enabled = False
        self.seconds = 0.0
        self.started: float | None = None  # time.perf_counter(); None between stop and start

    def enable(self) -> None:
        """Count from here on."""
        self.enabled = True

    def disable(self) -> None:
        """Stop counting."""
        self.enabled = False

    def start(self, *_: object) -> None:
        """Start the clock, or restart it: the last call before `stop` counts. May serve as an autograd hook."""
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock and add its time; does nothing if it was not started."""
        if self.enabled and self.started is not None:
            self.seconds += time.perf_counter() - self.started
        self.started = None

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the collective in this block, also if it fails."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def pop_seconds(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
