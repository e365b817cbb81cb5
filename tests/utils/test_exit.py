"""Each way to exit: one line and an exit code; of several processes, one reports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from mnist_dist.utils import exit as exit_module
from mnist_dist.utils.errors import Stopped, TrainingError, UserError
from mnist_dist.utils.exit import run_to_exit_code


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each sleep, without sleeping."""
    found: list[float] = []
    monkeypatch.setattr(exit_module.time, "sleep", found.append)
    return found


def fail(error: BaseException) -> Callable[[], NoReturn]:
    def action() -> NoReturn:
        raise error

    return action


EVERYWHERE = TrainingError("the loss is nan", everywhere=True)
HERE = TrainingError("a process was lost")


def test_the_actions_own_code_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit_code(lambda: 0) == 0
    assert run_to_exit_code(lambda: 3) == 3
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("optim.lr=x: must be a number"), 2, "mnist_dist: error: optim.lr=x: must be a number\n"),
        (UserError("two\nlines\r\nand more"), 2, "mnist_dist: error: two lines and more\n"),
        (EVERYWHERE, 1, "mnist_dist: error: the loss is nan\n"),
        (HERE, 1, "mnist_dist: error: a process was lost\n"),
        (Stopped("at step 3, with a checkpoint"), 3, "mnist_dist: stopped: at step 3, with a checkpoint\n"),
        (KeyboardInterrupt(), 1, "mnist_dist: error: interrupted\n"),
    ],
)
def test_one_process_reports_in_one_line(
    capsys: pytest.CaptureFixture[str], slept: list[float], error: BaseException, code: int, line: str
) -> None:
    assert run_to_exit_code(fail(error)) == code
    assert capsys.readouterr() == ("", line)
    assert slept == []


def test_an_unexpected_error_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit_code(fail(ZeroDivisionError("what"))) == 1
    assert "Traceback" in (said := capsys.readouterr().err)
    assert said.endswith("ZeroDivisionError: what\n")


def test_the_end_of_help_is_not_an_error() -> None:
    with pytest.raises(SystemExit):
        run_to_exit_code(fail(SystemExit(0)))


@pytest.mark.parametrize(
    ("error", "reporters"),
    [
        (UserError("x"), {"0", "2"}),  # the first process of each machine
        (EVERYWHERE, {"0"}),
        (HERE, {"0", "1", "2", "3"}),
        (Stopped("x"), {"0"}),
        (KeyboardInterrupt(), {"0"}),
    ],
)
def test_of_several_processes_those_report_that_know_something_of_their_own(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    error: BaseException,
    reporters: set[str],
) -> None:
    """Two machines of two processes; all give the same exit code."""
    codes, reported = set(), set()
    for rank in range(4):
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        codes.add(run_to_exit_code(fail(error)))
        if said := capsys.readouterr().err:
            reported.add(str(rank))
            assert said.count("\n") == 1
            assert (f"error: rank {rank}: " in said) == (error is HERE)
    assert reported == reporters
    assert len(codes) == 1
    # The launcher ends the others as soon as one ends: those that report nothing let the one that reports be the first.
    assert slept == ([2, 2] if isinstance(error, UserError) else [])


PROGRAM = """\
import atexit, sys
from mnist_dist.utils.exit import exit_with, run_to_exit_code, skip_exit_hooks
atexit.register(print, "hook")
{body}
"""


def run(body: str) -> subprocess.Popen[str]:
    """A process whose output is buffered, as it is where nobody asked for anything else."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("skip", "said"), [("", "out hook\n"), ("skip_exit_hooks()", "out ")])
def test_a_process_exits_with_its_code_and_all_its_output(skip: str, said: str) -> None:
    process = run(f"{skip}\nexit_with(lambda: print('out', end=' ') or print('err', file=sys.stderr) or 3)")
    assert process.communicate(timeout=60) == (said, "err\n")
    assert process.returncode == 3


def test_a_closed_pipe_gives_no_traceback() -> None:
    """As `head` does. The output is more than a pipe holds."""
    process = run("exit_with(lambda: run_to_exit_code(lambda: [print('x' * 1000) for _ in range(1000)] and 0))")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
    process.stderr.close()
