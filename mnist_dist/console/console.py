"""What a run tells its user: in a terminal a live progress display and tables, elsewhere plain lines, or nothing.

Rows are those of metrics.jsonl: flat, with dotted keys. Nothing here touches a tensor.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mnist_dist.console.formatting import (
    MATRIX_TITLE,
    duration,
    epoch_cells,
    epoch_heads,
    epoch_line,
    held_out_metrics,
    live_metrics,
    matrix,
    number,
    percent,
    results,
)

REDRAWS_PER_SECOND = 8


def open_console(is_main: bool, quiet: bool) -> Console:
    """The console for this process.

    Args:
        is_main: whether this process talks to the user.
        quiet: whether it says nothing but where the run's folder is.
    """
    if not is_main or quiet:
        return NullConsole(show_folder=is_main)
    terminal = Terminal(highlight=False, markup=False, emoji=False)
    # A debugger needs the terminal for itself, and redrawing would paint over its prompt.
    is_debugged = sys.gettrace() is not None
    is_utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    if sys.stdout.isatty() and is_utf8 and not terminal.is_dumb_terminal and not is_debugged:
        return RichConsole(terminal)
    return PlainConsole()


class Console:
    """What the loop calls, in this order; saying nothing unless a kind of console says how."""

    def header(self, facts: Mapping[str, str]) -> None:
        """Show what was chosen and resolved, before training."""

    def say(self, text: str) -> None:
        """Show one line."""

    def warn(self, text: str) -> None:
        """Show one line that matters. From any thread."""

    def begin(self, total_steps: int, step: int, epochs: int) -> None:
        """Start to show progress, at `step` of `total_steps`."""

    def progress(self, step: int, epoch: int) -> None:
        """Note the steps done and the epoch in progress, from 0. Cheap enough for every step."""

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Show train.loss, train.accuracy, lr and images_per_second of the last steps."""

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """Show loss, accuracy and top2 of a split in the middle of an epoch."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show a finished epoch: epoch (from 1), epoch.train.loss and .accuracy, split and its metrics, lr, seconds."""

    def close(self) -> None:
        """Stop showing progress and leave the terminal as it was. Harmless at any time and more than once."""

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """Show the results.

        Args:
            summary: as in summary.json, and `run.dir`; absent keys are left out.
            confusion: (10, 10) counts; rows are the truth, columns the predictions.
            classes: ten names.
        """


class NullConsole(Console):
    """Says nothing, except where the run's folder is, if asked to."""

    def __init__(self, show_folder: bool = False) -> None:
        self._show_folder = show_folder

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """Show the path of the run's folder, alone on a line."""
        if self._show_folder and "run.dir" in summary:
            write(str(summary["run.dir"]), sys.stdout)


