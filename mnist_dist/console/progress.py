"""The progress of a run, and the time that is left."""

from __future__ import annotations

import math
import time

from mnist_dist.console.formatting import format_duration

MEASURED_SECONDS = 1.0
"""Of training, before the estimated time of the whole run is worth a line."""


class Progress:
    """The steps done and the time that they took."""

    def __init__(self, total_steps: int, step: int, epochs: int) -> None:
        self.total_steps, self.first_step, self.step, self.epochs = total_steps, step, step, epochs
        self.epoch = 0
        self.start = time.monotonic()
        self._end = math.nan  # time.monotonic() at the estimated end of the run
        self._has_told = False

    def elapsed(self) -> float:
        """Seconds since training started or was resumed."""
        return time.monotonic() - self.start

    def remaining(self) -> float:
        """Seconds to the end of the run, by the last estimate; without one at the speed so far.

        nan before the first step.
        """
        if math.isfinite(self._end):
            return max(self._end - time.monotonic(), 0.0)
        done = self.step - self.first_step
        return self.elapsed() / done * (self.total_steps - self.step) if done > 0 else math.nan

    def take_time_left(self, seconds: float) -> str:
        """Take an estimate of the seconds to the end of the run.

        Returns:
            What is to be told of the first one that is known well enough; else an empty text.
        """
        if not math.isfinite(seconds):
            return ""
        self._end = time.monotonic() + seconds
        if self._has_told or self.elapsed() < MEASURED_SECONDS:
            return ""
        self._has_told = True
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        return f"about {format_duration(seconds)} for the whole run, until {until}"
