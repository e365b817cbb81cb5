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

    The first output removes the line. It comes back only below a text that ends in `...` and so announces another wait.
    There is none outside `guarded_streams`, off a terminal, on other ranks than 0, and in a debugger.
    """
    out, err = sys.stdout, sys.stderr
    if not (isinstance(out, GuardedStream) and isinstance(err, GuardedStream) and can_redraw(err)):
        yield
        return
    line = WaitingLine(command, err)
    out.before_write = err.before_write = line.remove
    out.after_write = err.after_write = line.come_back
    line.start()
    try:
        yield
    finally:
        out.before_write = err.before_write = out.after_write = err.after_write = None
        line.remove()


def can_redraw(stream: GuardedStream) -> bool:
    """Whether a line on this stream can be shown and removed again."""
    is_capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return stream.isatty() and is_capable and env_rank() == "0" and sys.gettrace() is None


class WaitingLine:
    """The line, drawn by a thread of its own while it is there: an import holds the main one."""

    def __init__(self, command: str, stream: GuardedStream) -> None:
        self.command, self.stream = command, stream
        self.lock = threading.Lock()  # any thread may print
        self.removed = threading.Event()
        self.thread: threading.Thread | None = None
        self.is_announced = False

    def start(self) -> None:
        """Show the line from START_SECONDS on."""
        with self.lock:
            if self.thread is None:
                self.removed.clear()
                start = time.monotonic()
                self.thread = threading.Thread(target=self.draw, args=(start,), name="waiting line", daemon=True)
                self.thread.start()

    def remove(self) -> None:
        """Remove the line, if it is there, before something else is printed."""
        with self.lock:
            if self.thread is not None:
                self.removed.set()
                self.thread.join()
                self.thread = None

    def come_back(self, text: str) -> None:
        """Show the line again after a text that announces another wait."""
        if text.strip():
            self.is_announced = text.rstrip().endswith("...")
        if self.is_announced and text.endswith("\n"):  # `print` writes it by itself
            self.start()

    def draw(self, start: float) -> None:
        """Draw the line again and again, until it is removed; then clear it. start: of the wait, time.monotonic()."""
        seconds = START_SECONDS
        while not self.removed.wait(seconds):
            self.show(f"{CLEAR}{self.command}: working, {time.monotonic() - start:.0f} s")
            seconds = REDRAW_SECONDS
        if seconds != START_SECONDS:
            self.show(CLEAR)

    def show(self, text: str) -> None:
        """Write to the terminal. If that fails, whoever prints next is told."""
        if self.stream.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.stream.write(text)
                self.stream.stream.flush()
