"""The plots of docs/results.md as SVG, light or dark as the reader's system is; the same bytes from the same figures.

Each file names the SHA-256 of what was drawn and of this module, and the version of matplotlib: another version may
draw other bytes. matplotlib is imported where something is drawn.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

INK, PAPER, GREY = "#1f2328", "#ffffff", "#6e7781"
DARK = {INK: "#e6edf3", PAPER: "#0d1117", GREY: "#8d96a0"}
"""Colours in their place where the reader's system is dark. The other colours are readable on both."""
COLOURS = ("#2c7fb8", "#d1495b", "#2a9d6f", "#9a6fc4", "#b8860b", "#0e8a96", "#c2571a", "#7a7f00", "#5f6fd1", "#b5489a")
WIDTH, HEIGHT = 510, 300
"""Of the axes of a scatter plot, roughly, in points."""
Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and sharp at any size
}


@dataclass(frozen=True)
class Point:
    """One figure of a scatter plot: errors are fractions of the test set."""

    name: str
    x: float
    """Seconds or parameters; 0: not known, drawn as a line across."""
    error: float
    low: float
    high: float
    """Ends of the bar."""
    is_public: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture and what is drawn in it."""

    file: str
    alt: str
    data: Any
    """Of plain values, which decide the digest."""
    draw: Callable[[], Any]
    """Makes the matplotlib figure."""

    @property
    def digest(self) -> str:
        """SHA-256 of what is drawn and of the code that draws it."""
        code = Path(__file__).read_text(encoding="utf-8")
        return hashlib.sha256(json.dumps([self.data, self.alt, code]).encode()).hexdigest()


def scatter(file: str, alt: str, points: Sequence[Point], xlabel: str) -> Plot:
    """Test error against time or size, both logarithmic."""
    return Plot(file, alt, [asdict(point) for point in points], lambda: draw_scatter(points, xlabel))


def draw_scatter(points: Sequence[Point], xlabel: str) -> Any:
    """Own recipes as dots with bars, public figures as diamonds, or as dashed lines where x is not known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    placed = [point for point in points if point.x]
    places = place_labels(placed)
    for number, (point, place) in enumerate(zip(placed, places, strict=True)):
        colour, marker, ink = COLOURS[number % len(COLOURS)], "o", COLOURS[number % len(COLOURS)]
        if point.is_public:
            colour, marker, ink = GREY, "D", INK
        bar = [[100 * (point.error - point.low)], [100 * (point.high - point.error)]]
        axes.errorbar([point.x], [100 * point.error], bar, fmt=marker, color=colour, capsize=3, markersize=6)
        label(axes, point.name, ink, xy=(point.x, 100 * point.error), **place)
    for point in (point for point in points if not point.x):
        axes.axhline(100 * point.error, color=GREY, linestyle="--", linewidth=1)
        place = {"xy": (0.99, 100 * point.error), "xycoords": ("axes fraction", "data")}
        label(axes, point.name, INK, **place, xytext=(0, 3), ha="right")
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="test error, %")
    spread = max(point.x for point in placed) / min(point.x for point in placed)
    plain_ticks(axes.yaxis, (1, 2, 5))
    plain_ticks(axes.xaxis, (1, 2, 5) if spread < 300 else (1,))
    axes.margins(x=0.08, y=0.1)
    return figure


