"""`mnist-dist status`: the state of a run in any state, from the files in its folder alone."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnist_dist.__main__ import main
from mnist_dist.checkpoint import run_lock
from mnist_dist.checkpoint.run_lock import RunLock, is_locked
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER

RUN_OF_0_1_0 = Path(__file__).parents[1] / "checkpoint" / "run_of_0_1_0"
HERE = {
    "pid": os.getpid(),
    "host": platform.node(),
    "started": psutil.Process().create_time(),
}
GONE = HERE | {"started": 1.0}
"""The process id was given to another process since."""
ROWS = (
    *({"step": 10, "epoch": 1, "train.loss": 0.5, "train.accuracy": 0.75, "lr": 0.1, "images_per_second": 900.0},),
    *({"step": 10, "epoch": 1, "val.loss": 0.25, "val.accuracy": 0.875, "val.top2": 1.0, "val.confusion": [[1]]},),
)
RANKS = [
    {"host": "a", "data": 0.001, "compute": 0.02, "optimizer": 0.002, "other": 0.001},
    {"host": "b", "data": 0.001, "compute": 0.06, "optimizer": 0.002, "other": 0.001},
]


def write_run(folder: Path, age: float = 0.0, summary: bool = False, **status: Any) -> Path:
    """A run directory with two rows and, unless no key of it is given, status.json."""
    (folder / "checkpoints/step-00000008").mkdir(parents=True)
    now = time.time() - age
    (folder / "config.yaml").write_text("run: {}\n")
    os.utime(folder / "config.yaml", (now, now))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"time": now}) + "\n" for row in ROWS))
    if status:
        content = {"time": now, "step": 12, "last_step": 40, "epochs": 4, "world_size": 2, "machines": 1} | status
        (folder / "status.json").write_text(json.dumps(content))
    if summary:
        (folder / "summary.json").write_text(json.dumps({"test.accuracy": 0.9}))
    return folder


@contextmanager
def lock_held(folder: Path, host: str = "") -> Iterator[None]:
    """Within the block, this process holds the run's lock, as another one on `host` if it is given."""
    with RunLock() as lock:
        lock.acquire(folder, print)
        lock.mark_started()
        if host:
            text = (folder / ".lock").read_text().replace(platform.node(), host)
            (folder / ".lock").write_text(text)
        yield


