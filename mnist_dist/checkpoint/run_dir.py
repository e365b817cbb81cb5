"""A run's folder: its name, what is in it, and which checkpoint a run goes on from."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.checkpoint.manager import (
    CheckpointData,
    VerifiedCheckpoint,
    list_checkpoints,
    load_verified,
    newest_verified,
    recover,
)
from mnist_dist.checkpoint.run_lock import RunLock
from mnist_dist.config.loader import dump
from mnist_dist.config.schema import Config
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.files import atomic_write, read_json
from mnist_dist.utils.strict_json import dump_strict

if TYPE_CHECKING:
    pass


RUNS = Path("runs")
CHECKPOINTS, METRICS, SUMMARY, CONFIG = "checkpoints", "metrics.jsonl", "summary.json", "config.yaml"
PROFILE = "profile"

# Settings that may change when a run goes on: none of them changes what it computes.
RESUME_OVERRIDABLE = {
    "run.dir",
    "run.resume",
    "run.device",
    "run.threads",
    "run.timeout",
    "run.quiet",
    "data.root",
    "data.source",
    "data.classes",
    "train.max_steps",
    "train.eval_batch_size",
    "train.checkpoint_steps",
    "train.keep",
    "train.profile",
}


@dataclass(frozen=True)
class RunDir:
    """A run's folder that is ours alone, and what was found there. Plain values, for every process."""

    folder: Path
    checkpoint: VerifiedCheckpoint | None
    """What the run goes on from."""
    same_run: bool
    """Whether that is the run's own checkpoint, so that its records go on too."""

    def load(self) -> CheckpointData | None:
        """The checkpoint's content, parsed from the bytes that the main process checked."""
        return self.checkpoint.parse() if self.checkpoint else None


def open_run_dir(config: Config, recipes: Sequence[str], lock: RunLock, warn: Callable[[str], None]) -> RunDir:
    """Lock the run's folder, creating it if it is absent, and read the checkpoint to go on from. Main process only.

    Processes that their launcher starts again find the folder of their own run and go on with it, whatever run.resume
    says: that is for the first start.

    Raises:
        UserError: it cannot be created or written, another run is in it, or run.resume names no whole checkpoint.
    """
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    given = config.run.dir or lock.find_ours(RUNS)
    path = Path(given or RUNS / f"{'-'.join(recipes) or 'default'}-{stamp}").expanduser()
    try:
        lock.made = [each for each in path.parents if not each.exists()]
        if not (given and path.exists()):
            path = create(path, anew=not given)
            lock.made = [path, *lock.made]
        lock.take(path, warn)
        if config.run.resume != "never" or lock.is_ours:
            recover(path / CHECKPOINTS)
        if config.run.resume == "auto" or lock.is_ours:
            own = newest_verified(path / CHECKPOINTS, warn)
            if own:
                return RunDir(path, own, same_run=True)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    if config.run.resume in ("auto", "never"):
        return RunDir(path, None, same_run=False)
    return RunDir(path, find_checkpoint(Path(config.run.resume).expanduser(), "run.resume", warn), same_run=False)


def prepare_run_dir(claim: RunDir, config: Config, lock: RunLock) -> bool:
    """Make the folder ready to be trained into. Main process only, and only once nothing is left to be refused.

    Returns:
        Whether the run in it has finished before.

    Raises:
        UserError: it cannot be written.
    """
    try:
        (claim.folder / CHECKPOINTS).mkdir(exist_ok=True)
        if config.run.resume == "never" and not claim.same_run:
            delete_old_run(claim.folder)
        lock.begin()
    except OSError as error:
        raise cannot_be_written(claim.folder, error) from error
    return claim.same_run and read_summary(claim.folder) is not None


def cannot_be_written(path: Path, error: OSError) -> UserError:
    """What to raise for a run's folder that the system refuses."""
    return UserError(f"run.dir={path}: cannot be written ({error.strerror}); choose another --run.dir")


def create(path: Path, anew: bool) -> Path:
    """Create this folder; if `anew`, one with a number behind its name where another run has just taken the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path
    for number in itertools.count(2):
        try:
            name.mkdir(exist_ok=not anew)
        except FileExistsError:
            if not anew:
                raise
            name = path.with_name(f"{path.name}-{number}")
        else:
            break
    return name


def delete_old_run(path: Path) -> None:
    """Delete what an earlier run left in this folder, half-done checkpoints too."""
    recover(path / CHECKPOINTS)
    for folder in list_checkpoints(path / CHECKPOINTS):
        shutil.rmtree(folder)
    if (path / PROFILE).is_dir():
        shutil.rmtree(path / PROFILE)
    for name in (METRICS, SUMMARY):
        (path / name).unlink(missing_ok=True)


def find_checkpoint(path: Path, key: str, warn: Callable[[str], None]) -> VerifiedCheckpoint:
    """The checkpoint at a path: itself, or the newest of a run's folder.

    Raises:
        UserError: neither is there, or it is damaged; the message names the path as the value of `key`.
    """
    if (path / "manifest.json").is_file():
        return load_verified(path)
    newest = newest_verified(path / CHECKPOINTS, warn)
    if newest is None:
        raise UserError(f"{key}={path}: is neither a checkpoint's folder nor a run's folder with a whole checkpoint")
    return newest


def check_resumable(config: Config, saved: Mapping[str, Mapping[str, Any]], checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint with settings that would change what the run computes.

    Settings that the checkpoint does not know yet had their defaults.

    Raises:
        UserError: names the settings that differ.
    """
    before = {section: {**values, **saved.get(section, {})} for section, values in Config().to_dict().items()}
    differing = [
        f"{section}.{key}={value!r} (was {repr(before[section][key])[:60]})"
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if section != "tracking" and f"{section}.{key}" not in RESUME_OVERRIDABLE and before[section][key] != value
    ]
    if differing:
        raise UserError(
            f"{checkpoint}: was written with other settings: {', '.join(differing[:4])}"
            f"{' ...' if len(differing) > 4 else ''}; give the same, or start anew in another --run.dir"
        )


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml, from which `--config` starts the same run.

    Raises:
        TrainingError: the disk is full or the folder is gone.
    """
    write_text(folder / CONFIG, dump(config))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    try:
        return read_json(folder / SUMMARY)
    except (OSError, ValueError):
        return None


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, the last thing a run does.

    Raises:
        TrainingError: the disk is full or the folder is gone.
    """
    lines = (f"  {json.dumps(key)}: {dump_strict(value)}" for key, value in summary.items())
    write_text(folder / SUMMARY, "{\n" + ",\n".join(lines) + "\n}\n")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    try:
        with atomic_write(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})", everywhere=True) from error


def warn_if_other_hardware(before: dict[str, str], now: dict[str, str], warn: Callable[[str], None]) -> None:
    """Say that a run goes on where kernels may round differently."""
    other = ", ".join(f"{key} {now[key]} instead of {before.get(key)}" for key in now if before.get(key) != now[key])
    if other:
        warn(f"this run goes on with {other}: it may not end with the bits that it would have ended with there")
