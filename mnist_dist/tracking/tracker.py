"""The tracker interface: what mirrors metrics.jsonl elsewhere. Imports neither torch nor wandb.

accelerate's trackers are not used: their calls may block and raise, and then a slow or broken wandb would slow or stop
training.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mnist_dist.config.schema import Config
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.tracking.wandb_tracker import WandbTracker


class Tracker(Protocol):
    """Mirrors the rows of metrics.jsonl, and takes media. No method raises, and only `finish` waits."""

    @property
    def timed_out(self) -> bool:
        """Whether `finish` gave up waiting."""

    @property
    def view_hint(self) -> str:
        """How to view what was recorded, one line for the console; empty if nothing was."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.jsonl. Returns at once."""

    def log_media(self, step: int, epoch: int, media: Media) -> None:
        """Log the media of a step. Returns at once.

        Args:
            epoch: from 1.
        """

    def write_logs(self, line: str) -> None:
        """Log a line that the run prints. Returns at once."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Log the run's summary and wait until everything is recorded, for tracking.timeout seconds at most."""


class NullTracker:
    """Records nothing: for all processes but the main one, and for tracking.mode=disabled."""

    timed_out = False
    view_hint = ""

    def log(self, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_media(self, step: int, epoch: int, media: Media) -> None:
        """Does nothing."""

    def write_logs(self, line: str) -> None:
        """Does nothing."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Does nothing."""


def open_tracker(
    config: Config,
    folder: Path,
    run_id: str,
    resumed: bool,
    warn: Callable[[str], None],
    is_main: bool,
    facts: Mapping[str, Any] | None = None,
) -> Tracker:
    """The tracker that the configuration asks for.

    Args:
        folder: the run's folder, where wandb creates `wandb/`.
        run_id: the same for all segments of a run that is stopped and resumed.
        resumed: whether this is a later segment than the first.
        warn: is called with one line, from another thread.
        facts: resolved values to filter runs by, which the configuration lacks; with dotted keys.
    """
    mode = tracking_mode(config.tracking)[0] if is_main else "disabled"
    if mode == "disabled":
        return NullTracker()
    return WandbTracker(config, folder, run_id, resumed, mode, warn, facts or {})


def new_run_id() -> str:
    """The id of a new run: WANDB_RUN_ID, which wandb's agent or the user may have set, or eight random hex digits."""
    return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
