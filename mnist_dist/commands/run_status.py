"""Where a run is, from the files in its folder alone: while it runs, after it has ended, and of any version.

`tracking.run_record` reads the same files to show and compare whole runs: all rows, whatever their number. What is
asked here comes every second, of runs that may be long, so of metrics.jsonl only the end is read, and no settings are.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.run_lock import LOCK, LockHolder, is_locked, is_same_time, process_start_time, read_holder
from mnist_dist.checkpoint.run_paths import CHECKPOINTS, CONFIG, METRICS, STATUS, SUMMARY
from mnist_dist.tracking.run_record import checkpoint_steps, parse_lines
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from mnist_dist.utils.files import open_no_follow, read_json_or_empty

EXIT_CODES = {
    "starting": EXIT_DONE,
    "running": EXIT_DONE,
    "finished": EXIT_DONE,
    "stopped": EXIT_STOPPED,
    "failed": EXIT_FAILED,
    "killed": EXIT_FAILED,
    "silent": EXIT_FAILED,
    "unfinished": EXIT_FAILED,
}
"""The states of a run, and the exit code of `mnist-dist status` for each."""
SILENT_SECONDS, SILENT_ROWS = 60.0, 5
"""A run on another machine whose lock is not seen counts as silent after so many seconds, and as many rows' time."""
TAIL_BYTES = 1 << 20
"""Of metrics.jsonl that are read: many rows."""
HINT = "give the folder of a run, which its first lines name, or last for the newest"

Json = dict[str, Any]


def read_run_status(folder: Path) -> Json:
    """State, progress, speed, rows and ranks of the run in a folder, as `mnist-dist status --json` prints them.

    Keys are those of status.json (see `tracking.status_file`); `state` is one of EXIT_CODES. Added are `run`,
    `age_seconds` since the last sign of life, `train` and `evaluation` (rows of metrics.jsonl), `checkpoint_step`, and
    of a finished run `test_accuracy`. What is not known is None or empty.

    Raises:
        UserError: there is no such folder, it holds no run, or it cannot be read.
    """
    check_holds_run(folder)
    # The lock is looked at before the files: a run that ends in between has then written them.
    locked, holder = is_locked(folder), read_holder(folder / LOCK)
    status, summary = read_json_or_empty(folder / STATUS), read_json_or_empty(folder / SUMMARY)
    rows = read_rows(folder / METRICS)
    train = last_row(rows, "train.loss")
    evaluation = last_row(rows, "val.accuracy") or last_row(rows, "test.accuracy")
    age = max(time.time() - last_sign(status, rows, folder), 0.0)
    state = find_state(status, bool(summary), rows, locked, holder, age)
    is_running = state == "running"
    left = number(status, "seconds_left")
    return {
        "run": str(folder),
        "state": state,
        "message": text(status, "message") if state in ("stopped", "failed") else "",
        "pid": holder.pid if locked and holder else number(status, "pid"),
        "host": clean(holder.host) if locked and holder else text(status, "host"),
        "age_seconds": age,
        "step": int(max(number(each, "step") or 0 for each in (status, train, evaluation))),
        "last_step": number(status, "last_step"),
        "epoch": number(train, "epoch") or number(status, "epoch"),
        "epochs": number(status, "epochs"),
        "world_size": number(status, "world_size") or number(summary, "world_size"),
        "machines": number(status, "machines") or number(summary, "machines"),
        "images_per_second": number(train, "images_per_second"),
        "step_seconds": number(train, "step_seconds"),
        "seconds_left": max(left - (time.time() - (number(status, "time") or 0)), 0.0) if is_running and left else None,
        "train": train,
        "evaluation": evaluation,
        "checkpoint_step": max(checkpoint_steps(folder / CHECKPOINTS), default=None),
        "test_accuracy": number(summary, "test.accuracy"),
        "ranks": objects(status, "ranks"),
        "stragglers": objects(status, "stragglers") if is_running else [],
    }


def check_holds_run(folder: Path) -> None:
    """Raise UserError if there is no such folder, it holds no run, or it cannot be read."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); {HINT}") from None
    if not names & {LOCK, CONFIG, METRICS, STATUS, SUMMARY, CHECKPOINTS}:
        raise UserError(f"{folder}: holds no run; {HINT}")


def find_state(
    status: Json, has_summary: bool, rows: list[Json], locked: bool, holder: LockHolder | None, age: float
) -> str:
    """The state of a run, one of EXIT_CODES.

    Args:
        status: the content of status.json; empty without one.
        rows: the last ones of metrics.jsonl.
        holder: the content of the lock file, which stays after a run that did not finish.
        age: seconds since the last sign of life.
    """
    written = text(status, "state")
    if locked:
        if holder and status and number(status, "pid") != holder.pid:
            return "starting"  # status.json is that of an earlier start
        if status:
            return written if written in EXIT_CODES else "running"
        return "running" if rows else "starting"  # of an earlier version, or not training yet
    if written in ("finished", "stopped", "failed"):
        return written
    if written != "running":
        return "finished" if has_summary else "unfinished"
    host, started = text(status, "host"), number(status, "started")
    if host == platform.node():  # the file system may have no locks
        pid = int(number(status, "pid") or 0)
        return "running" if started and is_same_time(process_start_time(pid), started) else "killed"
    return "running" if age < max(SILENT_SECONDS, SILENT_ROWS * row_interval(rows)) else "silent"


# Files. They may be those of another version, or be written at this moment.


def read_rows(path: Path) -> list[Json]:
    """The last rows of metrics.jsonl. A line that is incomplete, or no row, is left out."""
    try:
        with open(path, "rb", opener=open_no_follow) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return []
    whole = lines[1 if size > TAIL_BYTES else 0 : -1]
    return [row for row in parse_lines(whole) if number(row, "step") is not None]


def last_row(rows: list[Json], key: str) -> Json:
    """The last row that has a key, without its lists; empty without one."""
    found = next((row for row in reversed(rows) if key in row), {})
    return {name: value for name, value in found.items() if not isinstance(value, (list, dict))}


def last_sign(status: Json, rows: list[Json], folder: Path) -> float:
    """When the run last wrote something, in seconds since 1970."""
    times = [number(each, "time") or 0.0 for each in (status, *rows[-1:])]
    for name in (LOCK, CONFIG):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def row_interval(rows: list[Json]) -> float:
    """Seconds between the last two rows of training metrics; 0 if there is one at most."""
    times = [each for row in rows if "train.loss" in row and (each := number(row, "time")) is not None]
    return max(times[-1] - times[-2], 0.0) if len(times) > 1 else 0.0


# Values


def number(content: Mapping[str, Any], key: str) -> float | None:
    """A number; None if the key is missing or holds something else."""
    value = content.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def text(content: Mapping[str, Any], key: str) -> str:
    """A text without control characters; empty if the key is missing or holds something else."""
    value = content.get(key)
    return clean(value) if isinstance(value, str) else ""


def clean(value: str) -> str:
    """A text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in value)


def objects(content: Mapping[str, Any], key: str) -> list[Json]:
    """The objects of a list, each without nested values; empty if the key is missing or holds something else."""
    value = content.get(key)
    if not isinstance(value, list):
        return []
    items = [item for item in value if isinstance(item, dict)]
    return [{name: each for name, each in item.items() if isinstance(each, (str, int, float))} for item in items]