def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON."""
    code = main(["status", str(folder), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_running_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    behind = {"rank": 1, "host": "b", "ratio": 2.7, "phase": "compute", "text": "rank 1 on b holds up the others"}
    told = {"state": "running", "seconds_left": 75.0, "ranks": RANKS, "stragglers": [behind]}
    folder = write_run(tmp_path / "run", **HERE, **told)
    with lock_held(folder):
        assert main(["status", str(folder)]) == EXIT_DONE
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"run: {folder}", "state: running; last sign of life 0:00 ago"]
        assert f"processes: 2 on 1 machine, the main one is process {os.getpid()} on {platform.node()}" in lines
        assert "progress: step 12 of 40 (30 %), epoch 1 of 4" in lines
        assert any(line.startswith("time left: about 1:15, until ") for line in lines)
        assert "last row: step 10, 0:00 ago: loss 0.5000, accuracy 75.00 %, lr 0.1, 900 images/s" in lines
        assert "evaluation: step 10, 0:00 ago: val loss 0.2500, val accuracy 87.50 %, val top-2 100.00 %" in lines
        assert "checkpoint: step 8" in lines
        assert "rank 1 is behind: rank 1 on b holds up the others" in lines
        assert [line.split() for line in lines[-2:]] == [
            ["1", "64.0", "1.0", "60.0", "2.0", "1.0", "b"],
            ["0", "24.0", "1.0", "20.0", "2.0", "1.0", "a"],
        ]
        code, content = status(folder, capsys)
    assert code == EXIT_DONE
    assert content["ranks"] == RANKS
    assert content["stragglers"] == [behind]
    assert 74 < content["seconds_left"] <= 75
    assert content["train"].keys() >= ROWS[0].keys()
    assert "val.confusion" not in content["evaluation"]


@pytest.mark.parametrize(
    ("written", "age", "locked_by", "state", "code"),
    [
        (HERE | {"state": "running"}, 1e6, "us", "running", EXIT_DONE),  # stuck, but there
        (HERE | {"state": "running"}, 0, "", "running", EXIT_DONE),  # a file system without locks
        (GONE | {"state": "running"}, 0, "", "killed", EXIT_FAILED),
        (GONE | {"state": "finished"}, 0, "", "finished", EXIT_DONE),
        (GONE | {"state": "stopped", "message": "at step 12"}, 0, "", "stopped", EXIT_STOPPED),
        (GONE | {"state": "failed", "message": "OSError"}, 0, "", "failed", EXIT_FAILED),
        (GONE | {"state": "stopped", "pid": 1}, 0, "us", "starting", EXIT_DONE),  # resumed, and not training yet
        (GONE | {"state": "running", "host": "far"}, 0, "far", "running", EXIT_DONE),
        (GONE | {"state": "running", "host": "far"}, 30, "", "running", EXIT_DONE),  # its lock is not seen here
        (GONE | {"state": "running", "host": "far"}, 300, "", "silent", EXIT_FAILED),
        ({}, 0, "us", "running", EXIT_DONE),  # of an earlier version
        ({}, 0, "", "unfinished", EXIT_FAILED),
    ],
)
def test_the_state(
    written: dict[str, Any],
    age: float,
    locked_by: str,
    state: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_run(tmp_path / "run", age, **written)
    locked = lock_held(folder, host="" if locked_by == "us" else locked_by) if locked_by else nullcontext()
    with locked:
        found, content = status(folder, capsys)
        assert (found, content["state"]) == (code, state)
        assert content["message"] == written.get("message", "")
        assert main(["status", str(folder)]) == code
    assert f"state: {state}" in capsys.readouterr().out


def test_a_run_without_rows_is_starting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_held(tmp_path):
        assert status(tmp_path, capsys)[1]["state"] == "starting"
        assert main(["status", str(tmp_path)]) == EXIT_DONE


def test_runs_of_earlier_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, content = status(RUN_OF_0_1_0, capsys)
    assert (code, content["state"], content["step"], content["last_step"]) == (EXIT_DONE, "finished", 6, None)
    assert main(["status", str(RUN_OF_0_1_0)]) == EXIT_DONE
    assert "progress: step 6, epoch 2\n" in capsys.readouterr().out


def test_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/old"), age=100, state="finished")
    write_run(Path("runs/new"), age=10, state="finished")
    assert status(Path("last"), capsys)[1]["run"] == "runs/new"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone", "gone: cannot be read (No such file or directory); give the folder of a run"),
        ("file", "file: cannot be read (Not a directory); give the folder of a run"),
        ("other", "other: holds no run; give the folder of a run"),
        ("last", "last: no run in "),
    ],
)
def test_no_run(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("other").mkdir()
    assert main(["status", path]) == EXIT_USER
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"mnist_dist: error: {message}")


CONTROL = '{"state": "failed", "message": "\\u001b[2J", "step": null}'
HOSTILE = ("", "{", "[]", '{"state": 5, "host": ["x"], "ranks": 7, "stragglers": [3, {"rank": "x"}], "step": "9"}')


@pytest.mark.parametrize(
    "content", [*HOSTILE, '{"state": "failed", "message": "\\u001b[2J", "step": null}', "[" * 9999]
)
def test_files_that_make_no_sense(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("status.json", "summary.json", ".lock"):
        (folder / name).write_text(content)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{content}\n{{"step": 11, "train.loss": null}}\n{{"step": 12, "train.l')  # being written
    for arguments in ([], ["--json"]):
        assert main(["status", str(folder), *arguments]) in (EXIT_DONE, EXIT_FAILED)
        out = capsys.readouterr().out
        assert "\x1b" not in out
    assert json.loads(out)["step"] == 11


def test_a_long_file_is_read_from_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    rows = (json.dumps(ROWS[0] | {"step": step, "fill": "x" * 1000}) for step in range(2000))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert status(folder, capsys)[1]["step"] == 1999


def test_it_imports_no_torch(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", **GONE, state="finished", ranks=RANKS)
    source = (
        "import sys; from mnist_dist.__main__ import main; "
        f"code = main(['status', {str(folder)!r}]); sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False, capture_output=True).returncode == EXIT_DONE


# The lock


def test_a_look_at_the_lock_keeps_no_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is started at the moment of a look takes the lock once the look is over."""
    (tmp_path / ".lock").touch()
    looking = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    try_shared_lock = run_lock.try_shared_lock

    def try_and_end_the_look(file: int) -> bool:
        answer = try_shared_lock(file)
        os.close(looking)
        return answer

    with RunLock() as lock:
        with monkeypatch.context() as patch:
            patch.setattr(run_lock, "try_shared_lock", try_and_end_the_look)
            lock.acquire(tmp_path, print)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_lock_file_that_may_only_be_read_is_looked_at(tmp_path: Path) -> None:
    with RunLock() as lock:
        lock.acquire(tmp_path, print)
        (tmp_path / ".lock").chmod(0o400)
        assert is_locked(tmp_path)
        opened = os.open(tmp_path / ".lock", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(opened)
