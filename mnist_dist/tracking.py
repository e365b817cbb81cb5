"""What a run records: metrics.jsonl, which is always written, and the tracker that mirrors it.

Neither ever stops a run: what goes wrong is said once. Imports neither torch nor wandb.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mnist_dist.config import Config, TrackingConfig
from mnist_dist.errors import UserError
from mnist_dist.media import Media
from mnist_dist.strict_json import dump_strict
from mnist_dist.wandb_tracker import WandbTracker

Warn = Callable[[str], None]

WANDB_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
WANDB_SERVERS = {"api.wandb.ai", "api.forge.coreweave.com"}  # wandb's own; newer releases use the second name


# metrics.jsonl


class MetricsFile:
    """metrics.jsonl: one strict JSON object a line, only ever appended to. What cannot be written is said once.

    Args:
        path: the file; need not exist.
        keep_until: rows of later steps are removed, because the run will write them again. -1: all.
        warn: takes one line.
    """

    def __init__(self, path: Path, keep_until: int, warn: Warn) -> None:
        self._path, self._warn, self._warned = path, warn, False
        self.rewind(keep_until)

    def rewind(self, step: int) -> None:
        """Remove the rows of later steps, because the run will write them again."""
        try:
            trim(self._path, step)
        except OSError as error:
            self._complain(error)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of plain values (`step`, `epoch`, `time` in seconds since 1970, metrics), whole or not at all.

        NaN and infinities become null.
        """
        try:
            append(self._path, dump_strict(row).encode() + b"\n")
        except (OSError, TypeError, ValueError) as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            problem = getattr(error, "strerror", None) or error
            self._warn(f"{self._path}: cannot be written ({problem}); training goes on without it")


def trim(path: Path, keep_until: int) -> None:
    """Remove, in one rename, the rows of later steps and lines that are no whole row. Raises OSError."""
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    kept = [line for line in before.split(b"\n") if (step := step_of(line)) is not None and step <= keep_until]
    after = b"".join(line + b"\n" for line in kept)
    if after != before:
        aside = path.with_name(f".writing-{path.name}")
        with aside.open("wb") as file:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def step_of(line: bytes) -> int | None:
    """The step of a row of metrics.jsonl, or None if the line is no whole row."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def append(path: Path, data: bytes) -> None:
    """Append all of the data, or raise OSError and leave the file as it was."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        written = file.write(data)
        if written != len(data):
            file.truncate(size)
            raise OSError(None, "the disk is full")


# Where wandb is to record, decided without importing it


def check_tracking(config: Config) -> None:
    """Check what wandb would refuse, before training and without wandb or a network.

    Raises:
        UserError: a name that wandb does not take, or online without a key.
    """
    tracking = config.tracking
    if set(tracking.project) & set("/\\#?%:") or not 1 <= len(tracking.project) <= 128:
        raise UserError(f"tracking.project={tracking.project}: must be 1 to 128 characters, none of them / \\ # ? % :")
    for tag in tracking.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(f"tracking.tags: {tag!r} must be 1 to 64 characters")
    tracking_mode(tracking)


def describe_tracking(config: Config) -> str:
    """Where wandb records and why, for the console."""
    mode, reason = tracking_mode(config.tracking)
    return f"wandb {mode} ({reason})"


def tracking_mode(tracking: TrackingConfig) -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and why. Never leads to a prompt: online needs a key that is there already.

    Raises:
        UserError: online was asked for, but there is no key; or WANDB_MODE makes no sense.
    """
    mode: str = tracking.mode
    reason = f"tracking.mode={mode}"
    asked = os.environ.get("WANDB_MODE", "")
    if mode == "auto" and not asked:
        return ("online", "a key is configured") if has_key() else ("offline", "no key; `wandb login` adds one")
    if mode == "auto":
        if asked not in WANDB_MODES:
            raise UserError(f"WANDB_MODE={asked} (environment): must be online, offline or disabled")
        mode, reason = WANDB_MODES[asked], f"WANDB_MODE={asked}"
    if mode == "online" and not has_key():
        raise UserError(f"{reason}: no wandb key is configured; set WANDB_API_KEY, run `wandb login`, or go offline")
    return mode, reason


def has_key() -> bool:
    """Whether wandb would find a key for its server: in the environment, or in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    servers = {server} if (server := wandb_server()) else WANDB_SERVERS
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):
            hosts = netrc.netrc(str(Path(path).expanduser())).hosts
            return any(password for host, (_, _, password) in hosts.items() if host in servers)
    return False


def wandb_server() -> str:
    """The host of the wandb server that the environment or wandb's settings file names; empty for wandb's own."""
    url = os.environ.get("WANDB_BASE_URL", "")
    if not url:
        file = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, ValueError, RuntimeError):
            file.read(Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings")
            url = file.get("default", "base_url", fallback="")
    with contextlib.suppress(ValueError):
        return "" if urlsplit(url).netloc in WANDB_SERVERS else urlsplit(url).netloc
    return url  # no address at all: no key is for it


# Trackers


class Tracker(Protocol):
    """What mirrors the rows of metrics.jsonl elsewhere. No method ever raises."""

    @property
    def hung(self) -> bool:
        """Whether it was given up on."""

    @property
    def look(self) -> str:
        """How to look at what was recorded, for the console; empty where there is nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl. Returns at once."""

    def show(self, step: int, epoch: int, media: Media) -> None:
        """Take what is shown of a step. Returns at once."""

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

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Nothing."""


def open_tracker(config: Config, folder: Path, run_id: str, resumed: bool, warn: Warn, is_main: bool) -> Tracker:
    """The tracker that the configuration asks for.

    Args:
        folder: the run's folder, into which wandb writes `wandb/`.
        run_id: the same for all segments of a run that was resumed.
        resumed: whether this is not the first of them.
        warn: takes one line; called from another thread.
    """
    mode = tracking_mode(config.tracking)[0] if is_main else "disabled"
    return NullTracker() if mode == "disabled" else WandbTracker(config, folder, run_id, resumed, mode, warn)
