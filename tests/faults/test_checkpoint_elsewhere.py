"""The run directory is on the main process's machine alone: the other processes get the checkpoint from it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from harness import run_ranks, try_ranks
from programs import write_digits

from mnist_dist.checkpoint.run_lock import LOCK
from mnist_dist.distributed.topology import read_topology
from mnist_dist.train import main, start
from mnist_dist.utils.errors import EXIT_DONE, UserError

SETTINGS = ["--data.source=local", "--data.val_size=40", "--train.batch_size=40", "--train.epochs=2", "--run.dir=run"]
SETTINGS += ["--model.name=basic", "--tracking.mode=disabled", "--run.threads=1", "--run.device=cpu", "--optim.ema=0.9"]


def train_at_home(work: Path, *options: str) -> int:
    """Train, each rank in a working directory of its own, as on two machines."""
    os.chdir(work / str(read_topology().rank))
    return main([f"--data.root={work}", *SETTINGS, *options])


def refused_at_home(work: Path, *options: str) -> None:
    os.chdir(work / str(read_topology().rank))
    start([f"--data.root={work}", *SETTINGS, *options])


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_digits(tmp_path, train=360, test=50)
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    return tmp_path


def sha256(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["weights_sha256"])


def test_all_processes_resume_from_what_the_main_process_reads(work: Path) -> None:
    assert run_ranks(2, train_at_home, work, machines=2) == [EXIT_DONE] * 2
    whole = sha256(work / "0" / "run")
    shutil.rmtree(work / "0" / "run")
    assert run_ranks(2, train_at_home, work, "--train.max_steps=11", machines=2) == [EXIT_DONE] * 2
    newest = work / "0" / "run" / "checkpoints" / "step-00000011"
    shutil.copytree(
        newest, newest.with_name("step-00000012")
    )  # corrupt, its manifest names step 11: only the main process can know
    assert run_ranks(2, train_at_home, work, machines=2) == [EXIT_DONE] * 2
    assert sha256(work / "0" / "run") == whole
    summary = json.loads((work / "0" / "run" / "summary.json").read_text())
    assert summary["resumed_from"] == "run/checkpoints/step-00000011"
    before = (work / "0" / "run" / "summary.json").stat().st_mtime_ns
    assert (
        run_ranks(2, train_at_home, work, machines=2) == [EXIT_DONE] * 2
    )  # the run is finished, and all processes agree
    assert (work / "0" / "run" / "summary.json").stat().st_mtime_ns == before
    assert list((work / "1").iterdir()) == []


def test_all_processes_refuse_what_the_main_process_refuses_and_leave_nothing(work: Path) -> None:
    outcomes = try_ranks(2, refused_at_home, work, "--run.resume=nowhere", machines=2)
    for outcome in outcomes:
        assert isinstance(outcome.error, UserError), outcome.trace
        assert "run.resume=nowhere: no such folder" in str(outcome.error)
    assert [*(work / "0").iterdir(), *(work / "1").iterdir()] == []


def test_a_finished_run_leaves_no_lock_and_one_that_failed_does(work: Path) -> None:
    assert run_ranks(1, train_at_home, work, "--train.max_steps=1") == [EXIT_DONE]
    assert not (work / "0" / "run" / LOCK).exists()
    (work / "0" / "run" / "summary.json").unlink()
    (work / "0" / "run" / "summary.json").mkdir()  # so that the summary cannot be written
    assert run_ranks(1, train_at_home, work, "--train.max_steps=2") == [1]
    assert (work / "0" / "run" / LOCK).exists()
