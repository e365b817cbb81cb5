"""metrics.jsonl: whole rows, each step once, and no failure reaches training."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.tracking.metrics_file import MetricsFile


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "time": 1000.0 + step, **metrics}


def lines(path: Path) -> list[Any]:
    """The rows of a metrics.jsonl, read strictly."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_rows_are_appended_one_a_line(tmp_path: Path) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = MetricsFile(path, -1, warnings.append)
    rows.write(row(1, loss=0.5))
    assert lines(path) == [row(1, loss=0.5)]  # there at once, without any closing
    rows.write(row(2, loss=0.25))
    assert lines(path) == [row(1, loss=0.5), row(2, loss=0.25)]
    assert warnings == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = MetricsFile(path, -1, pytest.fail)
    rows.write(row(1, loss=math.nan, lr=math.inf) | {"deep": {"list": [1, -math.inf, "nan"]}})
    assert lines(path) == [row(1) | {"loss": None, "lr": None, "deep": {"list": [1, None, "nan"]}}]


def test_a_resumed_run_repeats_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = MetricsFile(path, -1, pytest.fail)
    for step in (10, 20, 30, 40):
        rows.write(row(step))
    rows = MetricsFile(path, 20, pytest.fail)
    rows.write(row(30, again=1.0))
    assert [line["step"] for line in lines(path)] == [10, 20, 30]
    assert lines(path)[-1] == row(30, again=1.0)
    MetricsFile(path, -1, pytest.fail)
    assert lines(path) == []


@pytest.mark.parametrize(
    "torn", [b'{"step": 2, "ep', b"{", b"\0\0\0\0", b"\xff", b"[1]", b'{"epoch": 1}', b'{"step": "2"}']
)
def test_lines_that_are_no_whole_row_are_removed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(row(1)).encode()
    path.write_bytes(whole + b"\n" + torn)
    MetricsFile(path, 100, pytest.fail).write(row(2))
    assert lines(path) == [row(1), row(2)]
    path.write_bytes(torn + b"\n" + whole)  # whole, but for its line's end
    MetricsFile(path, 100, pytest.fail).write(row(2))
    assert lines(path) == [row(1), row(2)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_in_order_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, -1, pytest.fail).write(row(1))
    before = path.stat()
    MetricsFile(path, 1, pytest.fail)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_crash_while_trimming_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = MetricsFile(path, -1, pytest.fail)
    for step in (1, 2):
        rows.write(row(step))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        MetricsFile(path, 1, warnings.append)
    assert warnings == [f"{path}: cannot be written (Input/output error); training goes on without it"]
    assert lines(path) == [row(1), row(2)]


def test_a_vanished_folder_gives_one_warning_and_its_return_is_used(tmp_path: Path) -> None:
    folder, warnings = tmp_path / "run", []
    folder.mkdir()
    rows = MetricsFile(folder / "metrics.jsonl", -1, warnings.append)
    rows.write(row(1))
    (folder / "metrics.jsonl").unlink()
    folder.rmdir()
    rows.write(row(2))
    rows.write(row(3))
    assert len(warnings) == 1
    assert "No such file or directory" in warnings[0]
    folder.mkdir()
    rows.write(row(4))
    assert lines(folder / "metrics.jsonl") == [row(4)]


def test_a_path_that_cannot_be_a_file_gives_one_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    rows = MetricsFile(tmp_path, -1, warnings.append)
    rows.write(row(1))
    assert warnings == [f"{tmp_path}: cannot be written (Is a directory); training goes on without it"]


def test_a_value_that_is_no_json_does_not_stop_a_run(tmp_path: Path) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = MetricsFile(path, -1, warnings.append)
    rows.write(row(1) | {"bad": object()})
    rows.write(row(2))
    assert lines(path) == [row(2)]
    assert len(warnings) == 1


def test_a_full_disk_leaves_whole_rows_only(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    script = """
        import resource, sys
        from pathlib import Path
        from mnist_dist.tracking.metrics_file import MetricsFile

        rows = MetricsFile(Path("metrics.jsonl"), -1, print)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        rows.write({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # room for one and a half
        rows.write({"step": 2})
        rows.write({"step": 3})
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        rows.write({"step": 4})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout == "metrics.jsonl: cannot be written (the disk is full); training goes on without it\n"
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 4}]
