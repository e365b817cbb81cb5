"""run_to_exit_code and exit_with: one line on standard error, an exit code, and which ranks report."""

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
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The durations passed to time.sleep, which does not sleep."""
    durations: list[float] = []
    monkeypatch.setattr(exit_module.time, "sleep", durations.append)
    return durations


def fail(error: BaseException) -> Callable[[], NoReturn]:
    def action() -> NoReturn:
        raise error

    return action


EVERYWHERE = TrainingError("the loss is nan", everywhere=True)
HERE = TrainingError("a process was lost")


def test_the_exit_code_of_the_action_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_one_process_reports_one_line(
    capsys: pytest.CaptureFixture[str], sleeps: list[float], error: BaseException, code: int, line: str
) -> None:
    assert run_to_exit_code(fail(error)) == code
    assert capsys.readouterr() == ("", line)
    assert sleeps == []


def test_an_unexpected_error_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit_code(fail(ZeroDivisionError("what"))) == 1
    assert "Traceback" in (err := capsys.readouterr().err)
    assert err.endswith("ZeroDivisionError: what\n")


def test_system_exit_is_passed_on() -> None:
    """--help raises it."""
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
def test_which_ranks_report_each_kind_of_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sleeps: list[float],
    error: BaseException,
    reporters: set[str],
) -> None:
    """With two machines of two processes. All return the same exit code."""
    monkeypatch.setattr(exit_module._local_main_reports, "is_set", lambda: True)
    codes, reported = set(), set()
    for rank in range(4):
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        codes.add(run_to_exit_code(fail(error)))
        if err := capsys.readouterr().err:
            reported.add(str(rank))
            assert err.count("\n") == 1
            assert (f"error: rank {rank}: " in err) == (error is HERE)
    assert reported == reporters
    assert len(codes) == 1
    # The launcher ends all ranks once one has exited: ranks that do not report wait, so that one that reports is first.
    assert sleeps == ([2, 2] if isinstance(error, UserError) else [])


def test_a_rank_that_was_left_in_the_shell_hides_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    """LOCAL_RANK=1 without a launcher: nobody else reports, and nobody ends this process while it waits for that."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(exit_module._local_main_reports, "is_set", lambda: False)  # whatever ran in this process before
    assert run_to_exit_code(fail(UserError("x"))) == 2
    assert (capsys.readouterr().err, sleeps) == ("mnist_dist: error: x\n", [2])


def test_a_rank_is_named_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert run_to_exit_code(fail(TrainingError("rank 1 of 3 could not connect"))) == 1
    assert capsys.readouterr().err == "mnist_dist: error: rank 1 of 3 could not connect\n"


PROGRAM = """\
import atexit, sys
from mnist_dist.utils.exit import exit_with, run_to_exit_code, skip_exit_hooks
atexit.register(print, "hook")
{body}
"""


def run(body: str) -> subprocess.Popen[str]:
    """A process whose output is buffered, as it is by default."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("skip", "out"), [("", "out hook\n"), ("skip_exit_hooks()", "out ")])
def test_a_process_exits_with_its_code_and_flushes_its_output(skip: str, out: str) -> None:
    process = run(f"{skip}\nexit_with(lambda: print('out', end=' ') or print('err', file=sys.stderr) or 3)")
    assert process.communicate(timeout=120) == (out, "err\n")
    assert process.returncode == 3


def test_a_closed_pipe_gives_no_traceback() -> None:
    """The reader closes the pipe, as `head` does, before the output is written: it is more than a pipe holds."""
    process = run("exit_with(lambda: run_to_exit_code(lambda: [print('x' * 1000) for _ in range(1000)] and 0))")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
    process.stderr.close()


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
HANDLED = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.mark.parametrize("where", [INTERRUPT, f'exec("{INTERRUPT}")'])
def test_an_interrupt_has_one_exit_code(where: str) -> None:
    """Python's own would be another one after an interrupt within `exec`, which dataclasses call."""
    body = f"{HANDLED}def act():\n    {where}\n"
    process = run(f"{body}exit_with(lambda: run_to_exit_code(act))")
    assert process.communicate(timeout=120) == ("", "mnist_dist: error: interrupted\n")
    assert process.returncode == 1


def test_an_interrupt_after_the_end_skips_the_exit_hooks() -> None:
    """The work is done, and its exit code stands."""
    body = f"{HANDLED}atexit.register(lambda: {INTERRUPT})\n"
    process = run(f"{body}exit_with(lambda: print('out', end=' ') or 3)")
    assert process.communicate(timeout=120) == ("out ", "")
    assert process.returncode == 3
