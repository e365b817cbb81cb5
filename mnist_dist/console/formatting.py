"""Numbers, rows and results in words: what all kinds of console show alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

MATRIX_TITLE = "Confusion on the test set (rows: truth, columns: prediction)"
NAME_CELLS = 11  # of a class in the confusion matrix, which is to fit into 80 columns
EPOCH_COLUMNS = (5, 10, 9, 10, 9, 10, 10, 8)


def number(value: float) -> str:
    """A loss."""
    return f"{value:.4f}"


def percent(value: float) -> str:
    """A fraction in percent; `-` where there is nothing."""
    return f"{100 * value:.2f} %" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03; `-:--` where it is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def live_metrics(row: Mapping[str, Any]) -> str:
    """The metrics of the last steps."""
    quality = f"loss {number(row['train.loss'])}, accuracy {percent(row['train.accuracy'])}"
    return f"{quality}, lr {row['lr']:.3g}, {row['images_per_second']:,.0f} images/s"


def held_out_metrics(split: str, row: Mapping[str, Any]) -> str:
    """The metrics of a split."""
    loss, accuracy, top2 = (row[f"{split}.{name}"] for name in ("loss", "accuracy", "top2"))
    return f"{split} loss {number(loss)}, {split} accuracy {percent(accuracy)}, {split} top-2 {percent(top2)}"


def epoch_heads(split: str) -> list[str]:
    """The heads of the table of epochs."""
    return ["epoch", "train loss", "train acc", f"{split} loss", f"{split} acc", f"{split} top-2", "lr", "time"]


def epoch_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of epochs."""
    split = row["split"]
    train = [number(row["epoch.train.loss"]), percent(row["epoch.train.accuracy"])]
    held_out = [number(row[f"{split}.loss"]), percent(row[f"{split}.accuracy"]), percent(row[f"{split}.top2"])]
    return [str(row["epoch"]), *train, *held_out, f"{row['lr']:.3g}", duration(row["seconds"])]


def epoch_line(cells: Sequence[str]) -> str:
    """Cells of the table of epochs, aligned."""
    return " ".join(cell.rjust(width) for cell, width in zip(cells, EPOCH_COLUMNS, strict=True))


def results(summary: Mapping[str, Any]) -> dict[str, str]:
    """What of a summary is shown, in words; absent keys are left out."""
    shown: dict[str, tuple[Callable[..., str], Sequence[str]]] = {
        "test accuracy": (of_count, ("test.accuracy", "test.correct", "test.count")),
        "test loss": (number, ("test.loss",)),
        "test top-2": (percent, ("test.top2",)),
        "val accuracy": (percent, ("val.accuracy",)),
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
        name: text(*(summary[key] for key in keys))
        for name, (text, keys) in shown.items()
        if all(summary.get(key) is not None for key in keys)
    }


def of_count(accuracy: float, correct: int, count: int) -> str:
    """An accuracy and what it was counted on."""
    return f"{percent(accuracy)} ({correct} of {count})"


def matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[list[str]]:
    """The cells of the confusion matrix, below their heads; beside it each class's precision and recall in percent.

    The first cell of each row is padded to one width.
    """
    names = list(classes)
    if any(len(name) > 1 for name in names):
        names = [f"{label} {name}" for label, name in enumerate(names)]
    width = min(max(map(cell_len, names)), NAME_CELLS)
    rows = [[" " * width, *(name[:1] for name in names), "prec %", "recall %"]]
    for truth, counts in enumerate(confusion):
        right, predicted = counts[truth], sum(row[truth] for row in confusion)
        ratios = (f"{100 * right / whole:.2f}" if whole else "-" for whole in (predicted, sum(counts)))
        rows.append([set_cell_size(names[truth], width), *(str(n) if n else "." for n in counts), *ratios])
    return rows
