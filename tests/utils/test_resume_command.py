"""The command by which a stopped run goes on: what the user typed, with what is missing, quoted for the shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from harness import run_ranks
from programs import write_digits

from mnist_dist.train import main
from mnist_dist.training import run as run_module
from mnist_dist.utils import resume_command as module
from mnist_dist.utils.errors import EXIT_FAILED, TrainingError
from mnist_dist.utils.resume_command import resume_command

ARGUMENTS = ["--config", "debug", "--run.seed=1"]
EXTRA = ["--run.dir=my runs/a"]
SHOWN = "--config debug --run.seed=1 '--run.dir=my runs/a'"


@pytest.fixture(autouse=True)
def programs_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an interpreter, a launcher and the console script."""
    for name in ("python3", "accelerate", "mnist-dist"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        (["python", "-m", "mnist_dist.train"], f"python -m mnist_dist.train {SHOWN}"),
        (["python", "-m", "mnist_dist", "train"], f"python -m mnist_dist train {SHOWN}"),
        (["{bin}/python3", "{bin}/mnist-dist", "train"], f"mnist-dist train {SHOWN}"),
        (["/elsewhere/python3", "/a b/train.py"], f"/elsewhere/python3 '/a b/train.py' {SHOWN}"),
        (["python", "-m", "ipykernel", "-f", "x", "y"], f"python -m mnist_dist.train {SHOWN}"),
    ],
)
def test_one_process(own: list[str], shown: str, programs_on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [] if "ipykernel" in own else ARGUMENTS  # a notebook's own command line has none of them
    monkeypatch.setattr(sys, "orig_argv", [word.format(bin=programs_on_path) for word in own] + arguments)
    assert resume_command(ARGUMENTS, EXTRA, 0, False) == shown


@pytest.mark.parametrize(
    "given",
    [["--run.resume=never", "--config", "debug"], ["--run.resume", "never", "--config", "debug", "--run.dir=a"]],
)
def test_earlier_values_are_replaced(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "mnist_dist.train", *given])
    found = resume_command(given, ["--run.dir=b", "--run.resume=auto"], 0, False)
    assert found == "python -m mnist_dist.train --config debug --run.dir=b --run.resume=auto"


@pytest.mark.parametrize(
    ("launcher", "shown"),
    [
        (
            ["{bin}/python3", "{bin}/accelerate", "launch", "-m", "mnist_dist.train", *ARGUMENTS],
            f"accelerate launch -m mnist_dist.train {SHOWN}",
        ),
        (["bash"], "the same command with '--run.dir=my runs/a'"),  # a leaked variable: the parent is a shell
        (["{bin}/accelerate", "launch", "--no_python", "run.sh"], "the same command with '--run.dir=my runs/a'"),
        ([], "the same command with '--run.dir=my runs/a'"),  # it has ended
    ],
)
def test_under_a_launcher(
    launcher: list[str], shown: str, programs_on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "mnist_dist.train", *ARGUMENTS])
    monkeypatch.setattr(module, "command_line", lambda pid: [word.format(bin=programs_on_path) for word in launcher])
    assert resume_command(ARGUMENTS, EXTRA, 7, False) == shown


def test_a_launcher_that_is_not_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun and mpirun: a process does not see their command line."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "mnist_dist.train", *ARGUMENTS])
    assert resume_command(ARGUMENTS, EXTRA, 0, True) == "the same command with '--run.dir=my runs/a'"
    assert resume_command(ARGUMENTS, [], 0, True) == "the same command"


def test_the_command_line_of_a_process() -> None:
    assert module.command_line(os.getpid())[1:] == sys.orig_argv[1:]
    assert module.command_line(2**22 + 1) == []


SETTINGS = (
    *("--data.root=.", "--data.source=local", "--data.val_size=50", "--run.threads=1", "--run.device=cpu"),
    *("--model.name=basic", "--train.epochs=1", "--train.batch_size=50", "--tracking.mode=disabled"),
)


def fail_after_training(folder: Path, error: BaseException) -> int:
    """Train, fail once the last checkpoint is written, and keep what was printed in the file `out`."""

    def fail(*_: object) -> None:
        raise error

    run_module.summarize = fail
    os.chdir(folder)
    with (folder / "out").open("w") as out:
        os.dup2(out.fileno(), 1)
    return main([*SETTINGS, "--run.dir=run"])


@pytest.mark.parametrize("error", [TrainingError("no"), KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_the_command_is_printed_after_an_error_too(error: BaseException, tmp_path: Path) -> None:
    write_digits(tmp_path, train=100, test=50)
    assert run_ranks(1, fail_after_training, tmp_path, error) == [EXIT_FAILED]
    (line,) = [line for line in (tmp_path / "out").read_text().splitlines() if "to go on" in line]
    assert line.startswith("the newest checkpoint is step-00000001; to go on: ")
    assert line.endswith("--run.dir=run")
