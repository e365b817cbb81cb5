"""torchrun restarts the workers after one was killed: they resume their run and end like an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from measured_keys import MEASURED_ROW_KEYS
from programs import TORCHRUN, Program, read_rows, started, write_digits

from mnist_dist.utils.errors import EXIT_DONE

pytestmark = pytest.mark.launcher

STEPS = 40
RECIPE = ["--config=debug", "--train.detect_anomaly=false", "--tracking.log_steps=1"]
"""The debug recipe, with a row for each step."""
SAVING = ["--train.checkpoint_steps=5", "--run.resume=never"]  # a restart resumes nevertheless


def command(data: Path) -> list[str]:
    launcher = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max_restarts=2"]
    return [*launcher, "-m", "mnist_dist.train", f"--data.root={data}", "--data.source=local", *RECIPE, *SAVING]


def kill_rank(program: Program, rank: int) -> None:
    """SIGKILL one of the processes that the launcher started."""
    (process,) = [each for each in program.family() if environment(each).get("RANK") == str(rank)]
    os.kill(process.pid, signal.SIGKILL)


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def outcome(work: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of the one run in `runs/`, and its rows of metrics without measured values."""
    (folder,) = (work / "runs").iterdir()
    files = {"config.yaml", "metrics.jsonl", "status.json", "summary.json"}
    assert {path.name for path in folder.iterdir()} == {*files, "checkpoints"}
    rows = [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in read_rows(folder)]
    return json.loads((folder / "summary.json").read_text()), rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=2500, test=1000)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    work = tmp_path_factory.mktemp("uninterrupted")
    with started(command(data), work=work) as (program,):
        ended = program.end()
        assert ended.code == EXIT_DONE, ended.err
    return outcome(work)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_with_a_killed_worker_equals_an_uninterrupted_one(
    rank: int, data: Path, uninterrupted: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path
) -> None:
    with started(command(data), work=tmp_path) as (program,):
        program.wait_for_line(f"step 17/{STEPS} ")  # the write of step 15 has begun, so that of step 10 has ended
        kill_rank(program, rank)
        ended = program.end()
        assert ended.code == EXIT_DONE, ended.err
        assert program.family() == []
    summary, rows = outcome(tmp_path)
    expected_summary, expected_rows = uninterrupted
    step = int(summary["resumed_from"][-8:])
    assert 10 <= step < STEPS  # resumed from a checkpoint of this run
    assert rows == expected_rows
    same = [key for key in expected_summary if not key.startswith("train.") or key == "train.steps"]
    for key in set(same) - {"resumed_from", "run_id", "memory.peak_bytes"}:
        assert summary[key] == expected_summary[key], key
