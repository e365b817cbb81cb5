"""The run directory: open and lock it, choose the checkpoint to resume from, and write its config and summary.

    run.dir/
        .lock          see `checkpoint.run_lock`
        config.yaml    the resolved configuration, ready for `--config`
        metrics.jsonl  see `tracking.metrics_file`
        status.json    see `tracking.status_file`
        checkpoints/   see `checkpoint.manager`
        model/         only with a model of the user's own: its source files
        profile/       only with train.profile
        summary.json   written last: a run directory with it holds a finished run

Why no library: accelerate's `ProjectConfiguration` names and counts checkpoint folders; it does not lock the directory,
nor refuse to resume with settings that change what the run computes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.format import MANIFEST
from mnist_dist.checkpoint.manager import (
    CheckpointData,
    VerifiedCheckpoint,
    list_checkpoints,
    load_verified,
    newest_verified,
    recover,
)
from mnist_dist.checkpoint.run_lock import RunLock
from mnist_dist.checkpoint.run_paths import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    MODEL,
    PROFILE,
    REPORT,
    RUNS,
    STATUS,
    SUMMARY,
    check_not_foreign,
    create_folder,
    create_new_folder,
    newest_run,
    not_writable,
)
from mnist_dist.config.loader import dump
from mnist_dist.config.schema import Config
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.files import atomic_write, expand_home, read_json
from mnist_dist.utils.strict_json import dump_strict

# Opening a run


@dataclass(frozen=True)
class RunDir:
    """A locked run directory and the checkpoint to resume from. Plain values, so it can be sent to other processes."""

    folder: Path
    checkpoint: VerifiedCheckpoint | None
    """What to resume from; None starts from step 0."""
    same_run: bool
    """Whether the checkpoint is this directory's own, so that its metrics and its tracker's run continue too."""

    def load(self) -> CheckpointData | None:
        """The checkpoint's content, from the bytes that the main process verified; None without a checkpoint."""
        return self.checkpoint.parse() if self.checkpoint else None


def open_run_dir(config: Config, recipes: Sequence[str], lock: RunLock, warn: Callable[[str], None]) -> RunDir:
    """Create the run directory if it is missing, lock it, and read the checkpoint that run.resume asks for.

    Only for the main process. Processes that a launcher restarted find their own run directory and resume from its
    newest checkpoint, whatever run.resume says: that is for the first start.

    Args:
        recipes: names of the recipes in use, for the name of a new run directory.
        lock: not acquired yet.
        warn: takes one line for each damaged checkpoint, and if the file system has no locks.

    Raises:
        UserError: the folder cannot be created or written, holds something else than a run, or another run holds it;
            or run.resume names no whole checkpoint, or one of another run than the folder's.
    """
    timestamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    resume = config.run.resume
    named = expand_home(config.run.dir, "run.dir=") if config.run.dir else lock.find_restarted_run(RUNS)
    if resume == "last":
        newest = newest_run_to_resume()
        named, resume = named or newest, "auto" if named in (None, newest) else str(newest)
    path = named or RUNS / f"{'-'.join(recipes) or 'default'}-{timestamp}"
    try:
        missing = [parent for parent in path.parents if not parent.exists()]
        lock.remove_unless_started(missing)
        if not (named and path.exists()):
            path = create_folder(path) if named else create_new_folder(path)
            lock.remove_unless_started([path, *missing])
        elif resume == "auto":
            check_not_foreign(path)
        lock.acquire(path, warn)
        if resume == "never" and not lock.is_restart:
            return RunDir(path, None, same_run=False)
        recover(path / CHECKPOINTS)
        own = newest_verified(path / CHECKPOINTS, warn)
    except OSError as error:
        raise not_writable(path, error) from error
    if resume == "auto" or lock.is_restart:
        return RunDir(path, own, same_run=own is not None)
    chosen = resolve_checkpoint(expand_home(resume, "run.resume="), warn)
    if own is None:
        return RunDir(path, chosen, same_run=False)
    is_same_command = own.parse().state["config"].get("run", {}).get("resume") == config.run.resume
    if is_same_command or chosen.folder.samefile(own.folder):
        return RunDir(path, own, same_run=True)
    raise UserError(  # its checkpoints would be mixed with those of this run
        f"run.resume={chosen.folder}: run.dir={path} has a checkpoint of its own, {own.folder.name}; go on from that "
        "with --run.resume=auto, or choose another --run.dir"
    )


