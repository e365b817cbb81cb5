"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


@contextlib.contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and Ctrl-C ask for a stop; a second Ctrl-C ends at once.

    Args:
        request_stop: called by the handler, so it may only set a flag.
    """
    interrupts = itertools.count()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and next(interrupts):
            raise KeyboardInterrupt
        request_stop()

    try:
        before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread: whoever embeds us handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
