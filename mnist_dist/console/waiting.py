"""On a terminal, a line that says that a command works, until it has something to print. Imports no rich, no torch."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from mnist_dist.utils.exit import env_rank
from mnist_dist.utils.stdio import GuardedStream

START_SECONDS = 1.0
"""Until the line appears. An import of torch takes longer, and most errors are found before."""
REDRAW_SECONDS = 1.0
CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def waiting_line(command: str) -> Iterator[None]:
    """Within the block, show how long nothing has been printed yet: `predict: working, 3 s`, on standard error.

    The first output removes the line for good. There is none outside `guarded_streams`, off a terminal, on other ranks
    than 0, and in a debugger.
    """
    out, err = sys.stdout, sys.stderr
    if not (isinstance(out, GuardedStream) and isinstance(err, GuardedStream) and can_redraw(err)):
        yield
        return
    line = WaitingLine(command, err)
    out.before_write = err.before_write = line.remove
    try:
        yield
    finally:
        line.remove()
        out.before_write = err.before_write = None


def can_redraw(stream: GuardedStream) -> bool:
    """Whether a line on this stream can be shown and removed again."""
    is_capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return stream.isatty() and is_capable and env_rank() == "0" and sys.gettrace() is None


class WaitingLine:
    """The line, drawn by a thread of its own: an import holds the main one."""

    def __init__(self, command: str, stream: GuardedStream) -> None:
        self.command, self.stream, self.start = command, stream, time.monotonic()
        self.removed = threading.Event()
        self.thread = threading.Thread(target=self.draw, name="waiting line", daemon=True)
        self.thread.start()

    def draw(self) -> None:
        """Draw the line again and again, until it is removed; then clear it."""
        seconds = START_SECONDS
        while not self.removed.wait(seconds):
            self.show(f"{CLEAR}{self.command}: working, {time.monotonic() - self.start:.0f} s")
            seconds = REDRAW_SECONDS
        if seconds != START_SECONDS:
            self.show(CLEAR)

    def show(self, text: str) -> None:
        """Write to the terminal. If that fails, whoever prints next is told."""
        if self.stream.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.stream.write(text)
                self.stream.stream.flush()

    def remove(self) -> None:
        """Remove the line, if it is still there, before something else is printed."""
        self.removed.set()
        if threading.current_thread() is not self.thread:
            self.thread.join()
