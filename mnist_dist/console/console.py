"""What a run prints: live progress and tables in a terminal, plain lines elsewhere, or nothing.

rich draws the terminal's display; the plain lines are our own, because rich's progress bars leave no readable log in a
file. `row` arguments are rows of metrics.jsonl: flat dictionaries with dotted keys. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mnist_dist.console.formatting import (
    CONFUSION_TITLE,
    MAX_SHOWN_MATRIX,
    MISTAKES_TITLE,
    WORST_TITLE,
    ConfusionTable,
    confusion_cells,
    describe_evaluation,
    describe_results,
    describe_training,
    epoch_cells,
    epoch_header,
    epoch_line,
    facts_table,
    format_duration,
    format_loss,
    format_percent,
    list_lines,
    list_table,
    mistake_cells,
    worst_class_cells,
)
from mnist_dist.console.progress import Progress

REDRAWS_PER_SECOND = 8
TIME_LEFT = "time left"


def open_console(is_main: bool, quiet: bool) -> Console:
    """The console of this process.

    Args:
        is_main: whether this is the main process; the others print nothing.
        quiet: print nothing but the path of the run's folder, at the end.
    """
    if not is_main or quiet:
        return NullConsole(prints_folder=is_main)
    terminal = Terminal(highlight=False, markup=False, emoji=False)
    # A live display would overwrite a debugger's prompt.
    is_debugged = sys.gettrace() is not None
    is_utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    if sys.stdout.isatty() and is_utf8 and not terminal.is_dumb_terminal and not is_debugged:
        return RichConsole(terminal)
    return PlainConsole()


class Console:
    """The interface, in the order of the calls. Here each method does nothing."""

    def header(self, facts: Mapping[str, str]) -> None:
        """Print the run's settings and what they resolved to, before training."""

    def print(self, text: str) -> None:
        """Print a line."""

    def warn(self, text: str) -> None:
        """Print a warning, one line. May be called from any thread."""

    def start_progress(self, total_steps: int, step: int, epochs: int) -> None:
        """Start showing progress, with `step` of `total_steps` steps done."""

    def progress(self, step: int, epoch: int) -> None:
        """Take the number of steps done and the present epoch, from 0. Cheap enough to call at every step."""

    def time_left(self, seconds: float) -> None:
        """Take the estimated seconds to the end of the run, for what is shown next; nan if they are not known.

        The first ones that were measured over a second at least are printed, as the last line of the header.
        """

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Show train.loss, train.accuracy, lr and images_per_second of the last steps."""

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """Print loss, accuracy and top2 of an evaluation within an epoch."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print a finished epoch.

        Args:
            row: epoch (from 1), seconds, lr, epoch.train.loss and .accuracy, split, and the split's metrics.
        """

    def close(self) -> None:
        """Stop showing progress and restore the terminal. May be called at any time, and more than once."""

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """Print the results.

        Args:
            summary: as in summary.json, and `run.dir`; absent keys are not printed.
            confusion: (K, K) counts; rows are true classes, columns predictions. The matrix is printed if K is at most
                12; of more classes, the most frequent mistakes and the classes with the lowest recall.
            classes: K names.
        """


class NullConsole(Console):
    """Prints nothing, or only the path of the run's folder."""

    def __init__(self, prints_folder: bool = False) -> None:
        self._prints_folder = prints_folder

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """Print the path of the run's folder, if asked to."""
        if self._prints_folder and "run.dir" in summary:
            write_line(str(summary["run.dir"]), sys.stdout)


