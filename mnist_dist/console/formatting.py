"""Numbers, metrics and results as text, the same for every kind of console, and as tables of rich."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from mnist_dist.utils.confusion import most_frequent_mistakes

CONFUSION_TITLE = "Confusion matrix (rows: truth, columns: prediction)"
MISTAKES_TITLE = "Most frequent mistakes"
WORST_TITLE = "Classes with the lowest recall"
MAX_SHOWN_MATRIX = 12  # so that the matrix fits in 80 columns
WORST_ROWS = 10
MAX_LONG_NAME = 24  # terminal cells of a class name where there is room
MAX_CLASS_NAME = 11  # terminal cells of a class name, so that the confusion matrix fits in 80 columns
EPOCH_WIDTHS = (5, 10, 9, 10, 9, 10, 10, 8)
LEAST_IMPORTANT = (5, 6, 7, 1, 3)
"""Columns of the table of epochs that a narrow terminal lacks, the first one first: top-2, lr, time, the losses."""
Format = tuple[Callable[..., str], Sequence[str]]
"""Turns values of a summary into text; the keys of these values."""


def format_loss(value: float) -> str:
    """0.1235"""
    return f"{value:.4f}"


def format_percent(fraction: float) -> str:
    """98.50 %; `-` for nan."""
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else "-"


def format_duration(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03; `-:--` for nan."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_bytes(count: float) -> str:
    """512 B, 379.3 kB, 54.9 MB, 1.2 GB"""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def describe_training(row: Mapping[str, Any]) -> str:
    """The training metrics of the last steps, on one line."""
    quality = f"loss {format_loss(row['train.loss'])}, accuracy {format_percent(row['train.accuracy'])}"
    return f"{quality}, lr {row['lr']:.3g}, {row['images_per_second']:,.0f} images/s"


def describe_evaluation(split: str, row: Mapping[str, Any]) -> str:
    """The metrics of an evaluation, on one line."""
    loss, accuracy, top2 = (row[f"{split}.{name}"] for name in ("loss", "accuracy", "top2"))
    quality = f"{split} loss {format_loss(loss)}, {split} accuracy {format_percent(accuracy)}"
    return f"{quality}, {split} top-2 {format_percent(top2)}"


def epoch_header(split: str) -> list[str]:
    """The column names of the table of epochs."""
    return ["epoch", "train loss", "train acc", f"{split} loss", f"{split} acc", f"{split} top-2", "lr", "time"]


def epoch_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of epochs. `row` as in `Console.epoch`."""
    split = row["split"]
    train = [format_loss(row["epoch.train.loss"]), format_percent(row["epoch.train.accuracy"])]
    accuracies = (format_percent(row[f"{split}.{name}"]) for name in ("accuracy", "top2"))
    evaluation = [format_loss(row[f"{split}.loss"]), *accuracies]
    return [str(row["epoch"]), *train, *evaluation, f"{row['lr']:.3g}", format_duration(row["seconds"])]


def epoch_line(cells: Sequence[str], columns: int) -> str:
    """Cells of the table of epochs, right-aligned on one line, without the least important ones that have no room.

    Args:
        columns: width of the terminal.
    """
    shown = list(range(len(EPOCH_WIDTHS)))
    for index in LEAST_IMPORTANT:
        if sum(EPOCH_WIDTHS[i] + 1 for i in shown) - 1 > columns:
            shown.remove(index)
    return " ".join(cells[i].rjust(EPOCH_WIDTHS[i]) for i in shown)


def describe_results(summary: Mapping[str, Any]) -> dict[str, str]:
    """The results to print, by name. `summary` as in summary.json; what it lacks is left out."""
    # A run's results are of the test set; those of `mnist-dist evaluate` may be of another one.
    split = next((name for name in ("test", "val", "train") if f"{name}.accuracy" in summary), "test")
    held_out: dict[str, Format] = {"val accuracy": (format_percent, ("val.accuracy",))} if split == "test" else {}
    formats: dict[str, Format] = {
        f"{split} accuracy": (format_accuracy, (f"{split}.accuracy", f"{split}.correct", f"{split}.count")),
        f"{split} loss": (format_loss, (f"{split}.loss",)),
        f"{split} top-2": (format_percent, (f"{split}.top2",)),
        **held_out,
        "steps": (str, ("train.steps",)),
        "whole epochs": (str, ("train.epochs",)),
        "training time": ("{:.1f} s".format, ("train.seconds",)),
        "speed": ("{:,.0f} images/s".format, ("train.images_per_second",)),
        "processes": (str, ("world_size",)),
        "machines": (str, ("machines",)),
        "device": (str, ("device",)),
        "precision": (str, ("precision",)),
        "parameters": ("{:,}".format, ("model.parameters",)),
        "weights": ("sha256 {:.12}".format, ("weights_sha256",)),
    }
    return {
        name: to_text(*(summary[key] for key in keys))
        for name, (to_text, keys) in formats.items()
        if all(summary.get(key) is not None for key in keys)
    }


