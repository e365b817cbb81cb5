"""What a run prints, also for a tracker: plain lines, whatever the user's own console draws.

wandb's own capture is not used: it replaces the write methods of standard output, so that each line waits for wandb,
misses what was printed before wandb was there, and takes the redrawn progress display for lines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnist_dist.console.console import Console, PlainConsole

Take = Callable[[str], None]


class LineRecorder(PlainConsole):
    """A plain console whose lines go to whoever takes them, from the first one on."""

    def __init__(self) -> None:
        super().__init__()
        self._early: list[str] = []
        self._take: Take = self._early.append
        self._lock = threading.RLock()  # warnings come from any thread, and out of `take` too

    def share(self, take: Take) -> None:
        """Have this take all lines so far, then each as it comes."""
        with self._lock:
            for line in self._early:
                take(line)
            self._take = take

    def say(self, text: str) -> None:
        """A line."""
        with self._lock:
            self._take(text)

    def warn(self, text: str) -> None:
        """A line."""
        self.say(f"warning: {text}")


class TeeConsole(Console):
    """Shows everything to the user and writes it down.

    Args:
        shown: the user's console, which shows what it would show alone.
    """

    def __init__(self, shown: Console) -> None:
        self._shown, self._written = shown, LineRecorder()
        self._both = (self._shown, self._written)
        self.share = self._written.share

    def header(self, facts: Mapping[str, str]) -> None:
        """To both, as everything."""
        for each in self._both:
            each.header(facts)

    def say(self, text: str) -> None:
        """To both."""
        for each in self._both:
            each.say(text)

    def warn(self, text: str) -> None:
        """To both."""
        for each in self._both:
            each.warn(text)

    def begin(self, total_steps: int, step: int, epochs: int) -> None:
        """To both."""
        for each in self._both:
            each.begin(total_steps, step, epochs)

    def progress(self, step: int, epoch: int) -> None:
        """To both."""
        for each in self._both:
            each.progress(step, epoch)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """To both."""
        for each in self._both:
            each.metrics(row)

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """To both."""
        for each in self._both:
            each.evaluation(split, row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """To both."""
        for each in self._both:
            each.epoch(row)

    def close(self) -> None:
        """To both."""
        for each in self._both:
            each.close()

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """To both."""
        for each in self._both:
            each.summary(summary, confusion, classes)
