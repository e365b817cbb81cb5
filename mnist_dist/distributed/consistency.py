"""Check that all ranks have the same configuration, code, versions, precision and hardware, and similar clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mnist_dist.utils.errors import UserError

if TYPE_CHECKING:
    from mnist_dist.distributed.runtime import Runtime

T = TypeVar("T")

MAX_CLOCK_SKEW = 5.0  # seconds; a larger difference between two clocks is worth a warning


def check_ranks_agree(runtime: Runtime, values: dict[str, dict[str, Any]]) -> list[float]:
    """Check that every rank has the same values as rank 0, by one all-gather. Every rank must call it.

    Args:
        values: groups of values to compare. The key of a group describes it in the error message.

    Returns:
        Clock of each rank, in seconds since 1970. All ranks read it at about the same time.

    Raises:
        UserError: a value differs. The message names the first rank and up to three keys that do.
    """
    ranks = runtime.all_gather_object((values, time.time()))
    for group, expected in ranks[0][0].items():
        for rank, (found_groups, _) in enumerate(ranks[1:], start=1):
            found = found_groups.get(group, {})
            keys = sorted(key for key in expected.keys() | found.keys() if found.get(key) != expected.get(key))
            if keys:
                differences = ", ".join(f"{k}={found.get(k)!r} against {expected.get(k)!r}" for k in keys[:3])
                raise UserError(f"{group} of rank {rank} differs from rank 0's: {differences}; start all with the same")
    return [clock for _, clock in ranks]


def run_on_all_ranks(runtime: Runtime, action: Callable[[], T]) -> T:
    """Run an action on every rank; if it fails on one, all ranks end. Every rank must call it.

    Args:
        action: uses no collective.

    Raises:
        UserError: what the action raised on the first rank where it failed, which is named unless it is rank 0.
    """
    result, error = None, None
    try:
        result = action()
    except UserError as caught:
        error = caught
    failures = runtime.all_gather_object(str(error) if error else "")
    rank = next((rank for rank, text in enumerate(failures) if text), None)
    if rank is not None:
        raise UserError(f"rank {rank}: {failures[rank]}" if rank else failures[rank]) from error
    return result  # type: ignore[return-value]


def describe_clock_skew(clocks: list[float]) -> str | None:
    """A warning if two clocks are more than 5 s apart, else None.

    Args:
        clocks: clock of each rank, in seconds, read at about the same time.
    """
    first, last = min(clocks), max(clocks)
    if last - first <= MAX_CLOCK_SKEW:
        return None
    ahead, behind = clocks.index(last), clocks.index(first)
    return (
        f"the clock of rank {ahead} is {last - first:.0f} s ahead of rank {behind}'s: times in logs and metrics "
        "of this run do not fit together; set the machines' clocks (NTP)"
    )