def format_accuracy(accuracy: float, correct: int, count: int) -> str:
    """98.50 % (9850 of 10000)"""
    return f"{format_percent(accuracy)} ({correct} of {count})"


def confusion_cells(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[list[str]]:
    """The confusion matrix as text: a header, then a row for each true class.

    A row has the class's name, padded to one width; the counts, with `.` for 0; and the class's precision and recall
    in percent, with `-` where they are undefined.
    """
    names = list(classes)
    if any(len(name) > 1 for name in names):
        names = [f"{label} {name}" for label, name in enumerate(names)]
    width = min(max(map(cell_len, names)), MAX_CLASS_NAME)
    rows = [[" " * width, *(name[:1] for name in names), "prec %", "recall %"]]
    for label, counts in enumerate(confusion):
        correct, predicted = counts[label], sum(row[label] for row in confusion)
        ratios = (f"{100 * correct / whole:.2f}" if whole else "-" for whole in (predicted, sum(counts)))
        rows.append([set_cell_size(names[label], width), *(str(n) if n else "." for n in counts), *ratios])
    return rows


def mistake_cells(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[list[str]]:
    """The most frequent pairs of a class and another one that was predicted, as text: a header, then a row for each."""
    rows = [["truth", "prediction", "images", "of the class %"]]
    for count, label, predicted in most_frequent_mistakes(confusion, WORST_ROWS):
        share = f"{100 * count / sum(confusion[label]):.2f}"
        rows.append([cut_name(classes[label]), cut_name(classes[predicted]), str(count), share])
    return rows


def worst_class_cells(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[list[str]]:
    """Images, precision and recall of the classes with the lowest recall, as text: a header, then a row for each."""
    images, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    present = [label for label, count in enumerate(images) if count]
    worst = sorted(present, key=lambda label: (confusion[label][label] / images[label], label))[:WORST_ROWS]
    rows = [["class", "images", "prec %", "recall %"]]
    for label in worst:
        correct = confusion[label][label]
        ratios = (f"{100 * correct / whole:.2f}" if whole else "-" for whole in (predicted[label], images[label]))
        rows.append([cut_name(classes[label]), str(images[label]), *ratios])
    return rows


def cut_name(name: str) -> str:
    """A class name of at most MAX_LONG_NAME terminal cells."""
    return name if cell_len(name) <= MAX_LONG_NAME else set_cell_size(name, MAX_LONG_NAME - 3) + "..."


def list_table(rows: list[list[str]], names: int) -> Table:
    """A table with a bold header, of which the first `names` columns are names and the others numbers."""
    table = Table.grid(padding=(0, 2))
    for index in range(len(rows[0])):
        table.add_column(justify="left" if index < names else "right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*(Text(cell, "" if number else "bold") for cell in row))
    return table


def list_lines(rows: list[list[str]], names: int) -> list[str]:
    """The same as lines of plain text."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            set_cell_size(cell, width) if index < names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def facts_table(facts: Mapping[str, str]) -> Table:
    """A table of names and facts; long facts are folded within their column."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table


def facts_lines(facts: Mapping[str, str], columns: int) -> list[str]:
    """Names and facts as lines of plain text, in two columns; long facts are wrapped within theirs.

    Args:
        columns: width of the terminal.
    """
    indent = max(map(len, facts)) + 2
    lines = []
    for name, fact in facts.items():
        first, *rest = wrap(fact, max(columns - indent, 20), break_on_hyphens=False) or [""]
        lines += [name.ljust(indent) + first, *(" " * indent + line for line in rest)]
    return lines


class ConfusionTable:
    """The confusion matrix with right answers in green and mistakes in red, for a console of rich.

    A narrow terminal shows it without precision and recall, and with shorter names of the classes: no count is cut.

    Args:
        rows: as `confusion_cells` gives them.
    """

    def __init__(self, rows: list[list[str]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows, counts = self.rows, len(self.rows) - 1
        if table_width(rows) > options.max_width:
            rows = [row[: 1 + counts] for row in rows]
        excess = max(table_width(rows) - options.max_width, 0)
        names = max(cell_len(rows[0][0]) - excess, 1)
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        for _ in rows[0][1:]:
            table.add_column(justify="right", no_wrap=True)
        table.add_row(*(Text(cell, "bold") for cell in [rows[0][0][:names], *rows[0][1:]]))
        for truth, (name, *cells) in enumerate(rows[1:]):
            styles = ["green" if i == truth else "dim" if cells[i] == "." else "bold red" for i in range(counts)]
            styled = (Text(cell, style) for cell, style in zip_longest(cells, styles, fillvalue=""))
            table.add_row(Text(set_cell_size(name, names), "bold"), *styled)
        yield table


def table_width(rows: list[list[str]]) -> int:
    """Terminal cells of a table with one space between its columns."""
    return sum(max(map(cell_len, column)) + 1 for column in zip(*rows, strict=True)) - 1
