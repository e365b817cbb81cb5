"""Rows and media as wandb's own objects: bars, confusion matrices, tables, images, histograms.

Plain tables with wandb's own charts over them: each is a JSON file in the run's folder, which is readable without a
server. wandb is handed in, because only the tracker's thread imports it; everything here runs there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mnist_dist.tracking.media import Example, Histogram, Media, wandb_key

Values = dict[str, Any]


def row_values(wandb: Any, row: Mapping[str, Any], classes: Sequence[str]) -> Values:
    """What wandb is to log of a row: its numbers, and a chart for each list that `Metrics.details` gives.

    Not of a whole epoch's training, whose charts would cost as much as those of the held-out set: 11 ms of one core.

    Args:
        row: flat, with dotted keys; `step` and `time` are left out.
        classes: ten names; none: without charts.
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
    """A bar for each class. nan, of a class that never occurs, is none."""
    data = [[name, finite(value)] for name, value in zip(classes, values, strict=True)]
    return wandb.plot.bar(wandb.Table(columns=["class", kind], data=data), "class", kind, title=title)


def confusion_matrix(wandb: Any, title: str, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Any:
    """wandb's confusion matrix, from counts: its own function wants every single prediction."""
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
    """What wandb is to log of one step's media; what is empty is left out."""
    values: Values = {
        name: example_table(wandb, step, epoch, media.split, examples, classes)
        for name, examples in (("mistakes", media.mistakes), ("samples", media.samples))
        if examples
    }
    for kind, images in (("maps", media.maps), ("filters", media.filters)):
        values |= {f"{kind}/{wandb_key(name)}": wandb.Image(image, mode="L") for name, image in images.items()}
    for kind, histograms in (("parameters", media.parameters), ("gradients", media.gradients)):
        values |= {f"{kind}/{wandb_key(name)}": histogram(wandb, each) for name, each in histograms.items()}
    return values


def example_table(
    wandb: Any, step: int, epoch: int, split: str, examples: Iterable[Example], classes: Sequence[str]
) -> Any:
    """A row for each image, with the probability of each class.

    Each step has a table of its own, whose rows say the step: wandb shows the newest, or all, one below the other
    (`history.concat`). Tables that grow (wandb's INCREMENTAL) would lose what was logged before a stop offline.
    """
    columns = ["global_step", "epoch", "split", "index", "image", "label", "predicted", "loss"]
    data = [
        [
            *(step, epoch, split, each.index, wandb.Image(each.image, mode="L")),
            *(classes[each.label], classes[each.predicted], finite(each.loss)),
            *(finite(probability) for probability in each.probabilities),
        ]
        for each in examples
    ]
    return wandb.Table(columns=[*columns, *(f"p({name})" for name in classes)], data=data)


def histogram(wandb: Any, each: Histogram) -> Any:
    """wandb's histogram of counts that are already made."""
    return wandb.Histogram(np_histogram=(list(each.counts), list(each.edges)))


def finite(value: float | None) -> float | None:
    """A number that a column of numbers can hold, or None."""
    return value if value is not None and math.isfinite(value) else None
