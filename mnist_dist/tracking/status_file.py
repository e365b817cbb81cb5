"""status.json: where a run is, for `mnist-dist status`. Written while it runs, by the main process. Never stops a run.

    {
      "state": "running", "stopped", "failed" or "finished"
      "message": why it stopped or failed
      "time": seconds since 1970 at which this was written
      "pid", "host", "started": the main process, its machine, and when it was started
      "world_size", "machines", "last_step", "epochs": of the whole run
      "step": that was done when this was written
      "epoch", "images_per_second", "step_seconds", "seconds_left": of the last row
      "ranks": of each rank, "host" and, where they are known, own seconds of a step by phase
      "stragglers": of each rank that is behind, "rank", "host", "ratio", "phase", "text" and others
    }

It is renamed into place, so that a reader never sees half of it. It is not synced: after a power failure it may be old.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from mnist_dist.utils.errors import Stopped, TrainingError, UserError
from mnist_dist.utils.strict_json import dump_strict

WRITE_SECONDS = 1.0
"""At least, between two writes while a run trains."""
MAX_MESSAGE = 1000
"""Characters of a message."""


class StatusFile:
    """Writes status.json at the start of a run, while it trains, and at its end; a context manager.

    Args:
        path: the file; None writes nothing.
        facts: keys that stay the same.
        progress: gives further keys, at each write.
        warn: is called with one line if the file cannot be written; then it is not tried again.
    """

    def __init__(
        self,
        path: Path | None,
        facts: Mapping[str, Any],
        progress: Callable[[], Mapping[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        self._path, self._progress, self._warn = path, progress, warn
        process = {"pid": os.getpid(), "host": platform.node(), "started": psutil.Process().create_time()}
        self._status: dict[str, Any] = {**process, **facts}
        self._next_write = 0.0  # time.monotonic()

    def update(self, status: Mapping[str, Any]) -> None:
        """Take keys that have changed, and write the file if the last write is long enough ago."""
        self._status.update(status)
        if time.monotonic() >= self._next_write:
            self._write("running")

    def _write(self, state: str, message: str = "") -> None:
        if self._path is None:
            return
        self._next_write = time.monotonic() + WRITE_SECONDS
        content = {"state": state, "message": message[:MAX_MESSAGE], "time": time.time()}
        content |= {**self._status, **self._progress()}
        temporary = self._path.with_name(f".writing-{self._path.name}")
        try:
            temporary.write_text(dump_strict(content) + "\n", encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError as error:
            self._warn(f"{self._path}: cannot be written ({error.strerror}); training goes on without it")
            self._path = None

    def __enter__(self) -> StatusFile:
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write("finished")
        elif isinstance(error, Stopped):
            self._write("stopped", str(error))
        else:
            name = "" if isinstance(error, (TrainingError, UserError)) else f"{type(error).__name__}: "
            self._write("failed", " ".join(f"{name}{error}".split()))
