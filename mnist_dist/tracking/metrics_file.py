"""metrics.jsonl: one JSON object a line, always written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_dist.tracking.tracker import Warn
from mnist_dist.utils.strict_json import dump_strict


class MetricsFile:
    """metrics.jsonl: one strict JSON object a line, only ever appended to. What cannot be written is said once.

    Args:
        path: the file; need not exist.
        keep_until: rows of later steps are removed, because the run will write them again. -1: all.
        warn: takes one line.
    """

    def __init__(self, path: Path, keep_until: int, warn: Warn) -> None:
        self._path, self._warn, self._warned = path, warn, False
        self.rewind(keep_until)

    def rewind(self, step: int) -> None:
        """Remove the rows of later steps, because the run will write them again."""
        try:
            trim(self._path, step)
        except OSError as error:
            self._complain(error)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of plain values (`step`, `epoch`, `time` in seconds since 1970, metrics), whole or not at all.

        NaN and infinities become null.
        """
        try:
            append(self._path, dump_strict(row).encode() + b"\n")
        except (OSError, TypeError, ValueError) as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            problem = getattr(error, "strerror", None) or error
            self._warn(f"{self._path}: cannot be written ({problem}); training goes on without it")


def trim(path: Path, keep_until: int) -> None:
    """Remove, in one rename, the rows of later steps and lines that are no whole row. Raises OSError."""
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    kept = [line for line in before.split(b"\n") if (step := step_of(line)) is not None and step <= keep_until]
    after = b"".join(line + b"\n" for line in kept)
    if after != before:
        aside = path.with_name(f".writing-{path.name}")
        with aside.open("wb") as file:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def step_of(line: bytes) -> int | None:
    """The step of a row of metrics.jsonl, or None if the line is no whole row."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def append(path: Path, data: bytes) -> None:
    """Append all of the data, or raise OSError and leave the file as it was."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        written = file.write(data)
        if written != len(data):
            file.truncate(size)
            raise OSError(None, "the disk is full")
