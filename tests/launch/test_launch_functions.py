"""accelerate's launch functions, which a notebook calls: debug_launcher and notebook_launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import PYTHON, free_port, read_rows, run, write_digits

from mnist_dist.utils.errors import EXIT_DONE

pytestmark = pytest.mark.launcher

PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from accelerate import debug_launcher, notebook_launcher
from mnist_dist.train import main

def interrupt_once_it_trains():
    while not Path("interrupted/metrics.jsonl").exists():
        threading.Event().wait(0.02)
    os.killpg(0, signal.SIGINT)  # as Jupyter does

if __name__ == "__main__":
    for _ in range(2):
        debug_launcher(main, args=(sys.argv[1:],), num_processes=2)
    threading.Thread(target=interrupt_once_it_trains, daemon=True).start()
    kept = []  # as IPython keeps the last exception, with the launcher's store in its frames
    for options in (["--run.dir=interrupted", "--train.epochs=1000"], ["--run.dir=next"]):
        try:
            notebook_launcher(main, args=([*sys.argv[1:], *options],), num_processes=2, use_port=os.environ["PORT"])
        except BaseException as error:
            kept.append(error)
            print("raised", type(error).__name__)
    for launcher in (debug_launcher, notebook_launcher):
        try:
            launcher(main, args=([*sys.argv[1:], "--optim.lr=x"],), num_processes=2)
        except Exception as error:
            print("raised", type(error).__name__)
"""


def test_each_launch_is_a_run_of_its_own_and_a_refused_one_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in one process, as in two cells: a notebook is one launcher for all of its runs."""
    (tmp_path / "digits").mkdir()
    write_digits(tmp_path / "digits", train=300, test=50)
    (tmp_path / "cells.py").write_text(PROGRAM)
    monkeypatch.setenv("PORT", str(free_port()))
    options = ["--data.val_size=100", "--train.batch_size=50", "--train.epochs=1", "--run.device=cpu"]
    options += [f"--data.root={tmp_path / 'digits'}", "--tracking.mode=disabled", "--run.quiet=true"]
    (ended,) = run([*PYTHON, "cells.py", *options], work=tmp_path)
    assert ended.code == EXIT_DONE, ended.err
    first, second = sorted((tmp_path / "runs").iterdir())
    assert read_rows(first)[-1]["step"] == read_rows(second)[-1]["step"] == 4
    raised = [line for line in ended.out.splitlines() if line.startswith("raised")]
    assert raised == ["raised SignalException", "raised ProcessExitedException", "raised ChildFailedError"]
    assert "mnist_dist: stopped: " in ended.err
    assert list((tmp_path / "interrupted" / "checkpoints").iterdir())
    assert (tmp_path / "next" / "summary.json").exists()
    assert ended.err.count("mnist_dist: error: optim.lr=x (command line): must be a number") == 2
