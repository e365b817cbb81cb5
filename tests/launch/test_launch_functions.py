"""accelerate's launch functions, which a notebook calls: debug_launcher and notebook_launcher."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from programs import PYTHON, free_port, read_rows, run, write_digits

from mnist_dist.utils.errors import EXIT_DONE

pytestmark = pytest.mark.launcher

PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from accelerate import debug_launcher, notebook_launcher
from mnist_dist import Config, evaluate, train
from mnist_dist.train import main

SETTINGS = dict(option.removeprefix("--").split("=") for option in sys.argv[1:])

def config(**more):
    return Config.from_recipe((), SETTINGS | {key.replace("__", "."): value for key, value in more.items()})

def interrupt_once_it_trains():
    while not Path("interrupted/metrics.jsonl").exists():
        threading.Event().wait(0.02)
    os.killpg(0, signal.SIGINT)  # as Jupyter does

def train_twice(first, second):  # a cell's function
    runs = train(first), train(second)
    sys.stdout.write(f"accuracies {[run.summary['test.accuracy'] == evaluate(run).accuracy for run in runs]}\\n")

def attempt(launcher, function, *args, **options):
    try:
        launcher(function, args=args, **options)
    except BaseException as error:
        kept.append(error)  # as IPython keeps the last exception, with the launcher's store in its frames
        print("raised", type(error).__name__, str(error).splitlines()[-1][:50] if function is train else "", flush=True)

if __name__ == "__main__":
    kept, two = [], {"num_processes": 2}
    # Whole batches on two threads: OpenMP's, which no process has that is forked later.
    train(config(run__dir="kernel", train__shards=0, run__threads=2, run__quiet=True))
    debug_launcher(main, args=(sys.argv[1:],), **two)
    debug_launcher(train_twice, args=(config(run__dir="first"), config()), **two)
    threading.Thread(target=interrupt_once_it_trains, daemon=True).start()
    ports = {"use_port": os.environ["PORT"]}
    attempt(notebook_launcher, train, config(run__dir="interrupted", train__epochs=1000), **two, **ports)
    attempt(notebook_launcher, train, config(run__dir="next", train__shards=0, run__threads=2), **two, **ports)
    for launcher in (debug_launcher, notebook_launcher):
        attempt(launcher, main, [*sys.argv[1:], "--optim.lr=x"], **two)
    attempt(notebook_launcher, train, config(data__root="nowhere"), **two, **ports)
    attempt(notebook_launcher, main, [*sys.argv[1:], "--optim.lr=x"], num_processes=1)
    attempt(notebook_launcher, train, config(data__root="nowhere"), num_processes=1)
"""


def test_each_launch_is_a_run_of_its_own_and_a_refused_one_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several in one process, as in cells: a notebook is one launcher for all of its runs. Then two in each process."""
    (tmp_path / "digits").mkdir()
    write_digits(tmp_path / "digits", train=300, test=50)
    (tmp_path / "cells.py").write_text(PROGRAM)
    monkeypatch.setenv("PORT", str(free_port()))
    options = ["--data.val_size=100", "--train.batch_size=50", "--train.epochs=1", "--run.device=cpu"]
    options += [f"--data.root={tmp_path / 'digits'}", "--tracking.mode=disabled", "--run.quiet=true"]
    nothing = f"no data set in {tmp_path / 'nowhere'}: there is no such folder"
    (ended,) = run([*PYTHON, "cells.py", *options], work=tmp_path)
    assert ended.code == EXIT_DONE, ended.err
    first, second = sorted((tmp_path / "runs").iterdir())
    for folder in (first, second, tmp_path / "first", tmp_path / "kernel"):
        assert read_rows(folder)[-1]["step"] == 4
    assert ended.out.count("accuracies [True, True]") == 2
    [pid] = re.findall(r"Process (\d+) got", ended.out)
    assert [line for line in ended.out.splitlines() if line.startswith("raised")] == [
        f"raised SignalException Process {pid} got signal: 2",
        "raised ProcessExitedException ",
        "raised ChildFailedError ",
        f"raised ChildFailedError {'=' * 50}",
        "raised SystemExit ",
        f"raised UserError {nothing[:50]}",
    ]
    assert "; to go on: train(Config.from_recipe('interrupted/config.yaml', {'run.dir': 'interr" in ended.err
    assert list((tmp_path / "interrupted" / "checkpoints").iterdir())
    assert json.loads((tmp_path / "next" / "summary.json").read_text())["world_size"] == 2
    assert f"mnist_dist.utils.errors.UserError: {nothing}" in ended.err
    assert ended.err.count("mnist_dist: error: optim.lr=x (command line): must be a number") == 3
