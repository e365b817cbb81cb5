"""The figures of a report as SVG: curves, confusion matrix, step times. Text and axes take the page's own colour.

matplotlib is imported here only; it is an optional package (`pip install 'mnist_dist[report]'`).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mnist_dist.tracking.run_record import RunRecord

INK = "#010203"  # becomes the CSS variable --ink, which is light in a dark page
INK_VARIABLE = "var(--ink)"
COLOURS = (  # 3:1 on white and on black
    *("#2c7fb8", "#d1495b", "#2a9d6f", "#9a6fc4", "#b8860b"),
    *("#0e8a96", "#c2569b", "#6b8e23", "#5c7cfa", "#c1662d"),
)
DASHES = ((), (6, 3), (2, 3))
"""Lengths of the dashes and gaps of training, validation and test in points, where colours tell the runs."""
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, enlarged and read aloud
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
MAX_NUMBERED = 12
"""Classes up to which the confusion matrix shows its counts."""
MAX_LABELS = 50
"""Classes that are named along an axis of the confusion matrix: of more, every second or third one, and so on."""
Curve = tuple[str, str, Callable[[float], float]]
"""A metric's key, what its line is called, and how its values are shown."""

ERROR: Callable[[float], float] = lambda value: 100 * (1 - value)  # noqa: E731
SAME: Callable[[float], float] = lambda value: value  # noqa: E731
CHARTS: dict[str, list[Curve]] = {
    "error (%)": [
        ("train.accuracy", "train", ERROR),
        ("val.accuracy", "validation", ERROR),
        ("test.accuracy", "test", ERROR),
    ],
    "loss": [("train.loss", "train", SAME), ("val.loss", "validation", SAME), ("test.loss", "test", SAME)],
    "learning rate": [("lr", "", SAME)],
    "images per second": [("images_per_second", "", SAME)],
}
LOGARITHMIC = ("error (%)", "loss")
MARGINS = {"left": 0.13, "right": 0.98, "top": 0.91, "bottom": 0.16}
"""Of a chart, as fractions of its size. To compute them from the labels takes longer than to draw the chart."""


@dataclass(frozen=True)
class Chart:
    """A chart of one metric."""

    title: str
    """What it shows."""
    svg: str
    """The picture, without a legend: `legend` is that of all charts of a page."""
    text: str
    """The last value of each line, in words."""


def draw_curves(records: Sequence[RunRecord], by_time: bool) -> list[Chart]:
    """Error, loss, learning rate and speed of all runs, over steps or over seconds of training.

    Each is a figure of its own, which fits a phone. No legend lies over the lines, however long the runs' names are.
    """
    return [draw_chart(records, title, curves, by_time) for title, curves in CHARTS.items()]


def draw_chart(records: Sequence[RunRecord], title: str, curves: Sequence[Curve], by_time: bool) -> Chart:
    """One chart. The colour tells the run and the dashes the split; of one run, the colour tells the split."""
    many = len(records) > 1
    last: list[str] = []
    values: list[float] = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3))
        axes = figure.subplots(gridspec_kw=MARGINS)
        for number, record in enumerate(records):
            seconds = record.training_seconds() if by_time else {}
            for split, (key, name, shown) in enumerate(curves):
                points = [
                    (seconds.get(x) if by_time else x, shown(y)) for x, y in zip(*record.series(key), strict=True)
                ]
                points = [(x, y) for x, y in points if x is not None]
                if not points:
                    continue
                colour, dashes = line_style(number, split, many)
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linestyle=(0, dashes) if dashes else "solid",
                    marker="o" if len(points) < 20 else None,
                    markersize=3,
                    linewidth=1.5,
                )
                values += [y for _, y in points]
                last.append(" ".join(filter(None, (record.name if many else "", name, f"{points[-1][1]:.4g}"))))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("seconds of training" if by_time else "step")
        if title in LOGARITHMIC:
            scale_logarithmically(axes, values)
        svg = to_svg(figure, f"{'time' if by_time else 'step'}-{list(CHARTS).index(title)}")
    return Chart(title, svg, ", ".join(last))


def line_style(number: int, split: int, many: bool) -> tuple[str, tuple[int, ...]]:
    """Colour and dashes of a line.

    Args:
        number: of the run.
        split: 0 for training, 1 for validation, 2 for test.
        many: whether there are several runs.
    """
    return (COLOURS[number % len(COLOURS)], DASHES[split]) if many else (COLOURS[split], ())


def legend(records: Sequence[RunRecord]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, colour and dashes of each run and of each split that a run has rows of."""
    many = len(records) > 1
    lines: list[tuple[str, str, tuple[int, ...]]] = []
    if many:
        lines = [(record.name, *line_style(number, 0, many)) for number, record in enumerate(records)]
    for split, (key, name, _) in enumerate(CHARTS["loss"]):
        if any(record.series(key)[0] for record in records):
            colour, dashes = line_style(0, split, many)
            lines.append((name, INK_VARIABLE if many else colour, dashes))
    return lines


def scale_logarithmically(axes: Any, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic, with plain numbers. Down to 0 it is linear, where some value is 0."""
    positive = [value for value in values if value > 0]
    if not positive:
        return
    low, high = min(positive), max(positive)
    if min(values) <= 0:
        axes.set_yscale("symlog", linthresh=low)
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 4, 6) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,))
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], run: str) -> str:
    """A confusion matrix: true classes down, predicted ones across; right answers blue, mistakes red.

    Args:
        run: an id of the run in the page.
    """
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        count = len(classes)
        side = 1.3 + 0.37 * count if count <= MAX_NUMBERED else 6.5
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        colours = [cell_colours(row, label) for label, row in enumerate(confusion)]
        axes.imshow(colours, interpolation="nearest")
        if count <= MAX_NUMBERED:
            for label, row in enumerate(confusion):
                for predicted, images in enumerate(row):
                    if images:
                        axes.text(predicted, label, str(images), ha="center", va="center", fontsize=8)
        step = math.ceil(count / MAX_LABELS)
        size = 9 if count <= MAX_NUMBERED else 7
        rotation = 90 if max(map(len, classes)) > 2 else 0
        axes.set_xticks(range(0, count, step), classes[::step], rotation=rotation, fontsize=size)
        axes.set_yticks(range(0, count, step), classes[::step], fontsize=size)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return to_svg(figure, f"{run}-confusion")


def cell_colours(row: Sequence[int], label: int) -> list[tuple[float, float, float, float]]:
    """Colours of one row of a confusion matrix, as red, green, blue and opacity; transparent for no image."""
    total = max(sum(row), 1)
    colours = []
    for predicted, images in enumerate(row):
        if predicted == label:
            colours.append((0.17, 0.50, 0.72, 0.15 + 0.35 * images / total))
        else:
            colours.append((0.82, 0.29, 0.36, min(0.15 + 8 * images / total, 0.85) if images else 0.0))
    return colours


def draw_rank_times(record: RunRecord, run: str) -> str:
    """Compute time of a step on the fastest and the slowest rank; empty if the run had one process."""
    steps, least = record.series("step_seconds.least")
    _, most = record.series("step_seconds.most")
    if not steps or len(least) != len(most):
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, [1000 * value for value in most], color=COLOURS[1], label="slowest rank")
        axes.plot(steps, [1000 * value for value in least], color=COLOURS[0], label="fastest rank")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("ms per step")
        axes.legend(fontsize=8)
        return to_svg(figure, f"{run}-ranks")


def to_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element for an HTML page.

    Args:
        name: makes the ids in it differ from those of other figures of the page.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):  # ids are the same each time
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, INK_VARIABLE)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
