"""Handlers for the signals by which a scheduler, `kill` or Ctrl-C asks a run to stop: they set a flag and return.

The run stops later, at a step boundary that all ranks agree on, because a signal handler may not call a collective.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


@contextlib.contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Call `request_stop` on SIGTERM, SIGUSR1 and the first Ctrl-C; a second Ctrl-C raises KeyboardInterrupt.

    The previous handlers are restored at the end. Off the main thread, where Python allows no handlers, nothing is
    installed: the program that embeds this one handles its signals.

    Args:
        request_stop: runs inside the signal handler, so it may only set a flag.
    """
    interrupts = itertools.count()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and next(interrupts):
            raise KeyboardInterrupt
        request_stop()

    try:
        before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