class PlainConsole(Console):
    """Plain lines without control codes, for files, pipes and the logs of other machines."""

    def __init__(self) -> None:
        self._progress = Progress(0, 0, 0)

    def header(self, facts: Mapping[str, str]) -> None:
        """One line for each fact."""
        for name, fact in facts.items():
            self.print(f"{name}: {fact}")

    def print(self, text: str) -> None:
        """A line on standard output."""
        write_line(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A line on standard error."""
        write_line(f"warning: {text}", sys.stderr)

    def start_progress(self, total_steps: int, step: int, epochs: int) -> None:
        """Start the clock."""
        self._progress = Progress(total_steps, step, epochs)

    def progress(self, step: int, epoch: int) -> None:
        """Kept for the next line."""
        self._progress.step, self._progress.epoch = step, epoch

    def time_left(self, seconds: float) -> None:
        """One line, once."""
        if text := self._progress.take_time_left(seconds):
            self.header({TIME_LEFT: text})

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One line."""
        done = self._progress
        times = f"{format_duration(done.elapsed())} elapsed, {format_duration(done.remaining())} left"
        where = f"step {done.step}/{done.total_steps} (epoch {done.epoch + 1}/{done.epochs})"
        self.print(f"{where}: {describe_training(row)}, {times}")

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """One line."""
        self.print(f"step {self._progress.step}/{self._progress.total_steps}: {describe_evaluation(split, row)}")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One line."""
        loss, accuracy = format_loss(row["epoch.train.loss"]), format_percent(row["epoch.train.accuracy"])
        train = f"train loss {loss}, train accuracy {accuracy}"
        evaluation = describe_evaluation(row["split"], row)
        rest = f"lr {row['lr']:.3g}, {format_duration(row['seconds'])}"
        self.print(f"epoch {row['epoch']}/{self._progress.epochs}: {train}, {evaluation}, {rest}")

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """The results, one line each, and the confusion matrix."""
        self.header(describe_results(summary))
        if len(classes) > MAX_SHOWN_MATRIX:
            for line in (MISTAKES_TITLE, *list_lines(mistake_cells(confusion, classes), names=2)):
                self.print(line)
            for line in (WORST_TITLE, *list_lines(worst_class_cells(confusion, classes), names=1)):
                self.print(line)
        else:
            self.print(CONFUSION_TITLE)
            rows = confusion_cells(confusion, classes)
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)][1:]
            for name, *cells in rows:
                self.print(" ".join([name, *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]))
        if "run.dir" in summary:
            self.print(f"run folder: {summary['run.dir']}")


class RichConsole(Console):
    """Tables above a live display of two lines, which a thread of rich's redraws."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._progress = Progress(0, 0, 0)
        self._metrics: Mapping[str, Any] = {}
        self._live: Live | None = None
        self._has_epoch_header = False

    def header(self, facts: Mapping[str, str]) -> None:
        """A table of two columns."""
        self._terminal.print(facts_table(facts))

    def print(self, text: str) -> None:
        """A line above the live display."""
        self._terminal.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A yellow line; a plain one if standard error is not the terminal."""
        if sys.stderr.isatty():
            self._terminal.print(Text(f"warning: {text}", "yellow"), soft_wrap=True)
        else:
            write_line(f"warning: {text}", sys.stderr)

    def start_progress(self, total_steps: int, step: int, epochs: int) -> None:
        """Start the live display."""
        self.close()
        self._progress = Progress(total_steps, step, epochs)
        self._live = Live(
            get_renderable=self._draw,
            console=self._terminal,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()

    def progress(self, step: int, epoch: int) -> None:
        """Kept for the next redraw."""
        self._progress.step, self._progress.epoch = step, epoch

    def time_left(self, seconds: float) -> None:
        """A row as those of the header, once, above the live display."""
        if text := self._progress.take_time_left(seconds):
            self.header({TIME_LEFT: text})

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Kept for the next redraw."""
        self._metrics = row

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        """A dim line above the live display."""
        self._terminal.print(Text(f"step {self._progress.step}: {describe_evaluation(split, row)}", "dim"))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """The next row of the table of epochs, above the live display."""
        if not self._has_epoch_header:
            self._has_epoch_header = True
            self._terminal.print(Text(epoch_line(epoch_header(row["split"]), self._terminal.width), "bold"))
        self._terminal.print(Text(epoch_line(epoch_cells(row), self._terminal.width)))

    def close(self) -> None:
        """End the live display and show the cursor again."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def summary(self, summary: Mapping[str, Any], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """The results as a table, and the confusion matrix in colours."""
        self.close()
        self._terminal.print()
        self._terminal.print(facts_table(describe_results(summary)))
        if len(classes) > MAX_SHOWN_MATRIX:
            self._terminal.print(Text(f"\n{MISTAKES_TITLE}", "bold"))
            self._terminal.print(list_table(mistake_cells(confusion, classes), names=2))
            self._terminal.print(Text(f"\n{WORST_TITLE}", "bold"))
            self._terminal.print(list_table(worst_class_cells(confusion, classes), names=1))
        else:
            self._terminal.print(Text(f"\n{CONFUSION_TITLE}", "bold"))
            self._terminal.print(ConfusionTable(confusion_cells(confusion, classes)))
        if "run.dir" in summary:
            self._terminal.print(Text(f"\nrun folder  {summary['run.dir']}"), soft_wrap=True)

    def _draw(self) -> RenderableType:
        """Two lines: the progress, and the last metrics. Called by the redrawing thread."""
        done = self._progress
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        times = f"{format_duration(done.elapsed())} elapsed, {format_duration(done.remaining())} left"
        line.add_row(
            f"epoch {min(done.epoch + 1, done.epochs)}/{done.epochs}",
            ProgressBar(total=max(done.total_steps, 1), completed=done.step),
            f"{done.step}/{done.total_steps}  {times}",
        )
        metrics = describe_training(self._metrics) if self._metrics else "no metrics yet"
        return Group(line, Text(metrics, "cyan", no_wrap=True, overflow="ellipsis"))


def write_line(text: str, stream: TextIO) -> None:
    """Write a line and flush it; characters that the stream's encoding lacks become question marks."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
