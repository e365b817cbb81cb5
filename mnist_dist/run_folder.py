"""A run's folder: its name, what is in it, and which checkpoint a run goes on from."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint import list_checkpoints, newest_checkpoint, read_json, written_whole
from mnist_dist.config import Config
from mnist_dist.config_loader import dump
from mnist_dist.errors import TrainingError, UserError
from mnist_dist.strict_json import dump_strict

CHECKPOINTS, METRICS, SUMMARY, CONFIG = "checkpoints", "metrics.jsonl", "summary.json", "config.yaml"

# Settings that may change when a run goes on: none of them changes what it computes.
FREE = {
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
}


def open_run_folder(config: Config, recipes: Sequence[str]) -> Path:
    """Create the run's folder, or take the one that is there. On the main process only.

    Raises:
        UserError: it cannot be created or written.
    """
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    path = Path(config.run.dir or f"runs/{'-'.join(recipes) or 'default'}-{stamp}").expanduser()
    try:
        if not config.run.dir:
            path = create_new(path)
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        if config.run.resume == "never":
            start_over(path)
    except OSError as error:
        raise UserError(f"run.dir={path}: cannot be written ({error.strerror}); choose another --run.dir") from error
    return path


def create_new(path: Path) -> Path:
    """Create this folder, or one with a number behind its name where another run has just taken the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path
    for number in itertools.count(2):
        try:
            name.mkdir()
        except FileExistsError:
            name = path.with_name(f"{path.name}-{number}")
        else:
            break
    return name


def start_over(path: Path) -> None:
    """Delete what an earlier run left in this folder."""
    for folder in list_checkpoints(path / CHECKPOINTS):
        shutil.rmtree(folder)
    for name in (METRICS, SUMMARY):
        (path / name).unlink(missing_ok=True)


def choose_checkpoint(config: Config, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint that run.resume means, or None to start from nothing.

    Raises:
        UserError: run.resume names something else than a checkpoint or a run with one.
    """
    if config.run.resume not in ("auto", "never"):
        return find_checkpoint(Path(config.run.resume).expanduser(), "run.resume", warn)
    if config.run.resume == "never" or not config.run.dir:
        return None
    return newest_checkpoint(Path(config.run.dir).expanduser() / CHECKPOINTS, warn)


def find_checkpoint(path: Path, key: str, warn: Callable[[str], None]) -> Path:
    """The checkpoint at a path: itself, or the newest of a run's folder.

    Raises:
        UserError: neither is there; the message names the path as the value of `key`.
    """
    if (path / "manifest.json").is_file():
        return path
    newest = newest_checkpoint(path / CHECKPOINTS, warn)
    if newest is None:
        raise UserError(f"{key}={path}: is neither a checkpoint's folder nor a run's folder with a whole checkpoint")
    return newest


def check_same_run(config: Config, saved: Mapping[str, Mapping[str, Any]], checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint with settings that would change what the run computes.

    Raises:
        UserError: names the settings that differ.
    """
    differing = [
        f"{section}.{key}={value!r} (was {saved.get(section, {}).get(key)!r})"
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if section != "tracking" and f"{section}.{key}" not in FREE and saved.get(section, {}).get(key) != value
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
        with written_whole(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})", everywhere=True) from error
