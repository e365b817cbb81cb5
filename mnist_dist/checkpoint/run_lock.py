"""Run directory, locked: one run at a time, by `flock` on `run.dir/.lock`. Imports no torch.

The operating system releases the lock when the process ends, even if it is killed. Why not `filelock`, as in
`data.prepare`: this file also says who holds the lock and which launcher started the run, and it stays after a run that
did not finish, so that processes restarted by an elastic launcher find their run directory.
"""

from __future__ import annotations

import fcntl
import hashlib
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
    """The content of the lock file: the process that holds it, and the launcher that started the run in this folder."""

    pid: int
    host: str
    launcher: int
    """Process id of the launcher; 0 without one, and until the run has started."""
    launched: float
    """When the launcher was started, in seconds since 1970; 0 without one."""
    worker: float
    """When the process was started that the launcher started: this one, or one in between. 0 without a launcher."""
    restart_count: int
    """How often the launcher had restarted its processes because one failed."""
    settings: str
    """SHA-256 of the configuration."""

    def is_restarted_as(self, other: LockHolder) -> bool:
        """Whether `other` is this run, restarted: the same launcher and settings, and a later start by the launcher.

        The same launcher alone does not tell: a notebook or a script under a launcher starts several runs. A later
        start has a higher restart count, or another worker: when machines join or leave, the count stays the same.
        """
        same_process = self.launcher > 0 and (self.launcher, self.host) == (other.launcher, other.host)
        same_launcher = same_process and is_same_time(self.launched, other.launched)
        is_later = self.restart_count < other.restart_count or not is_same_time(self.worker, other.worker)
        return same_launcher and is_later and self.settings == other.settings


class RunLock:
    """Holds the lock on one run directory; a context manager that releases it.

    The lock file is deleted when the run has finished and kept otherwise. A file that no process has locked keeps
    nobody out.

    Args:
        launcher: process id of the launcher that started this process; 0 without one.
        worker: process id of the process that the launcher started; 0 without a launcher.
        restart_count: how often it has restarted its processes because one failed.
        settings: the run's configuration, as YAML.
    """

    def __init__(self, launcher: int = 0, worker: int = 0, restart_count: int = 0, settings: str = "") -> None:
        launched, worker_started = process_start_time(launcher), process_start_time(worker)
        digest = hashlib.sha256(settings.encode()).hexdigest()
        self.holder = LockHolder(
            os.getpid(), platform.node(), launcher, launched, worker_started, restart_count, digest
        )
        self.previous: LockHolder | None = None
        """What the lock file said before this process locked it."""
        self.file = -1
        """File descriptor of the locked file; -1 until `acquire`."""
        self.folder = Path()
        self.created: Sequence[Path] = ()
        self.started = self.finished = False

    @property
    def is_restart(self) -> bool:
        """Whether the run in this folder is ours: our launcher started it, and has since restarted its processes."""
        return self.previous is not None and self.previous.is_restarted_as(self.holder)

    def find_restarted_run(self, runs: Path) -> Path | None:
        """The folder in `runs` of the run that our launcher has restarted as this one; None without one."""
        holders = ((path.parent, read_holder(path)) for path in runs.glob(f"*/{LOCK}"))
        return next((folder for folder, holder in holders if holder and holder.is_restarted_as(self.holder)), None)

    def acquire(self, folder: Path, warn: Callable[[str], None]) -> None:
        """Lock a folder, without waiting.

        Args:
            warn: takes one line if the file system has no locks; the run then goes on without one.

        Raises:
            UserError: another process holds the lock. OSError: the lock file cannot be written.
        """
        self.folder = folder
        while self.file < 0:
            # O_CLOEXEC: programs that we start may outlive us, and must not keep the lock.
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_only_read = try_shared_lock(file)  # by `is_locked`, for a moment
                os.close(file)
                if is_only_read:
                    continue
                holder = read_holder(folder / LOCK)
                who = f"process {holder.pid} on {holder.host}" if holder else "another process"
                raise UserError(
                    f"run.dir={folder}: is in use by {who}; wait for it, stop it, or choose another --run.dir"
                ) from None
            except OSError as error:
                warn(f"{folder / LOCK}: cannot be locked ({error.strerror}); start no second run in this folder")
            if is_file_at(file, folder / LOCK):
                self.file = file
            else:  # between our open and our lock its holder finished and deleted it
                os.close(file)
        self.previous = read_holder(folder / LOCK)
        self.write_holder(self.previous.launcher if self.previous and self.is_restart else 0)

    def mark_started(self) -> None:
        """The run starts: from here on a restart by our launcher resumes it. Needs the lock."""
        self.started = True
        self.write_holder(self.holder.launcher)

    def mark_finished(self) -> None:
        """The run is complete: its lock file is deleted on exit."""
        self.finished = True

    def remove_unless_started(self, created: Sequence[Path]) -> None:
        """Remove folders that were created for this run, innermost first, on exit without `mark_started`."""
        self.created = created

    def write_holder(self, launcher: int) -> None:
        """Write who holds the lock, and the launcher of the run in this folder."""
        text = json.dumps(asdict(self.holder) | {"launcher": launcher}).encode()
        os.pwrite(self.file, text, 0)
        os.ftruncate(self.file, len(text))

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file >= 0:
            if self.finished or not (self.started or self.previous):
                with suppress(OSError):
                    (self.folder / LOCK).unlink()
            os.close(self.file)
        for path in () if self.started else self.created:
            with suppress(OSError):  # not empty: somebody put a file there
                path.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a run holds the lock on a run directory; False on a file system without locks.

    Needs no right to write, and keeps no run out.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not try_shared_lock(file)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)


def try_shared_lock(file: int) -> bool:
    """Lock an open file together with others that read, until it is closed; whether no run holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_file_at(file: int, path: Path) -> bool:
    """Whether an open file descriptor is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def read_holder(path: Path) -> LockHolder | None:
    """The content of a lock file; None if there is none or it makes no sense."""
    try:
        content: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        return None
    return None if type_error(content, LockHolder) else LockHolder(**content)


def is_same_time(one: float, other: float) -> bool:
    """Whether two start times are of the same process: clocks are adjusted, by less than a restart takes."""
    return abs(one - other) < 0.5


def process_start_time(pid: int) -> float:
    """When a process was started, in seconds since 1970; 0 for pid 0 or a process that has ended."""
    with suppress(psutil.Error):
        return psutil.Process(pid).create_time() if pid else 0.0
    return 0.0