def newest_run_to_resume() -> Path:
    """The run directory that `run.resume=last` means. Raises UserError if there is none."""
    try:
        return newest_run()
    except UserError as error:
        raise UserError(f"run.resume={error}") from None


def resolve_checkpoint(path: Path, warn: Callable[[str], None]) -> VerifiedCheckpoint:
    """The checkpoint that `run.resume=path` means: the one at that path, or the newest whole one of that run directory.

    Raises:
        UserError: there is none, or the one at that path is damaged.
    """
    if (path / MANIFEST).is_file():
        return load_verified(path)
    if not path.exists():
        raise UserError(f"run.resume={path}: no such folder; give auto, never, last, a checkpoint or a run directory")
    newest = newest_verified(path / CHECKPOINTS, warn)
    if newest is None:
        raise UserError(f"run.resume={path}: holds no whole checkpoint; give a checkpoint's folder or a run directory")
    return newest


# Starting it


def prepare_run_dir(run_dir: RunDir, config: Config, lock: RunLock, has_steps_left: bool = False) -> bool:
    """Make the folder ready for training: delete an earlier run if run.resume=never, and mark the run as started.

    Only for the main process, and only once everything that could be refused was accepted.

    Args:
        has_steps_left: whether the run would train.

    Returns:
        Whether the run in this folder has finished before.

    Raises:
        UserError: the folder cannot be written, or an honest run that has finished would train on.
    """
    was_finished = run_dir.same_run and read_summary(run_dir.folder) is not None
    if was_finished and has_steps_left and config.train.protocol == "honest":
        raise UserError(
            f"{run_dir.folder}: this run has finished, and its test set was evaluated, so it cannot train on with "
            "train.protocol=honest; start anew in another --run.dir"
        )
    try:
        (run_dir.folder / CHECKPOINTS).mkdir(exist_ok=True)
        if config.run.resume == "never" and not run_dir.same_run:
            delete_old_run(run_dir.folder)
        lock.mark_started()
    except OSError as error:
        raise not_writable(run_dir.folder, error) from error
    return was_finished


def delete_old_run(folder: Path) -> None:
    """Delete checkpoints (incomplete ones too), profile, code, metrics, status, summary and report of an earlier run.

    Raises:
        OSError: one of them cannot be deleted.
    """
    recover(folder / CHECKPOINTS)
    for checkpoint in list_checkpoints(folder / CHECKPOINTS):
        shutil.rmtree(checkpoint)
    for name in (PROFILE, MODEL):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in (METRICS, STATUS, SUMMARY, REPORT):
        (folder / name).unlink(missing_ok=True)


# Files that describe it


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml, with which `--config` starts the same run.

    Raises:
        TrainingError: the disk is full or the folder is gone.
    """
    write_text(folder / CONFIG, dump(config))


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, the last thing that a run does. nan and infinity become null.

    Raises:
        TrainingError: the disk is full or the folder is gone.
    """
    lines = (f"  {json.dumps(key)}: {dump_strict(value)}" for key, value in summary.items())
    write_text(folder / SUMMARY, "{\n" + ",\n".join(lines) + "\n}\n")


def delete_summary(folder: Path) -> None:
    """Delete summary.json: the run trains on, and is not finished any more.

    Raises:
        TrainingError: it cannot be deleted.
    """
    path = folder / SUMMARY
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be deleted ({error.strerror})", everywhere=True) from error


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None without a readable one."""
    try:
        return read_json(folder / SUMMARY)
    except (OSError, ValueError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises TrainingError if it cannot be written."""
    try:
        with atomic_write(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})", everywhere=True) from error
