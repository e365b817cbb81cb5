"""status.json: written whole, not at every row, with the way that a run ended; it never stops a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.tracking import status_file
from mnist_dist.tracking.status_file import StatusFile
from mnist_dist.utils.errors import Stopped, TrainingError


def read(folder: Path) -> dict[str, Any]:
    """The content; there is no other file."""
    assert [path.name for path in folder.iterdir()] == ["status.json"]
    return json.loads((folder / "status.json").read_text())


def test_it_is_written_at_the_start_once_a_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, warned, done = [100.0], list[str](), [0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with StatusFile(tmp_path / "status.json", {"last_step": 9}, lambda: {"step": done[0]}, warned.append) as status:
        first = read(tmp_path)
        assert (first["state"], first["step"], first["last_step"]) == ("running", 0, 9)
        assert abs(first["time"] - time.time()) < 60
        for done[0], seconds, written in ((1, 0.5, 0), (2, 0.4, 0), (3, 0.2, 3), (4, 0.9, 3), (5, 3.0, 5)):
            clock[0] += seconds
            status.update({"seconds_left": float("nan")})
            assert read(tmp_path)["step"] == written
        assert read(tmp_path)["seconds_left"] is None
        done[0] = 6
    assert (read(tmp_path)["state"], read(tmp_path)["step"]) == ("finished", 6)
    assert warned == []


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (Stopped("at step 5, with a checkpoint"), "stopped", "at step 5, with a checkpoint"),
        (TrainingError("rank 1 is gone"), "failed", "rank 1 is gone"),
        (ZeroDivisionError("a\nb"), "failed", "ZeroDivisionError: a b"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt:"),
    ],
)
def test_it_says_how_a_run_ended(error: BaseException, state: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), StatusFile(tmp_path / "status.json", {}, dict, print):
        raise error
    assert (read(tmp_path)["state"], read(tmp_path)["message"]) == (state, message)


def test_what_cannot_be_written_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(status_file, "WRITE_SECONDS", 0.0)
    with StatusFile(tmp_path / "gone" / "status.json", {}, dict, warned.append) as status:
        status.update({"epoch": 1})
        status.update({"epoch": 2})
    assert warned == [f"{tmp_path}/gone/status.json: cannot be written (No such file or directory); " + GOES_ON]


GOES_ON = "training goes on without it"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with StatusFile(None, {}, dict, print) as status:
        status.update({"epoch": 1})
    assert list(tmp_path.iterdir()) == []
