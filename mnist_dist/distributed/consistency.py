"""Checks that all ranks of a run agree: configuration, code, versions, precision, hardware; and their clocks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mnist_dist.utils.errors import UserError

if TYPE_CHECKING:
    from mnist_dist.distributed.runtime import Runtime

MAX_CLOCK_SKEW = 5.0  # seconds between the clocks of two machines that are not worth a warning


def check_ranks_agree(runtime: Runtime, claims: dict[str, dict[str, Any]]) -> list[float]:
    """Stop if a rank's values differ from rank 0's. One all-gather; every rank must call it.

    Args:
        claims: values by key, under the name of what they describe; the first difference is reported.

    Returns:
        Each rank's clock, in seconds since 1970, read as close together as the ranks are.

    Raises:
        UserError: names the keys that differ, and the rank.
    """
    answers = runtime.all_gather_object((claims, time.time()))
    for what, expected in answers[0][0].items():
        for rank, (theirs, _) in enumerate(answers[1:], start=1):
            found = theirs.get(what, {})
            keys = sorted(key for key in expected.keys() | found.keys() if found.get(key) != expected.get(key))
            if keys:
                shown = ", ".join(f"{k}={found.get(k)!r} against {expected.get(k)!r}" for k in keys[:3])
                raise UserError(f"{what} of rank {rank} differs from rank 0's: {shown}; start all with the same")
    return [clock for _, clock in answers]


def describe_clock_skew(clocks: list[float]) -> str | None:
    """A warning if clocks that were read at once, one per rank, are far apart."""
    first, last = min(clocks), max(clocks)
    if last - first <= MAX_CLOCK_SKEW:
        return None
    ahead, behind = clocks.index(last), clocks.index(first)
    return (
        f"the clock of rank {ahead} is {last - first:.0f} s ahead of rank {behind}'s: times in logs and metrics "
        "of this run do not fit together; set the machines' clocks (NTP)"
    )