class PlainConsole(Console):
    """Plain lines, without control codes: for files, pipes and the logs of other machines."""

    def __init__(self) -> None:
        self._at = Progress(0, 0, 0)

    def header(self, facts: Mapping[str, str]) -> None:
        """One line each."""
        for name, fact in facts.items():
            self.say(f"{name}: {fact}")

    def say(self, text: str) -> None:
        """A line on standard output."""
        write(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A line on standard error."""
        write(f"warning: {text}", sys.stderr)

    def begin(self, total_steps: int, step: int, epochs: int) -> None:
        """Start the clock."""
        self._at = Progress(total_steps, step, epochs)

    def progress(self, step: int, epoch: int) -> None:
        """Note it for the next line."""
        self._at.step, self._at.epoch = step, epoch

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One line."""
        at = self._at
        times = f"{duration(at.elapsed())} elapsed, {duration(at.left())} left"
        self.say(f"step {at.step}/{at.total} (epoch {at.epoch + 1}/{at.epochs}): {live_metrics(row)}, {times}")

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """One line."""
        self.say(f"step {self._at.step}/{self._at.total}: {held_out_metrics(split, row)}")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One line."""
        train = f"train loss {number(row['epoch.train.loss'])}, train accuracy {percent(row['epoch.train.accuracy'])}"
        held_out = held_out_metrics(row["split"], row)
        rest = f"lr {row['lr']:.3g}, {duration(row['seconds'])}"
        self.say(f"epoch {row['epoch']}/{self._at.epochs}: {train}, {held_out}, {rest}")

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """The results, one line each, and the confusion matrix."""
        self.header(results(summary))
        self.say(MATRIX_TITLE)
        rows = matrix(confusion, classes)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][1:]
        for name, *cells in rows:
            self.say(" ".join([name, *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]))
        if "run.dir" in summary:
            self.say(f"run folder: {summary['run.dir']}")


class RichConsole(Console):
    """A terminal: tables that grow above two lines of live progress, redrawn by a thread of their own."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._at = Progress(0, 0, 0)
        self._row: Mapping[str, Any] = {}
        self._live: Live | None = None
        self._has_epochs = False

    def header(self, facts: Mapping[str, str]) -> None:
        """A table of two columns."""
        self._terminal.print(two_columns(facts))

    def say(self, text: str) -> None:
        """A line above the progress display."""
        self._terminal.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A yellow line; on standard error, where that goes elsewhere."""
        if sys.stderr.isatty():
            self._terminal.print(Text(f"warning: {text}", "yellow"), soft_wrap=True)
        else:
            write(f"warning: {text}", sys.stderr)

    def begin(self, total_steps: int, step: int, epochs: int) -> None:
        """Start the live display."""
        self.close()
        self._at = Progress(total_steps, step, epochs)
        self._live = Live(
            get_renderable=self._draw,
            console=self._terminal,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()

    def progress(self, step: int, epoch: int) -> None:
        """Note it for the next redraw."""
        self._at.step, self._at.epoch = step, epoch

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Note it for the next redraw."""
        self._row = row

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """A dim line above the progress display."""
        self._terminal.print(Text(f"step {self._at.step}: {held_out_metrics(split, row)}", "dim"))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """The next row of a table above the progress display."""
        if not self._has_epochs:
            self._has_epochs = True
            self._terminal.print(Text(epoch_line(epoch_heads(row["split"])), "bold"))
        self._terminal.print(Text(epoch_line(epoch_cells(row))))

    def close(self) -> None:
        """End the live display; the cursor is back."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """The results and the confusion matrix, with mistakes in red."""
        self.close()
        self._terminal.print()
        self._terminal.print(two_columns(results(summary)))
        self._terminal.print(Text(f"\n{MATRIX_TITLE}", "bold"))
        self._terminal.print(coloured(matrix(confusion, classes)))
        if "run.dir" in summary:
            self._terminal.print(Text(f"\nrun folder  {summary['run.dir']}"), soft_wrap=True)

    def _draw(self) -> RenderableType:
        """Two lines: how far, and how good. Called by the redrawing thread."""
        at = self._at
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(
            f"epoch {min(at.epoch + 1, at.epochs)}/{at.epochs}",
            ProgressBar(total=max(at.total, 1), completed=at.step),
            f"{at.step}/{at.total}  {duration(at.elapsed())} elapsed, {duration(at.left())} left",
        )
        metrics = live_metrics(self._row) if self._row else "no metrics yet"
        return Group(line, Text(metrics, "cyan", no_wrap=True, overflow="ellipsis"))


class Progress:
    """How far a run is, and how long it took and takes."""

    def __init__(self, total: int, step: int, epochs: int) -> None:
        self.total, self.first, self.step, self.epochs = total, step, step, epochs
        self.epoch = 0
        self.start = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since training began or went on."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds to the last step at the pace so far; nan before the first."""
        done = self.step - self.first
        return self.elapsed() / done * (self.total - self.step) if done > 0 else math.nan


def two_columns(facts: Mapping[str, str]) -> Table:
    """Names and facts; long facts go on below themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table


def coloured(rows: list[list[str]]) -> Table:
    """The confusion matrix, right answers in green, mistakes in red."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    for _ in rows[0][1:]:
        table.add_column(justify="right", no_wrap=True)
    table.add_row(*(Text(cell, "bold") for cell in rows[0]))
    for truth, (name, *cells) in enumerate(rows[1:]):
        styles = ["green" if i == truth else "dim" if cells[i] == "." else "bold red" for i in range(len(cells) - 2)]
        styled = (Text(cell, style) for cell, style in zip(cells, [*styles, "", ""], strict=True))
        table.add_row(Text(name, "bold"), *styled)
    return table


def write(text: str, stream: TextIO) -> None:
    """Write a line at once; what the stream's encoding lacks becomes a question mark."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
