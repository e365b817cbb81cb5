"""The lock on a run directory, with real processes: refused, killed, and with children that outlive them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import PYTHON, started, write_digits

from mnist_dist.checkpoint.run_lock import LOCK, RunLock, read_holder
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER, UserError

HOLD = """
import subprocess, sys
from pathlib import Path
from mnist_dist.checkpoint.run_lock import RunLock
with RunLock(0) as lock:
    lock.acquire(Path(sys.argv[1]), print)
    child = subprocess.Popen(["sleep", "600"], close_fds=False, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    if sys.stdin.readline() == "finish\\n":
        lock.mark_finished()
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line, and starts a child that outlives it."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)  # it must have lived until here


def lock_and_release(folder: Path, **done: bool) -> None:
    with RunLock(0) as lock:
        lock.acquire(folder, pytest.fail)
        if done.get("finished"):
            lock.mark_finished()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        before = (tmp_path / LOCK).read_bytes()
        with pytest.raises(UserError) as error:
            lock_and_release(tmp_path)
        assert str(error.value) == (
            f"run.dir={tmp_path}: is in use by process {first.pid} on {platform.node()}; "
            "wait for it, stop it, or choose another --run.dir"
        )
        assert (tmp_path / LOCK).read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_no_lock_even_if_its_child_lives_on(number: int, tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.send_signal(number)
        first.wait()
        assert (tmp_path / LOCK).exists()
        lock_and_release(tmp_path)


def test_a_finished_holder_leaves_no_file(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.communicate("finish\n")
        assert os.listdir(tmp_path) == []
        lock_and_release(tmp_path, finished=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"x" * 5000, b"\xff"])
def test_a_lock_file_that_nobody_has_locked_keeps_nobody_out(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with RunLock(0) as lock:
        lock.acquire(tmp_path, pytest.fail)
        assert read_holder(tmp_path / LOCK) == lock.holder
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
            lock_and_release(tmp_path)
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(UserError, match="in use by another process;"):
            lock_and_release(tmp_path)


def test_a_lock_file_deleted_between_open_and_lock_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have created and locked a new one since."""
    flock = fcntl.flock

    def after_it_is_gone(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / LOCK).unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", after_it_is_gone)
    with RunLock(0) as lock:
        lock.acquire(tmp_path, pytest.fail)
        with pytest.raises(UserError):
            lock_and_release(tmp_path)


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    warnings: list[str] = []
    with RunLock(0) as lock:
        lock.acquire(tmp_path, warnings.append)
    assert warnings == [f"{tmp_path / LOCK}: cannot be locked (No locks available); start no second run in this folder"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_created_for_a_run_that_did_not_start_is_removed(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with RunLock(0) as lock:
        lock.remove_unless_started([] if there else [folder, folder.parent])
        lock.acquire(folder, pytest.fail)
    assert list(tmp_path.rglob("*")) == ([folder.parent, folder] if there else [])


@pytest.mark.launcher
def test_a_second_training_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    write_digits(tmp_path, train=400, test=50)
    (tmp_path / "run").mkdir()
    options = [f"--data.root={tmp_path}", "--data.source=local", "--data.val_size=100", "--train.batch_size=50"]
    command = [*PYTHON, "-m", "mnist_dist.train", "--run.dir=run", "--run.resume=never", *options]
    command += ["--train.epochs=1", "--run.threads=1", "--tracking.mode=disabled"]
    with holder(tmp_path / "run") as first:
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        with started(command, work=tmp_path) as (program,):
            ended = program.end()
        assert ended.code == EXIT_USER
        (said,) = ended.err.splitlines()
        assert said.startswith(f"mnist_dist: error: run.dir=run: is in use by process {first.pid} on ")
        assert sorted(os.listdir(tmp_path / "run")) == [LOCK, "metrics.jsonl"]
    with started(command, work=tmp_path) as (program,):
        assert program.end().code == EXIT_DONE
    assert not (tmp_path / "run" / LOCK).exists()
