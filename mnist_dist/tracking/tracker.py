"""The tracker interface: what mirrors metrics.jsonl elsewhere. Imports neither torch nor wandb.

Every tracker records on a thread of its own, because the calls of wandb and of accelerate's trackers may block and
raise, and then a slow or broken one would slow or stop training.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

from mnist_dist.config.schema import Config
from mnist_dist.tracking.accelerate_tracker import AccelerateTracker
from mnist_dist.tracking.backend import StartTracker
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.tracking.wandb_thread import MachineLoadTracker, SharedLoad
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


class TrackerGroup:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    @property
    def timed_out(self) -> bool:
        """Whether one gave up waiting."""
        return any(tracker.timed_out for tracker in self.trackers)

    @property
    def view_hint(self) -> str:
        """Those of all, one a line."""
        return "\n".join(tracker.view_hint for tracker in self.trackers if tracker.view_hint)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row with all. Returns at once."""
        for tracker in self.trackers:
            tracker.log(row)

    def log_media(self, step: int, epoch: int, media: Media) -> None:
        """Log the media of a step with all. Returns at once."""
        for tracker in self.trackers:
            tracker.log_media(step, epoch, media)

    def write_logs(self, line: str) -> None:
        """Log a line that the run prints with all. Returns at once."""
        for tracker in self.trackers:
            tracker.write_logs(line)

    def alert(self, title: str, text: str, level: AlertLevel = "WARN") -> None:
        """Send an alert with all. Returns at once."""
        for tracker in self.trackers:
            tracker.alert(title, text, level)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish all at the same time, so that the slowest one decides how long it takes."""
        with ThreadPoolExecutor(len(self.trackers)) as pool:
            for done in [pool.submit(tracker.finish, summary, exit_code) for tracker in self.trackers]:
                done.result()


def open_tracker(
    config: Config,
    folder: Path,
    run_id: str,
    resumed: bool,
    warn: Callable[[str], None],
    is_main: bool,
    facts: Mapping[str, Any] | None = None,
    start_tracker: StartTracker | None = None,
    load: SharedLoad | None = None,
) -> Tracker:
    """The trackers that the configuration asks for: wandb, and those of tracking.also.

    Args:
        folder: the run's folder, where wandb creates `wandb/`, and the others their folders.
        run_id: the same for all segments of a run that is stopped and resumed.
        resumed: whether this is a later segment than the first. Then metrics.jsonl must have the rows of earlier ones.
        warn: is called with one line, from another thread.
        facts: resolved values to filter runs by, which the configuration lacks; with dotted keys.
        start_tracker: starts one of accelerate's trackers; without it there are none of tracking.also.
        load: where the load of this machine is sent, if several share a wandb run.
    """
    if not is_main:
        return MachineLoadTracker(load, config.tracking.timeout) if load else NullTracker()
    trackers: list[Tracker] = []
    if (mode := tracking_mode(config.tracking)[0]) != "disabled":
        trackers.append(WandbTracker(config, folder, run_id, resumed, mode, warn, facts or {}, load))
    if start_tracker is not None:
        also = (config, folder, run_id, resumed, warn, facts or {}, start_tracker)
        trackers += [AccelerateTracker(name, *also) for name in dict.fromkeys(config.tracking.also)]
    return trackers[0] if len(trackers) == 1 else TrackerGroup(trackers) if trackers else NullTracker()


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
