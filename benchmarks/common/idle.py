"""Timings on a machine that others use too: wait until it is idle, and repeat what was measured while it was not."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch

from common.progress import say
from mnist_dist.commands.arguments import Parser
from mnist_dist.utils.errors import TrainingError

T = TypeVar("T")
MAX_LOAD = 0.05  # share of the machine's CPU time that other programs may take
TRIES = 100


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def add_max_load(parser: Parser) -> None:
    """Add --max_load."""
    parser.add_argument(
        "--max_load",
        type=float,
        default=MAX_LOAD,
        metavar="SHARE",
        help="share of the machine's CPU time that other programs may take during a measurement; with 1 it neither "
        "waits nor repeats anything (default: %(default)s)",
    )


class OtherLoad:
    """The CPU time that other programs take from here on.

    Time in the kernel is left out of all counts: nobody can say for whom it worked on sockets.
    """

    def __init__(self) -> None:
        self.before, self.start = total_user_seconds(), time.perf_counter()

    def share(self, own: float) -> float:
        """Their share of the machine so far, as a fraction.

        Args:
            own: user seconds of the benchmark itself since then.
        """
        others = total_user_seconds() - self.before - own
        return others / ((os.cpu_count() or 1) * (time.perf_counter() - self.start))


def total_user_seconds() -> float:
    """CPU seconds that all programs of the machine have had so far."""
    total = psutil.cpu_times()
    return float(total.user + getattr(total, "nice", 0.0))


def own_user_seconds() -> float:
    """CPU seconds that this process and its ended children have had so far."""
    own = os.times()
    return own.user + own.children_user


def wait_until_idle(max_load: float, report: Callable[[str], None] = say) -> None:
    """Return once all programs together take less than `max_load` of the machine, for two seconds."""
    told = False
    while max_load < 1 and (percent := psutil.cpu_percent(interval=2)) > 100 * max_load:
        if not told:
            report(f"waiting until the machine is idle: programs take {percent:.0f} % of it (--max_load)")
        told = True


def measure_when_idle(measure: Callable[[], T], max_load: float) -> T:
    """The first result of `measure` during which other programs took less than `max_load` of the machine.

    Args:
        measure: waits for the end of all processes that it starts.

    Raises:
        TrainingError: the machine never was idle enough in TRIES tries.
    """
    for _ in range(TRIES):
        wait_until_idle(max_load)
        load, before = OtherLoad(), own_user_seconds()
        result = measure()
        share = load.share(own_user_seconds() - before)
        if max_load >= 1 or share < max_load:
            return result
        say(f"repeated: other programs took {share:.0%} of the machine (--max_load)")
    raise TrainingError(never_idle(max_load))


def never_idle(max_load: float) -> str:
    """Why a benchmark gives up."""
    return f"other programs took more than {max_load:.0%} of the machine in all of {TRIES} tries; raise --max_load"
