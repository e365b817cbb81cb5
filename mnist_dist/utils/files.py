"""Files that are written whole or not at all, and read whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_dist.utils.strict_json import parse_strict

MAX_JSON_BYTES = 1 << 20


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what is written there then takes the place of `path` at once, durably."""
    aside = path.with_name(f".writing-{path.name}")
    try:
        yield aside
        sync(aside)
        aside.rename(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file's or a folder's content reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_bounded(path: Path, limit: int, size: int | None = None) -> bytes:
    """The content of a regular file; links are not followed, and nothing is read before the size is known to be right.

    Args:
        limit: bytes that it may have at most.
        size: bytes that it must have; any number where absent.

    Raises:
        ValueError: no regular file, or of another size. OSError: unreadable.
    """
    with open(path, "rb", opener=open_unfollowed) as file:
        described = os.fstat(file.fileno())
        if not stat.S_ISREG(described.st_mode):
            raise ValueError("is not a regular file")
        if size is not None and described.st_size != size:
            raise ValueError(f"{described.st_size} bytes instead of {size}")
        if described.st_size > limit:
            raise ValueError(f"is larger than {limit} bytes")
        data = file.read(described.st_size + 1)
    if len(data) != described.st_size:
        raise ValueError(f"{len(data)} bytes instead of {described.st_size}")
    return data


def open_unfollowed(path: str, flags: int) -> int:
    """An opener for `open` that fails at a link, and does not wait for a writer at a named pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        ValueError: too large, not JSON, or not an object. OSError: unreadable.
    """
    return parse_strict(read_bounded(path, MAX_JSON_BYTES))
