"""Checks that all processes of a run agree: settings, code, versions, clocks."""

from __future__ import annotations

CLOCK_SECONDS = 5.0
"""By which the clocks of machines may differ before it is worth a word."""


def describe_clocks(clocks: list[float]) -> str | None:
    """One line if clocks that were read at once, one a rank, are far apart."""
    first, last = min(clocks), max(clocks)
    if last - first <= CLOCK_SECONDS:
        return None
    ahead, behind = clocks.index(last), clocks.index(first)
    return (
        f"the clock of rank {ahead} is {last - first:.0f} s ahead of rank {behind}'s: times in logs and metrics "
        "of this run do not fit together; set the machines' clocks (NTP)"
    )
