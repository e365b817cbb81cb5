"""Progress of a benchmark on standard error: a line for each measurement; in a terminal also a bar."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from mnist_dist.console.formatting import format_duration

CONSOLE = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line on standard error, above the progress bar if there is one."""
    CONSOLE.print(text, soft_wrap=True)


class BenchmarkProgress:
    """Progress through measurements whose order is known. A context manager.

    Args:
        schedule: the case of each measurement, in the order in which they are made. The time left is estimated from
            the measurements of the same case, or of all cases where this one had none yet.
    """

    def __init__(self, schedule: Sequence[str]) -> None:
        self.schedule = schedule
        self.seconds: dict[str, list[float]] = {}  # of the measurements made, by case
        self.done = 0
        self.started = self.last = time.monotonic()
        self.bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TimeLeftColumn(self),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),  # what has no room is cut
            expand=True,
            console=CONSOLE,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not CONSOLE.is_terminal,
        )
        self.task = self.bar.add_task("", total=len(schedule))

    def __enter__(self) -> BenchmarkProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.bar.disable:  # before rich 15, the end of a disabled bar is an empty line
            self.bar.stop()

    def begin(self, text: str) -> None:
        """Show what is measured from now on."""
        self.last = time.monotonic()
        self.bar.update(self.task, description=text)

    def end(self, text: str) -> None:
        """Print what the measurement found."""
        now = time.monotonic()
        self.seconds.setdefault(self.schedule[self.done], []).append(now - self.last)
        self.done, self.last = self.done + 1, now
        self.bar.update(self.task, completed=self.done)
        times = f"{format_duration(now - self.started)} elapsed, {format_duration(self.seconds_left())} left"
        say(f"[{self.done}/{len(self.schedule)}] {text} ({times})")

    def seconds_left(self) -> float:
        """Estimated seconds until the last measurement ends; infinite before the first one has ended."""
        if not self.done:
            return math.inf
        mean = {case: statistics.mean(own) for case, own in self.seconds.items()}
        overall = statistics.mean(mean.values())
        expected = sum(mean.get(case, overall) for case in self.schedule[self.done :])
        return max(expected - (time.monotonic() - self.last), 0.0)


class TimeLeftColumn(ProgressColumn):
    """The estimated time left."""

    def __init__(self, progress: BenchmarkProgress) -> None:
        super().__init__()
        self.progress = progress

    def render(self, task: Task) -> Text:
        """As `12:34 left`."""
        return Text(f"{format_duration(self.progress.seconds_left())} left")
