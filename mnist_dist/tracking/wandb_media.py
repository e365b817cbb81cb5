"""Rows and media as wandb objects: bar charts, confusion matrices, tables, images, histograms.

Charts are wandb's own, drawn from tables: each table is a JSON file in the run's folder that can be read without a
server. Everything here runs on the tracker's thread. The module wandb is an argument, because only that thread imports
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mnist_dist.config.data_sets import MAX_MATRIX_CLASSES
from mnist_dist.tracking.media import Example, Histogram, Media, wandb_key

Values = dict[str, Any]


def row_values(wandb: Any, row: Mapping[str, Any], classes: Sequence[str]) -> Values:
    """A row for wandb: its numbers, and a chart for each list of `Metrics.details`.

    The training metrics of a whole epoch (`epoch.*`) get no charts; they would take 11 ms of a core, as those of an
    evaluation do.

    Args:
        row: flat, with dotted keys; `step` and `time` are left out.
        classes: names of the classes, or none for no charts.
    """
    values: Values = {}
    for key, value in row.items():
        kind = key.rpartition(".")[2]
        if not isinstance(value, list):
            values |= {} if key in ("step", "time") else {wandb_key(key): value}
        elif not classes or key.startswith("epoch."):
            continue
        elif kind in ("recall", "precision"):
            values[wandb_key(key)] = class_bars(wandb, wandb_key(key), kind, value, classes)
        elif kind == "confusion":
            values[wandb_key(key)] = confusion_matrix(wandb, wandb_key(key), value, classes)
    return values


def class_bars(wandb: Any, title: str, kind: str, values: Sequence[float | None], classes: Sequence[str]) -> Any:
    """A bar chart of recall or precision. A class that never occurs, whose value is nan, has no bar."""
    data = [[name, finite(value)] for name, value in zip(classes, values, strict=True)]
    return wandb.plot.bar(wandb.Table(columns=["class", kind], data=data), "class", kind, title=title)


def confusion_matrix(wandb: Any, title: str, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Any:
    """wandb's confusion matrix from counts, because `wandb.plot.confusion_matrix` takes every single prediction."""
    columns = ["Actual", "Predicted", "nPredictions"]
    data = [
        [actual, predicted, count]
        for actual, row in zip(classes, counts, strict=True)
        for predicted, count in zip(classes, row, strict=True)
    ]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=columns, data=data, dtype=[str, str, int], optional=False),
        fields={column: column for column in columns},
        string_fields={"title": title},
    )


def media_values(wandb: Any, step: int, epoch: int, media: Media, classes: Sequence[str]) -> Values:
    """The media of a step for wandb; empty media are left out."""
    values: Values = {
        name: example_table(wandb, step, epoch, media.split, examples, classes)
        for name, examples in (("mistakes", media.mistakes), ("samples", media.samples))
        if examples
    }
    for kind, images in (("maps", media.maps), ("filters", media.filters)):
        values |= {f"{kind}/{wandb_key(name)}": wandb.Image(image, mode="L") for name, image in images.items()}
    for kind, histograms in (("parameters", media.parameters), ("gradients", media.gradients)):
        values |= {f"{kind}/{wandb_key(name)}": wandb_histogram(wandb, each) for name, each in histograms.items()}
    return values


def example_table(
    wandb: Any, step: int, epoch: int, split: str, examples: Iterable[Example], classes: Sequence[str]
) -> Any:
    """A table with a row for each image: its label, prediction, loss and class probabilities.

    Each step has a table of its own, whose rows have the step: wandb shows the newest table, or all of them one below
    the other (`history.concat`). A growing table (wandb's INCREMENTAL mode) would lose, offline, the rows of earlier
    segments.
    """
    shown = classes if len(classes) <= MAX_MATRIX_CLASSES else ()  # a column for each
    columns = ["global_step", "epoch", "split", "index", "image", "label", "predicted", "loss"]
    data = [
        [
            *(step, epoch, split, each.index, wandb.Image(each.image, mode="L")),
            *(classes[each.label], classes[each.predicted], finite(each.loss)),
            *(finite(probability) for probability in each.probabilities[: len(shown)]),
        ]
        for each in examples
    ]
    return wandb.Table(columns=[*columns, *(f"p({name})" for name in shown)], data=data)


def wandb_histogram(wandb: Any, histogram: Histogram) -> Any:
    """wandb's histogram of counts."""
    return wandb.Histogram(np_histogram=(list(histogram.counts), list(histogram.edges)))


def finite(value: float | None) -> float | None:
    """The value, or None if it is not finite: a table's column of numbers cannot hold nan."""
    return value if value is not None and math.isfinite(value) else None
