"""The time that this process waits for others, so that what its own work takes can be told from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class CommTimer:
    """Adds up the seconds between the begin and the end of exchanges, by the host's clock, while `counting`.

    What is transferred is part of a wait. Where exchanges run on another device beside the host (NCCL), the host
    returns from them at once, and next to nothing is seen of them here.
    """

    def __init__(self) -> None:
        self.counting = False
        self.seconds = 0.0
        self.since: float | None = None  # None: nothing is waited for

    def start(self) -> None:
        """Count from here on."""
        self.counting = True

    def stop(self) -> None:
        """Stop counting."""
        self.counting = False

    def begin(self, *_: object) -> None:
        """From here on nothing is left to do but to wait; the last call before `end` counts. Also autograd's hook."""
        self.since = time.perf_counter()

    def end(self) -> None:
        """What was waited for has come; nothing, where no wait has begun."""
        if self.counting and self.since is not None:
            self.seconds += time.perf_counter() - self.since
        self.since = None

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """An exchange takes place in here."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
