"""The tracker interface: what mirrors metrics.jsonl elsewhere. Imports neither torch nor wandb.

accelerate's trackers are not used: their calls may block and raise, and then a slow or broken wandb would slow or stop
training.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from mnist_dist.config.schema import Config
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.tracking.wandb_tracker import WandbTracker
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.run_id import RUN_ID

AlertLevel = Literal["INFO", "WARN", "ERROR"]


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

    def alert(self, title: str, text: str, level: AlertLevel = "WARN") -> None:
        """Tell the user of an event of the run, if tracking.alerts asks for it. Returns at once.

        Args:
            title: short, the same for each event of a kind.
        """

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

    def alert(self, title: str, text: str, level: AlertLevel = "WARN") -> None:
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


def new_run_id(config: Config, folder: Path) -> str:
    """The id of a new run: WANDB_RUN_ID, which wandb's agent or the user may have set, or eight random hex digits.

    Args:
        folder: the run's. The folders beside it are searched for another run that wandb has under this id.

    Raises:
        UserError: WANDB_RUN_ID is not an id, or another run has it: wandb would make one run of both.
    """
    run_id = os.environ.get("WANDB_RUN_ID", "")
    if not run_id:
        return secrets.token_hex(4)
    if not RUN_ID.fullmatch(run_id):
        raise UserError(
            f"WANDB_RUN_ID={run_id!r} (environment): must be 1 to 64 letters, digits, - and _; correct or unset it"
        )
    if tracking_mode(config.tracking)[0] != "disabled":
        for recorded in folder.absolute().parent.glob(f"*/wandb/*run-*-{run_id}"):
            other = recorded.parent.parent
            if not other.samefile(folder):
                raise UserError(
                    f"WANDB_RUN_ID={run_id} (environment): the run in {other} has this id; unset it, or go on with "
                    f"that run by --run.dir={other}"
                )
    return run_id
