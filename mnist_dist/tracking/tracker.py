"""What a run records: metrics.jsonl, which is always written, and the tracker that mirrors it.

Neither ever stops a run: what goes wrong is said once. Imports neither torch nor wandb.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mnist_dist.config.schema import Config
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.tracking.wandb_tracker import WandbTracker

if TYPE_CHECKING:
    pass


Warn = Callable[[str], None]


# metrics.jsonl


# Where wandb is to record, decided without importing it


# Trackers


class Tracker(Protocol):
    """What mirrors the rows of metrics.jsonl elsewhere, and shows what is no number. No method ever raises."""

    @property
    def hung(self) -> bool:
        """Whether it was given up on."""

    @property
    def look(self) -> str:
        """How to look at what was recorded, for the console; empty where there is nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl. Returns at once."""

    def show(self, step: int, epoch: int, media: Media) -> None:
        """Take what is shown of a step of an epoch, from 1. Returns at once."""

    def say(self, line: str) -> None:
        """Take a line that the run prints. Returns at once."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Take the run's summary and wait until everything is recorded, tracking.timeout seconds at most."""


class NullTracker:
    """Records nothing: for all processes but the main one, and for tracking.mode=disabled."""

    hung = False
    look = ""

    def log(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def show(self, step: int, epoch: int, media: Media) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Nothing."""


def open_tracker(
    config: Config,
    folder: Path,
    run_id: str,
    resumed: bool,
    warn: Warn,
    is_main: bool,
    facts: Mapping[str, Any] | None = None,
) -> Tracker:
    """The tracker that the configuration asks for.

    Args:
        folder: the run's folder, into which wandb writes `wandb/`.
        run_id: the same for all segments of a run that was resumed.
        resumed: whether this is not the first of them.
        warn: takes one line; called from another thread.
        facts: what the configuration does not say and runs are worth filtering by, with dotted keys.
    """
    mode = tracking_mode(config.tracking)[0] if is_main else "disabled"
    if mode == "disabled":
        return NullTracker()
    return WandbTracker(config, folder, run_id, resumed, mode, warn, facts or {})


def new_run_id() -> str:
    """What trackers are to know a new run by: what wandb's agent or the user chose, else eight random digits."""
    return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
