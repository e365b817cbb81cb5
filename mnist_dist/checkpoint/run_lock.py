"""One run at a time in a folder: a lock that the system takes back from a process that ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import read_json
from mnist_dist.utils.strict_json import type_error

LOCK = ".lock"


@dataclass(frozen=True)
class LockHolder:
    """What the lock's file says: who holds it, and under which launcher the run in this folder began."""

    pid: int
    host: str
    launcher: int
    """Process id; 0 without one, and before the run has begun."""
    launched: float
    """When the launcher was started, in seconds since 1970."""

    def began_under(self, other: LockHolder) -> bool:
        """Whether the run in this folder began under the other's launcher."""
        same = (self.launcher, self.host) == (other.launcher, other.host)
        return same and self.launcher > 0 and abs(self.launched - other.launched) < 10  # clocks are adjusted


class RunLock:
    """Holds a run's folder for this process; a context manager that lets go of it.

    The file stays where a run did not finish: it then says whose run it was, so that processes which the same launcher
    starts again find it. That it is there locks nobody out; only the system's lock on it does.

    Args:
        launcher: process id of the launcher that started this process; 0 without one.
    """

    def __init__(self, launcher: int) -> None:
        self.me = LockHolder(os.getpid(), platform.node(), launcher, started_at(launcher))
        self.before: LockHolder | None = None
        self.handle = -1
        self.folder = Path()
        self.made: Sequence[Path] = ()
        """Folders that were created for it, innermost first; removed again unless the run begins."""
        self.began = self.finished = False

    @property
    def is_ours(self) -> bool:
        """Whether the run in this folder began under our launcher, which has since started its processes again."""
        return self.before is not None and self.before.began_under(self.me)

    def find_ours(self, runs: Path) -> Path | None:
        """The folder among those in `runs` whose run began under our launcher."""
        holders = ((path.parent, read_holder(path)) for path in runs.glob(f"*/{LOCK}"))
        return next((folder for folder, holder in holders if holder and holder.began_under(self.me)), None)

    def take(self, folder: Path, warn: Callable[[str], None]) -> None:
        """Take the lock on a folder, or refuse.

        Args:
            warn: told where the file system knows no locks.

        Raises:
            UserError: another process holds it. OSError: its file cannot be written.
        """
        self.folder = folder
        while self.handle < 0:
            # Not inherited by programs that we start: they may outlive us.
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                holder = read_holder(folder / LOCK)
                who = f"process {holder.pid} on {holder.host}" if holder else "another process"
                raise UserError(
                    f"run.dir={folder}: is in use by {who}; wait for it, stop it, or choose another --run.dir"
                ) from None
            except OSError as error:
                warn(f"{folder / LOCK}: cannot be locked ({error.strerror}); start no second run in this folder")
            if is_at(handle, folder / LOCK):
                self.handle = handle
            else:  # its holder finished and removed it just now
                os.close(handle)
        self.before = read_holder(folder / LOCK)
        begun = self.before if self.is_ours else None
        self.write(begun.launcher if begun else 0)

    def begin(self) -> None:
        """From here on the run in this folder is the one of our launcher."""
        self.began = True
        self.write(self.me.launcher)

    def write(self, launcher: int) -> None:
        """Say who holds the lock."""
        text = json.dumps(asdict(self.me) | {"launcher": launcher}).encode()
        os.pwrite(self.handle, text, 0)
        os.ftruncate(self.handle, len(text))

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.handle >= 0:
            if self.finished or not (self.began or self.before):
                with suppress(OSError):
                    (self.folder / LOCK).unlink()
            os.close(self.handle)
        for path in () if self.began else self.made:
            with suppress(OSError):  # somebody put something there
                path.rmdir()


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def read_holder(path: Path) -> LockHolder | None:
    """What a lock's file says, or None if it says nothing that makes sense."""
    try:
        said: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        return None
    return None if type_error(said, LockHolder) else LockHolder(**said)


def started_at(pid: int) -> float:
    """When a process was started, in seconds since 1970; 0 if it is gone, or for pid 0."""
    with suppress(psutil.Error):
        return psutil.Process(pid).create_time() if pid else 0.0
    return 0.0
