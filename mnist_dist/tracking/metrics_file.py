"""metrics.jsonl: one JSON object a line, written by every run, with or without wandb. It never stops a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnist_dist.utils.files import atomic_write
from mnist_dist.utils.strict_json import dump_strict


class MetricsFile:
    """Appends rows to metrics.jsonl. If that fails, training goes on, and one warning is given.

    Args:
        path: the file; need not exist.
        keep_until: rows of later steps are removed, because the run will write them again. -1: all.
        warn: is called with one line.
    """

    def __init__(self, path: Path, keep_until: int, warn: Callable[[str], None]) -> None:
        self._path, self._warn, self._has_warned = path, warn, False
        self.rewind(keep_until)

    def rewind(self, step: int) -> None:
        """Remove the rows of later steps, because the run will write them again."""
        try:
            trim(self._path, step)
        except OSError as error:
            self._warn_once(error)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of plain values (`step`, `epoch`, `time` in seconds since 1970, metrics), whole or not at all.

        NaN and infinities become null.
        """
        try:
            append(self._path, dump_strict(row).encode() + b"\n")
        except (OSError, TypeError, ValueError) as error:
            self._warn_once(error)

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            problem = getattr(error, "strerror", None) or error
            self._warn(f"{self._path}: cannot be written ({problem}); training goes on without it")


def trim(path: Path, keep_until: int) -> None:
    """Remove rows of later steps and incomplete lines, atomically; a file without any is not written.

    Raises:
        OSError: the file cannot be read or replaced.
    """
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    kept = [line for line in before.split(b"\n") if (step := step_of(line)) is not None and step <= keep_until]
    after = b"".join(line + b"\n" for line in kept)
    if after != before:
        with atomic_write(path) as aside:
            aside.write_bytes(after)


def step_of(line: bytes) -> int | None:
    """The step of a row of metrics.jsonl; None if the line is not a complete row."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def append(path: Path, data: bytes) -> None:
    """Append all of the data, or none of it.

    Raises:
        OSError: it was not appended.
    """
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        written = file.write(data)
        if written != len(data):
            file.truncate(size)
            raise OSError(None, "the disk is full")