def place_labels(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Where the name of each point stands: on the first side on which it covers no marker and no other name.

    Lengths are in points of the page, as the axes are about WIDTH by HEIGHT of these.
    """
    xs, ys = ([math.log(value) for value in values] for values in zip(*((p.x, p.error) for p in points), strict=True))
    spots = [
        (WIDTH * 0.84 * share_of(x, xs) + 0.08 * WIDTH, HEIGHT * 0.8 * share_of(y, ys) + 0.1 * HEIGHT)
        for x, y in zip(xs, ys, strict=True)
    ]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    places = []
    for point, (x, y) in zip(points, spots, strict=True):
        length = 5 * len(point.name)
        options: list[tuple[int, int, Box, dict[str, Any]]] = []
        for side, height in ((1, 4), (1, -11), (-1, 4), (-1, -11)):
            left = x + 7 if side > 0 else x - 7 - length
            box = (left, y + height, left + length, y + height + 8)
            hits = sum(overlaps(box, other) for other in taken) + (left < 0 or left + length > WIDTH)
            options.append(
                (hits, len(options), box, {"xytext": (7 * side, height), "ha": "left" if side > 0 else "right"})
            )
        _, _, box, place = min(options, key=lambda option: option[:2])
        taken.append(box)
        places.append(place)
    return places


def share_of(value: float, values: Sequence[float]) -> float:
    """Where a value lies between the least and the largest one, from 0 to 1."""
    return (value - min(values)) / ((max(values) - min(values)) or 1)


def overlaps(box: Box, other: Box) -> bool:
    """Whether two boxes have a place in common."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def label(axes: Any, text: str, colour: str, **place: Any) -> None:
    """A small text beside a place."""
    axes.annotate(text, textcoords="offset points", color=colour, fontsize=8.5, **place)


def plain_ticks(axis: Any, steps: Sequence[float]) -> None:
    """Numbers such as 0.5 and 20,000 on a logarithmic axis, at these multiples of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def robustness_plot(
    file: str,
    alt: str,
    shares: Mapping[str, Mapping[str, Sequence[float]]],
    sizes: Mapping[str, Sequence[float]],
    units: Mapping[str, str],
) -> Plot:
    """Accuracy by size of each corruption.

    Args:
        shares: recipe to corruption to mean accuracies, as fractions, by severity; of `clean` one.
        sizes: corruption to its sizes.
        units: corruption to the unit of its sizes.
    """
    return Plot(file, alt, [shares, sizes, units], lambda: draw_robustness(shares, sizes, units))


def draw_robustness(
    shares: Mapping[str, Mapping[str, Sequence[float]]], sizes: Mapping[str, Sequence[float]], units: Mapping[str, str]
) -> Any:
    """One panel a corruption, one line a recipe; at size 0 the clean test set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flat
    styles = ("-", "--", ":")
    for axes, (name, unit) in zip(panels, units.items(), strict=False):
        for number, (recipe, found) in enumerate(shares.items()):
            style = styles[number // len(COLOURS) % len(styles)]
            values = [100 * share for share in [*found["clean"], *found[name]]]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([0, *sizes[name]], values, style, marker=".", color=colour, linewidth=1.3, label=recipe)
        axes.set_title(name, loc="left")
        axes.set(xlabel=unit, ylim=(0, 102))
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[3].set_ylabel("test accuracy, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9)
    return figure


def to_svg(plot: Plot) -> str:
    """The picture. Needs matplotlib."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        about = {"Date": None, "Creator": f"matplotlib {mpl.__version__}", "Description": f"sha256 {plot.digest}"}
        FigureCanvasSVG(plot.draw()).print_svg(stream, metadata=about)
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    text = re.sub(r"[ \t]+$", "", number_ids(stream.getvalue()), flags=re.MULTILINE)
    return text.replace("<defs>", f"{style}\n <defs>", 1)


def number_ids(svg: str) -> str:
    """The picture with ids that are numbers in order of appearance.

    matplotlib's are digests of coordinates, whose last bits depend on the processor.
    """
    found = dict.fromkeys(re.findall(r'id="([a-z][0-9a-f]{10})"', svg))
    for number, name in enumerate(found):
        svg = svg.replace(name, f"{name[0]}{number}")
    return svg


def stamp_of(svg: str) -> tuple[str, str]:
    """The digest and the version of matplotlib that a picture names; empty where it names none."""
    digest = re.search(r"<dc:description>sha256 (\w+)</dc:description>", svg)
    version = re.search(r"<dc:title>matplotlib ([\w.+]+)</dc:title>", svg)
    return digest[1] if digest else "", version[1] if version else ""
