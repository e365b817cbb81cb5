"""Reading and writing of whole files: atomic, durable writes; reads of bounded size that follow no links."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mnist_dist.utils.errors import UserError
from mnist_dist.utils.strict_json import parse_strict

MAX_JSON_BYTES = 1 << 20


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path, which is renamed to `path` at the end.

    Both the content and the rename are synced to the disk. After an exception, `path` is as it was before.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".writing-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that a file or a folder of this name can be written, before the work whose result it will hold.

    Its folder is created. What is there already is left as it is.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    trial = path.with_name(f".writing-{path.name}")
    try:
        trial.touch()
    finally:
        trial.unlink(missing_ok=True)


def expand_home(path: str, option: str = "") -> Path:
    """A path with `~` and `~user` replaced by the home folder.

    Args:
        option: what the error begins with, such as `run.dir=`.

    Raises:
        UserError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{option}{path}: no home folder for {path.split('/')[0]}; write the path in full") from None


def sync(path: Path) -> None:
    """Call fsync on a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_bounded(path: Path, limit: int, size: int | None = None) -> bytes:
    """Read a regular file, after checking its size; symbolic links are not followed.

    Args:
        limit: largest size, in bytes.
        size: expected size, in bytes; None: any up to the limit.

    Raises:
        ValueError: not a regular file, or of another size.
        OSError: the file cannot be read, or is a symbolic link.
    """
    with open(path, "rb", opener=open_no_follow) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if size is not None and status.st_size != size:
            raise ValueError(f"{status.st_size} bytes instead of {size}")
        if status.st_size > limit:
            raise ValueError(f"is larger than {limit} bytes")
        data = file.read(status.st_size + 1)
    if len(data) != status.st_size:
        raise ValueError(f"{len(data)} bytes instead of {status.st_size}")
    return data


def open_no_follow(path: str, flags: int) -> int:
    """An `opener` for `open` that fails on a symbolic link, and does not block on a named pipe without a writer."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of at most `MAX_JSON_BYTES`.

    Raises:
        ValueError: too large, not valid JSON, or not an object.
        OSError: the file cannot be read.
    """
    return parse_strict(read_bounded(path, MAX_JSON_BYTES))


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file as `read_json` reads it; empty without one, or if it makes no sense."""
    with suppress(OSError, ValueError):
        return read_json(path)
    return {}
