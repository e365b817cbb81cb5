"""The progress of `mnist-dist repeat`, on standard error: a bar with the time left, or a line for each seed."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mnist_dist.commands.repeat_runs import Plan
from mnist_dist.console.formatting import format_duration, format_percent
from mnist_dist.tracking.results import Result


class RepeatProgress:
    """Shows how far the runs are; a context manager. On a terminal a bar, and a line for each seed that ended."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.bar = Progress(
            BarColumn(), TextColumn("{task.description}"), console=self.console, transient=True, auto_refresh=False
        )
        self.task = self.bar.add_task("", total=len(plan.seeds))
        self.told: set[int] = set()
        self.start: tuple[float, float] | None = None  # time.monotonic() and seeds done at the first call

    def __enter__(self) -> RepeatProgress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:  # elsewhere it would print an empty line
            self.bar.stop()

    def update(self, results: dict[int, Result], failed: dict[int, str], fractions: dict[int, float]) -> None:
        """Show seeds that ended since the last call, and move the bar.

        Args:
            fractions: how much is done of the runs that are under way, by seed.
        """
        ended, total = len(results) + len(failed), len(self.plan.seeds)
        done = ended + sum(fractions.values())
        if self.start is None:
            self.start = time.monotonic(), done
            self.told |= results.keys()
            if results:
                self.console.print(f"{len(results)} of {total} seeds are done already")
        elapsed, since = time.monotonic() - self.start[0], done - self.start[1]
        left = elapsed / since * (total - done) if since > 0 else float("nan")
        for seed in [*results, *failed]:
            if seed in self.told:
                continue
            self.told.add(seed)
            line = f"seed {seed}: failed: {failed[seed]}" if seed in failed else self.describe(results[seed])
            rest = f"; {ended} of {total}" + (f", {format_duration(left)} left" if ended < total else "")
            self.console.print(line + rest, soft_wrap=True)
        if self.console.is_terminal:
            under_way = ", ".join(f"seed {seed}: {share:.0%}" for seed, share in fractions.items())
            text = f"{ended} of {total} seeds, {format_duration(left)} left" + f" ({under_way})" * bool(under_way)
            self.bar.update(self.task, completed=done, description=text)
            self.bar.refresh()

    def describe(self, result: Result) -> str:
        """The result of a seed in one line."""
        accuracy = f"{format_percent(result.accuracy)} ({result.correct} of {result.count})"
        return f"seed {result.seed}: {self.plan.split} {accuracy} after {result.train_seconds:.1f} s of training"
