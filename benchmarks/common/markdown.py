"""Tables and their cells in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from mnist_dist.tracking.results import Statistics

ACCURACY = ("seeds", "mean", "standard deviation", "least", "most")
"""Headings of accuracies over seeds."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table.

    Args:
        left: columns that are aligned at their left, from the first one; the others are numbers.
    """
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *rows))


def percent(fraction: float) -> str:
    """99.07 %; of small fractions 0.062 %."""
    return f"{100 * fraction:.3f} %" if fraction < 0.005 else f"{100 * fraction:.2f} %"


def between(interval: tuple[float, float]) -> str:
    """99.03 to 99.11 %."""
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def optional(shown: Callable[..., str], value: object) -> str:
    """A value, or nothing for None."""
    return "" if value is None else shown(value)


def duration(seconds: float) -> str:
    """0.74 s, or 12 min."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"


def joined(texts: set[str]) -> str:
    """Different texts, in order."""
    return "; ".join(sorted(texts))


def short_commit(commit: str) -> str:
    """The first digits of a commit, and whether files were changed."""
    return commit[:9] + "+changes" * commit.endswith("+changes")


def accuracy_cells(found: Statistics) -> list[str]:
    """What ACCURACY is the headings of."""
    shares = [percent(found.least), percent(found.most)]
    return [str(found.count), f"**{percent(found.mean)}**", optional(percent, found.deviation), *shares]
