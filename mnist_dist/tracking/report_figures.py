"""The figures of a report as SVG: curves, confusion matrix, step times. Text and axes take the page's own colour.

matplotlib is imported here only; it is an optional package (`pip install 'mnist_dist[report]'`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mnist_dist.tracking.run_record import RunRecord

INK = "#010203"  # becomes the CSS variable --ink, which is light in a dark page
COLOURS = ("#2c7fb8", "#d1495b", "#2a9d6f", "#9a6fc4", "#b8860b", "#0e8a96")  # 3:1 on white and on black
DASHES = ("solid", "dashed", "dotted", "dashdot")
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, enlarged and read aloud
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
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


def draw_curves(records: Sequence[RunRecord], by_time: bool) -> str:
    """Error, loss, learning rate and speed of all runs, over steps or over seconds of training."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        for axes, (label, curves) in zip(figure.subplots(2, 2).flat, CHARTS.items(), strict=True):
            for number, record in enumerate(records):
                draw_run(axes, record, curves, number, by_time, len(records) > 1)
            axes.set_title(label, fontsize=11)
            axes.set_xlabel("seconds of training" if by_time else "step")
            if label in ("error (%)", "loss") and axes.lines:
                axes.set_yscale("log")
                axes.legend(fontsize=8)
        if len(records) > 1:
            figure.axes[2].legend(fontsize=8)
        return to_svg(figure, "time" if by_time else "step")


def draw_run(axes: Any, record: RunRecord, curves: Sequence[Curve], number: int, by_time: bool, many: bool) -> None:
    """The curves of one run. The colour tells the run, the dashes tell the split."""
    seconds = record.training_seconds() if by_time else {}
    for dash, (key, name, shown) in enumerate(curves):
        steps, values = record.series(key)
        points = [
            (seconds.get(step) if by_time else step, shown(value)) for step, value in zip(steps, values, strict=True)
        ]
        points = [(x, y) for x, y in points if x is not None]
        if points:
            label = " ".join(filter(None, (record.name if many else "", name)))
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                label=label or None,
                color=COLOURS[(number if many else dash) % len(COLOURS)],
                linestyle=DASHES[dash % len(DASHES)] if many else "solid",
                marker="o" if len(points) < 20 else None,
                markersize=3,
                linewidth=1.5,
            )


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], run: str) -> str:
    """A confusion matrix: true classes down, predicted ones across; right answers blue, mistakes red.

    Args:
        run: an id of the run in the page.
    """
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        count = len(classes)
        side = min(2 + 0.5 * count, 9)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        colours = [cell_colours(row, label) for label, row in enumerate(confusion)]
        axes.imshow(colours, interpolation="nearest")
        if count <= MAX_NUMBERED:
            for label, row in enumerate(confusion):
                for predicted, images in enumerate(row):
                    if images:
                        axes.text(predicted, label, str(images), ha="center", va="center", fontsize=8)
        step = max(count // 24, 1)
        axes.set_xticks(range(0, count, step), classes[::step], rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(0, count, step), classes[::step])
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
        figure = Figure(figsize=(9, 2.6), layout="constrained")
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
    text = text[text.index("<svg") :].replace(INK, "var(--ink)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
