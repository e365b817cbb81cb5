"""What a run records: metrics.jsonl, which is always written, and the tracker that mirrors it.

Neither ever stops a run: what goes wrong is said once. Imports neither torch nor wandb.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import netrc
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mnist_dist.config.schema import Config, TrackingConfig
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.wandb_tracker import WandbTracker
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.strict_json import dump_strict

Warn = Callable[[str], None]

WANDB_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
# A key as wandb checks it without a network
WANDB_KEY = re.compile(r"[^-]*-[\w-]{40,}|\w{40,}|[\w-]+\.[\w-]+\.[\w-]+")
NAME = "1 to 128 characters, none of them / \\ # ? % :"  # what is part of addresses may be
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
    """Check what wandb or its server would refuse, before training and without wandb or a network.

    Raises:
        UserError: a name or a key that wandb does not take, or online without a key.
    """
    tracking = config.tracking
    if not is_name(tracking.project):
        raise UserError(f"tracking.project={tracking.project!r}: must be {NAME}")
    if tracking.entity and not is_name(tracking.entity):
        raise UserError(f"tracking.entity={tracking.entity!r}: must be a user's or a team's name alone, {NAME}")
    for tag in tracking.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(f"tracking.tags: {tag!r} must be 1 to 64 characters")
    for key, most in (("group", 128), ("job_type", 64)):  # the server's limits: too late when it is asked
        if len(getattr(tracking, key)) > most:
            raise UserError(f"tracking.{key}={getattr(tracking, key)!r}: must be {most} characters at most")
    key, where = find_key()
    if tracking_mode(tracking)[0] == "online" and key and not WANDB_KEY.fullmatch(key):
        raise UserError(
            f"{where}: is no wandb key (40 or more letters, digits, _ and -, no space or line end);"
            " mend it, run `wandb login --relogin`, or go offline by --tracking.mode=offline"
        )


def is_name(name: str) -> bool:
    """Whether wandb takes this name of a project, a user or a team."""
    return 1 <= len(name) <= 128 and name.isprintable() and not set(name) & set("/\\#?%:")


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
    """Whether wandb would find a key for its server, or a token that it exchanges for one."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or find_key()[0])


def find_key() -> tuple[str, str]:
    """The key that wandb would find for its server, and where: in the environment or in netrc. Empty: none."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key, "WANDB_API_KEY (environment)"
    servers = {server} if (server := wandb_server()) else WANDB_SERVERS
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):
            hosts = netrc.netrc(str(Path(path).expanduser())).hosts
            return next(((key, path) for host, (_, _, key) in hosts.items() if host in servers and key), ("", ""))
    return "", ""


def wandb_server() -> str:
    """The host of wandb's server, with its port; empty for wandb's own."""
    address = wandb_address()
    with contextlib.suppress(ValueError):
        return "" if urlsplit(address).netloc in WANDB_SERVERS else urlsplit(address).netloc
    return address  # no address at all: no key is for it


def wandb_address() -> str:
    """The address of the wandb server that the environment or wandb's settings file names, or of wandb's own."""
    url = os.environ.get("WANDB_BASE_URL", "")
    if not url:
        file = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, ValueError, RuntimeError):
            file.read(Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings")
            url = file.get("default", "base_url", fallback="")
    return url.rstrip("/") or "https://api.wandb.ai"


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
