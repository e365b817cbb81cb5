"""Paths of run directories: creating one, and refusing a folder that is not for runs."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path

from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home

RUNS = Path("runs")
"""Parent of the run directories that are named by the program."""
CHECKPOINTS, METRICS, SUMMARY, CONFIG = "checkpoints", "metrics.jsonl", "summary.json", "config.yaml"
MODEL, PROFILE, STATUS, REPORT = "model", "profile", "status.json", "report.html"


def create_folder(path: Path) -> Path:
    """Create a folder, its parents too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(exist_ok=True)
    return path


def create_new_folder(path: Path) -> Path:
    """Create a folder that did not exist: `path`, or the first free one of `path-2`, `path-3` and so on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    candidates = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    for candidate in candidates:
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        break
    return candidate


def newest_run(runs: Path = RUNS, but: Path | None = None) -> Path:
    """The run directory in `runs` that was started or resumed last: the one whose config.yaml is the newest.

    Args:
        but: a run directory that does not count.

    Raises:
        UserError: there is none.
    """
    started: dict[Path, int] = {}
    with suppress(OSError):  # no such folder
        for folder in runs.iterdir():
            if but is not None and folder.resolve() == but.resolve():
                continue
            with suppress(OSError):  # not a run, or deleted meanwhile
                started[folder] = (folder / CONFIG).stat().st_mtime_ns
    if not started:
        raise UserError(f"last: no run in {runs.absolute()}; give the folder of a run")
    return max(started, key=lambda folder: (started[folder], folder.name))


def named_run(run: str) -> Path:
    """The folder that RUN means on a command line: `last` is the newest run in runs/.

    Raises:
        UserError: `last`, and there is none; or a home directory that is not known.
    """
    return newest_run() if run == "last" else expand_home(run)


def check_not_foreign(folder: Path) -> None:
    """Refuse a folder that holds something, but no run. Hidden files do not count, nor does ext4's lost+found.

    Raises:
        UserError: names one of the things that it holds. OSError: the folder cannot be read.
    """
    names = sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != "lost+found"
    )
    if names and not {CHECKPOINTS, METRICS, SUMMARY} & set(names):
        raise UserError(
            f"run.dir={folder}: holds no run, but {names[0]}{' and others' if len(names) > 1 else ''}; choose another "
            "--run.dir, or use it all the same with --run.resume=never"
        )


def not_writable(folder: Path, error: OSError) -> UserError:
    """The error to raise where the system refuses to create or write a run directory."""
    return UserError(
        f"run.dir={folder}: cannot be written ({blocker(folder) or error.strerror}); choose another --run.dir"
    )


def blocker(folder: Path) -> str:
    """The file or dangling link that stands where a folder is needed, in words; empty without one."""
    with suppress(OSError):
        for path in (folder, *folder.parents):
            if path.is_symlink() and not path.exists():
                return f"{path} is a link to {os.readlink(path)}, which does not exist"
            if path.exists() and not path.is_dir():
                return f"{path} is a file"
    return ""
