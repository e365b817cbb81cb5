"""A console that also copies the run's lines to a tracker (`--tracking.share=[console]`).

wandb's own capture of the console is not used. It replaces the write methods of standard output: each line then waits
for wandb, lines printed before wandb started are missing, and every redraw of the progress display counts as lines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from mnist_dist.console.console import Console, PlainConsole


class TeeConsole(Console):
    """Calls each method on the user's console, then on one that copies plain lines.

    Args:
        shown: the user's console.
    """

    def __init__(self, shown: Console) -> None:
        copy = LineCopier()
        self._consoles: tuple[Console, ...] = (shown, copy)
        self.copy_lines_to = copy.copy_lines_to


def call_on_all(method: Callable[..., None]) -> Callable[..., None]:
    """A method of TeeConsole that calls this method of Console on all its consoles."""

    @wraps(method)
    def call(self: TeeConsole, *args: Any, **kwargs: Any) -> None:
        for console in self._consoles:
            getattr(console, method.__name__)(*args, **kwargs)

    return call


for name, method in vars(Console).items():
    if not name.startswith("_"):
        setattr(TeeConsole, name, call_on_all(method))


class LineCopier(PlainConsole):
    """Keeps plain lines until it is told where to copy them, then passes them on."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[str] = []
        self._write: Callable[[str], object] = self._kept.append
        self._lock = threading.RLock()  # any thread may warn; `write` itself may too, so the lock is reentrant

    def copy_lines_to(self, write: Callable[[str], object]) -> None:
        """Pass the lines so far to `write`, and then each line as it comes."""
        with self._lock:
            for line in self._kept:
                write(line)
            self._write = write

    def print(self, text: str) -> None:
        """A line."""
        with self._lock:
            self._write(text)

    def warn(self, text: str) -> None:
        """A line."""
        self.print(f"warning: {text}")
