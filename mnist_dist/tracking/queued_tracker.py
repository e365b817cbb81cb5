"""Base of trackers that record on a thread of their own, fed by a queue.

A tracker's package may be missing, raise, block on the network or hang, and its calls may take milliseconds. On the
thread none of that delays or stops training: a problem is one warning, and metrics.jsonl is complete without the
tracker.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mnist_dist.utils.exit import skip_exit_hooks

MAX_QUEUED = 10_000
MAX_QUEUED_MEDIA = 20  # some hundred kilobytes each

Row = Mapping[str, Any]
Call = Callable[..., None]
"""A job for the thread, which gives it what the subclass records with."""


class QueuedTracker:
    """Runs `record`, which a subclass implements, on a thread, and gives it the queued calls.

    Args:
        name: of the package that records, for the messages.
        timeout: seconds that `finish` waits.
        warn: is called with one line, from any thread.
    """

    def __init__(self, name: str, timeout: float, warn: Callable[[str], None]) -> None:
        self.timed_out = False
        self.view_hint = ""
        self._name, self._timeout, self._warn = name, timeout, warn
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()  # None: the run has finished
        self._media_queued = self._media_recorded = 0  # each is changed by one thread only
        self._step = 0  # of the last row or media
        self._is_full = False
        self._result: tuple[Row, int] = ({}, 1)  # what `finish` was given
        self._ended = threading.Event()  # the thread has

    def start_thread(self) -> None:
        """Start the thread: the last step of a subclass's constructor."""
        threading.Thread(target=self._run_thread, name=self._name, daemon=True).start()

    def finish(self, summary: Row, exit_code: int) -> None:
        """Record the run's summary and wait until everything is recorded, for tracking.timeout seconds at most."""
        self._result = dict(summary), exit_code
        self._queue.put(None)
        if self.timed_out or self._ended.wait(self._timeout):
            return
        self.timed_out = True
        skip_exit_hooks()  # the package's may never return
        self.abandon()
        self._warn(
            f"{self._name} did not finish within {self._timeout:g} s and was stopped; metrics.jsonl has everything"
        )

    def enqueue(self, call: Call, is_full: bool = False) -> bool:
        """Queue a call for the thread. False, with one warning, if the queue is full or was so before."""
        if self._ended.is_set() or self._is_full:
            return False
        if is_full or self._queue.qsize() >= MAX_QUEUED:
            self._is_full = True
            self._warn(f"{self._name} cannot keep up; from step {self._step} on, rows are in metrics.jsonl only")
            return False
        self._queue.put(call)
        return True

    def enqueue_media(self, call: Call) -> None:
        """Queue a call that holds media, of which fewer are kept."""

        def count(*arguments: Any) -> None:
            call(*arguments)
            self._media_recorded += 1

        if self.enqueue(count, is_full=self._media_queued - self._media_recorded >= MAX_QUEUED_MEDIA):
            self._media_queued += 1

    # On the thread

    def record(self) -> None:
        """Import the package, make the `queued_calls`, then record the summary. May raise anything."""
        raise NotImplementedError

    def queued_calls(self) -> Iterator[Call]:
        """The queued calls, until `finish` is called."""
        while (call := self._queue.get()) is not None:
            yield call

    def abandon(self) -> None:
        """End at once what the package started, because it failed or did not finish. Called on any thread."""

    def clean_up(self) -> None:
        """Remove what the package leaves behind, however `record` ended."""

    def _run_thread(self) -> None:
        try:
            self.record()
        except BaseException as error:  # SystemExit too: nothing that a package raises may end training
            if not self.timed_out:
                self._warn(
                    f"{self._name} failed ({one_line(error)}); training goes on, and metrics.jsonl has everything"
                )
            self.abandon()
        finally:
            self.clean_up()
            self._ended.set()


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".rstrip(": ")


@contextmanager
def default_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set those of the variables that are not set or empty, and restore them."""
    before = {name: os.environ.get(name) for name in variables if not os.environ.get(name)}
    os.environ.update({name: variables[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
