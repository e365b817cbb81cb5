"""Timings on a machine that others use too: wait until it is quiet, and drop what was measured while it was not."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")
OTHERS = 0.05  # share of the machine's CPU time that other programs may take
TRIES = 100
NEVER = f"other programs took more than {100 * OTHERS:.0f} % of the machine in all of {TRIES} tries"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


class Others:
    """The CPU time that other programs take from here on.

    The kernel's time is left out of all counts: nobody can say for whom it worked on sockets.
    """

    def __init__(self) -> None:
        self.before, self.start = user_seconds(), time.perf_counter()

    def share(self, own: float) -> float:
        """Their share of the machine so far, where `own` user seconds were ours."""
        spent = user_seconds() - self.before - own
        return spent / ((os.cpu_count() or 1) * (time.perf_counter() - self.start))


def user_seconds() -> float:
    """CPU seconds that all programs of the machine have had so far."""
    total = psutil.cpu_times()
    return total.user + getattr(total, "nice", 0.0)


def own_seconds() -> float:
    """CPU seconds that this process and its ended children have had so far."""
    own = os.times()
    return own.user + own.children_user


def wait_for_quiet() -> None:
    """Return once others take next to nothing, for two seconds."""
    while psutil.cpu_percent(interval=2) > 100 * OTHERS:
        pass


def when_quiet(measure: Callable[[], T]) -> T:
    """The first result of `measure` during which others took less than OTHERS. It must wait for its children.

    Raises:
        TimeoutError: it never was so quiet in TRIES tries.
    """
    for _ in range(TRIES):
        wait_for_quiet()
        others, before = Others(), own_seconds()
        result = measure()
        if others.share(own_seconds() - before) < OTHERS:
            return result
    raise TimeoutError(NEVER)
