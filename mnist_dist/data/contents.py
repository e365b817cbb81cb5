"""What a folder holds where the four IDX files were expected: another known data set, files of another format, or less.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePath

from mnist_dist.data.sets import DATA_SETS, ROLES

OTHER_SETS = {
    "qmnist": "QMNIST",
    "kmnist": "KMNIST",
    "k49": "Kuzushiji-49",
    "emnist": "EMNIST",
    "fashion": "Fashion-MNIST",
}
"""What the path of a data set's files contains, to the name of the set."""
OTHER_FORMATS = {".parquet", ".arrow", ".npz", ".npy", ".csv", ".mat", ".pt", ".pkl", ".png", ".jpg", ".zip", ".tar"}
MAX_DEPTH = 3
MAX_NAMES = 2000
"""Names that are looked at: a mistyped folder may be a whole disk."""


def describe_contents(root: Path) -> str:
    """What is in a folder without any known data set, as a clause."""
    if not root.exists():
        return "there is no such folder"
    if not root.is_dir():
        return "that is a file"
    files = list(iter_files(root))
    if not files:
        return "it is empty"
    return f"it holds {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def find_other_data(root: Path) -> tuple[PurePath, str, str] | None:
    """The first file in or below a folder that `recognise` knows: its path relative to it, and what it belongs to.

    Returns:
        path, description, and the data.name of the set, or an empty text if it is none that can be read.
    """
    return next(((path, *known) for path in iter_files(root) if (known := recognise(path))), None)


def recognise(path: PurePath) -> tuple[str, str] | None:
    """The data set or the format that a file belongs to, by its path below the root; None for any other file.

    Returns:
        description, and the data.name of the set, or an empty text if it is none that can be read.
    """
    text, suffix = path.as_posix().lower(), path.suffix.lower()
    part = next((part for part in OTHER_SETS if part in text), "")
    if suffix in OTHER_FORMATS:
        files = f"{suffix[1:]} files, which are not read"
        return (f"{OTHER_SETS[part]} in {files}" if part else files), ""
    if part and "idx" in path.name:
        return OTHER_SETS[part], next((name for name in DATA_SETS if has_file(name, path, part)), "")
    if not has_file("mnist", path, ""):
        return None
    return ("MNIST" if "mnist" in text else "files named as MNIST's"), "mnist"


def has_file(name: str, path: PurePath, part: str) -> bool:
    """Whether a path is that of a file of a known data set, whose name has `part` in it."""
    data_set = DATA_SETS[name]
    return part in name and any(path.name in data_set.variants(role) for role in ROLES)


def iter_files(root: Path) -> Iterator[PurePath]:
    """Paths of files below a folder, relative to it; the nearest first. Hidden ones are left out."""
    seen, queue = 0, deque([(root, 1)])
    while queue:
        folder, depth = queue.popleft()
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        except OSError:
            continue
        for name, is_folder in found:
            seen += 1
            if seen > MAX_NAMES:
                return
            if not is_folder:
                yield (folder / name).relative_to(root)
            elif depth < MAX_DEPTH:
                queue.append((folder / name, depth + 1))
