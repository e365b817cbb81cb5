"""Handlers for the signals that ask a run to stop (of a scheduler, `kill`, a keyboard, a closed terminal): set a flag.

The run stops later, at a step boundary that all ranks agree on, because a signal handler may not call a collective.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

INTERRUPTS = ("SIGINT", "SIGQUIT")
"""Sent from a keyboard: Ctrl-C and Ctrl-\\. The second one ends the run at once."""
ASKS_TO_STOP = ("SIGTERM", "SIGINT", "SIGUSR1")
WOULD_KILL = ("SIGHUP", "SIGQUIT", "SIGUSR2", "SIGXCPU")
"""A closed terminal, Ctrl-\\, submitit's notice, a limit of CPU time. Where they are ignored (nohup) or have a handler
already, that is left as it is."""
PROC_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def stop_on_signals(request_stop: Callable[[], None], repeat_seconds: float = 0.0) -> Iterator[None]:
    """Call `request_stop` on the signals of ASKS_TO_STOP, and on those of WOULD_KILL whose action is the default one.

    A second Ctrl-C or Ctrl-\\ raises KeyboardInterrupt. The previous handlers are restored at the end. Handlers that
    Python does not know (faulthandler's) are left in place. Off the main thread, where Python allows no handlers,
    nothing is installed: the program that embeds this one handles its signals.

    Args:
        request_stop: runs inside the signal handler, so it may only set a flag.
        repeat_seconds: a second interrupt within this time of the first is the same one, sent again by a launcher.
    """
    first = math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if signal.Signals(number).name in INTERRUPTS:
            if time.monotonic() >= first + repeat_seconds:
                raise KeyboardInterrupt
            first = min(first, time.monotonic())
        request_stop()

    before: dict[int, Any] = {}
    for name in (*ASKS_TO_STOP, *WOULD_KILL):
        if not hasattr(signal, name):  # Windows has few of them
            continue
        number = int(getattr(signal, name))
        handler = signal.getsignal(number)
        is_foreign = handler is None or (handler == signal.SIG_DFL and is_caught(number))
        if not is_foreign and (name in ASKS_TO_STOP or handler == signal.SIG_DFL):
            before[number] = handler
    try:
        for number in before:
            signal.signal(number, handle)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_caught(number: int) -> bool:
    """Whether this process has a handler for a signal, also one that Python does not know; False where unknown."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = PROC_STATUS.read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)
    return False
