"""Find the four IDX files of a data set in a folder. Importing this module does not import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnist_dist.data.sets import DATA_SETS, ROLES
from mnist_dist.utils.errors import UserError


def find_files(root: Path, name: str = "mnist") -> dict[str, Path] | None:
    """The four files by role, raw or gz, from the first folder of the data set's that has any.

    Args:
        name: data.name.

    Returns:
        None if no folder has any.

    Raises:
        UserError: a folder has some of the four but not all, or cannot be read.
    """
    data_set = DATA_SETS[name]
    for folder in (root / each for each in data_set.folders):
        present = list_names(folder)
        found = {role: path for role in ROLES if (path := find_file(folder, data_set.variants(role), present))}
        if len(found) == len(ROLES):
            return found
        if found:
            missing = ", ".join(data_set.name_of(role) for role in ROLES if role not in found)
            raise UserError(
                f"{folder}: has {', '.join(path.name for path in found.values())} but not {missing}; "
                "add what is missing, raw or .gz, or name another folder with --data.root=DIR"
            )
    return None


def find_file(folder: Path, variants: Sequence[str], present: set[str]) -> Path | None:
    """The file under the preferred one, which is the last, of its names; None if there is none.

    A name may also be that of a folder that holds the file, as some archives unpack it.

    Args:
        present: the names in the folder.
    """
    paths = [folder / variant for variant in variants if variant in present]
    within = [path / variant for path in paths if path.is_dir() for variant in variants]
    found = [path for path in paths if not path.is_dir()] or [path for path in within if path.exists()]
    return found[-1] if found else None


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


def describe_error(error: Exception) -> str:
    """An exception's message in one line, with the file it is about."""
    name = getattr(error, "filename", None)
    message = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{message}: {name}" if name else message
