"""The runs of a sweep: the processes of each, what is known of it, and the sweep's folder."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mnist_dist.checkpoint.run_lock import is_locked
from mnist_dist.config.validation import shown
from mnist_dist.utils.errors import EXIT_FAILED, UserError
from mnist_dist.utils.files import atomic_write, read_json_or_empty
from mnist_dist.utils.strict_json import dump_strict

METRICS, SUMMARY = "metrics.jsonl", "summary.json"  # as in checkpoint/run_dir.py, which imports torch
RESULTS, LOCK = "results.json", ".lock"
FINISHED, STOPPED_EARLY, FAILED, INTERRUPTED, RUNNING = "finished", "stopped early", "failed", "interrupted", "running"
DONE = (FINISHED, STOPPED_EARLY)
POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""From SIGTERM to SIGKILL: time for a checkpoint and for wandb."""
PR_SET_PDEATHSIG = 1
"""prctl(2): send a signal to the calling process when its parent ends."""
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]  # of this Python, whatever PATH says


@dataclass
class Run:
    """One run of a sweep, as results.json has it."""

    number: int
    """From 1."""
    parameters: dict[str, Any]
    state: str = RUNNING
    values: list[float] = field(default_factory=list)
    """The metric, each time it was logged."""
    seconds: float = 0.0
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    """test.*, train.* and weights_sha256 of summary.json."""

    @property
    def name(self) -> str:
        """Name of its folder in the sweep's."""
        return f"{self.number:03d}"


def best_value(run: Run, goal: str) -> float | None:
    """The best value of a run's metric; None if it logged none.

    Args:
        goal: `minimize` or `maximize`.
    """
    return (max if goal == "maximize" else min)(run.values) if run.values else None


# The sweep's folder


@contextlib.contextmanager
def lock_folder(folder: Path, option: str = "--dir", what: str = "sweep") -> Iterator[None]:
    """Create a sweep's folder and lock it for this process.

    Args:
        option, what: how errors name the folder, and what runs in it.

    Raises:
        UserError: another process has the lock, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be used ({error.strerror}); choose another {option}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            f"{option} {folder}: another {what} runs there; wait for it, or choose another {option}"
        ) from None
    finally:
        os.close(handle)


def write_results(folder: Path, facts: dict[str, Any], runs: list[Run]) -> None:
    """Write results.json atomically: the sweep's facts and its runs."""
    with atomic_write(folder / RESULTS) as path:
        path.write_text(dump_strict(facts | {"runs": [asdict(run) for run in runs]}) + "\n")


# One run


def execute(
    run: Run,
    command: list[str],
    folder: Path,
    metric: str,
    stopping: Callable[[], bool],
    should_prune: Callable[[], bool],
) -> None:
    """Run a command to its end and note in `run` how it went. Its output goes to a file beside the run's folder.

    Args:
        command: words, of which `accelerate` and `python` mean those of this Python.
        folder: the run's.
        metric: the key whose values are noted.
        stopping: whether the sweep is to stop; the run then writes a checkpoint and ends.
        should_prune: whether the run is to end early; asked after new values.
    """
    wait_until_free(folder, stopping)
    started = time.monotonic()
    log = folder.with_suffix(".log")
    run.state, run.error = RUNNING, ""
    with log.open("ab") as output, start_process(resolve_program(command), output) as process:
        while process.poll() is None and run.state == RUNNING:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            before, run.values = len(run.values), read_values(folder / METRICS, metric)
            if process.poll() is None and stopping():
                run.state = INTERRUPTED
            elif process.poll() is None and len(run.values) > before and should_prune():
                run.state = STOPPED_EARLY
    run.seconds += time.monotonic() - started
    run.values = read_values(folder / METRICS, metric)
    if process.returncode == 0:  # also if it was just then asked to stop
        run.state, run.summary = FINISHED, read_summary(folder / SUMMARY)
    elif run.state == RUNNING:
        run.state, run.error = FAILED, describe_failure(log, process.returncode)


def wait_until_free(folder: Path, stopping: Callable[[], bool]) -> None:
    """Wait until no process has the run's folder: after a sweep was killed, its run still writes a checkpoint.

    After GRACE_SECONDS the run is started all the same, and says who has the folder.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while is_locked(folder) and time.monotonic() < deadline and not stopping():
        time.sleep(POLL_SECONDS)


def resolve_program(command: list[str]) -> list[str]:
    """The command with this Python's own accelerate and interpreter."""
    replaced = {"accelerate": ACCELERATE, "python": [sys.executable]}
    return [*replaced.get(command[0], command[:1]), *command[1:]]


@contextlib.contextmanager
def start_process(command: list[str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that Ctrl-C does not reach. On leaving: SIGTERM, then SIGKILL to all that is left of its tree.

    On Linux it gets SIGTERM also if this process is killed.

    Raises:
        UserError: there is no such program.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=stop_with_parent(),
        )
    except OSError as error:
        raise UserError(f"command: {command[0]}: {error.strerror}") from None
    root = psutil.Process(process.pid)  # knows its start time: another process with this id is never taken for it
    tree: list[psutil.Process] = []
    try:
        yield process
        tree = process_tree(root)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)  # before psutil waits, which would take the exit code
            psutil.wait_procs(tree[1:], timeout=GRACE_SECONDS)
    finally:
        for member in tree or process_tree(root):
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.wait()


def stop_with_parent() -> Callable[[], None] | None:
    """What a new process calls to get SIGTERM when this one ends, however it ends; None except on Linux."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def request() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it has ended already
            os._exit(EXIT_FAILED)

    return request


def process_tree(root: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants; nothing if it is gone."""
    with contextlib.suppress(psutil.Error):
        return [root, *root.children(recursive=True)]
    return []


def read_values(path: Path, metric: str) -> list[float]:
    """The metric in the complete rows of a metrics.jsonl; nothing if there is no such file."""
    values = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)[metric]
                values += [float(value)] if value is not None else []
    return values


def read_summary(path: Path) -> dict[str, Any]:
    """test.*, train.* and weights_sha256 of a run's summary.json; nothing if there is no such file."""
    return {
        key: value
        for key, value in read_json_or_empty(path).items()
        if key.startswith(("test.", "train.", "weights_sha256")) and not isinstance(value, list)
    }


def describe_failure(log: Path, code: int) -> str:
    """Why a run failed, in one line: our own error message if there is one, else the last line of its output."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix("mnist_dist: ") for line in lines if line.startswith("mnist_dist: ")]
    words = [*lines[-1:], *ours[-1:]] or ["it wrote nothing"]
    return f"exit code {code}: {shown(words[-1].strip())}"
