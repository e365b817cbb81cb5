"""Rounds: progress with the time left, and what is kept of a benchmark that is interrupted or fails."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from common import progress
from common.idle import measure_when_idle
from common.progress import BenchmarkProgress
from common.rounds import RoundResults, ratios, run_rounds
from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED, Stopped, TrainingError

ROOT = Path(__file__).parents[2]


def describe(name: str, values: Mapping[str, float]) -> str:
    return f"{values[name]} of {', '.join(values)}"


def raises(error: BaseException, when: int) -> Callable[[int], float]:
    """A case that raises an error in one round."""

    def measure(number: int) -> float:
        if number == when:
            raise error
        return float(number)

    return measure


def run(error: BaseException, when: int) -> RoundResults[float]:
    return run_rounds({"first": float, "second": raises(error, when)}, 3, describe)


def test_every_measurement_is_printed_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []

    def measure(number: int) -> float:
        printed.append(capsys.readouterr().err)
        return float(number)

    results = run_rounds({"first": measure, "second": measure}, 2, describe)
    printed.append(capsys.readouterr().err)
    texts = [line.partition(" (")[0] for line in printed]
    assert texts == [
        "",
        "[1/4] round 1/2, first: 0.0 of first",
        "[2/4] round 1/2, second: 0.0 of first, second",
        "[3/4] round 2/2, first: 1.0 of first",
        "[4/4] round 2/2, second: 1.0 of first, second",
    ]
    assert results.of("first") == results.of("second") == [0.0, 1.0]
    assert results.title() == "2 rounds"
    assert results.exit_code() == EXIT_DONE


def test_seeds_are_named_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_rounds({"recipe": float}, 1, describe, unit="seed").title() == "1 seed"
    assert capsys.readouterr().err.startswith("[1/1] seed 0, recipe: 0.0")


def test_an_interruption_keeps_what_was_measured() -> None:
    results = run(KeyboardInterrupt(), when=2)
    assert (results.of("first"), results.of("second")) == ([0.0, 1.0, 2.0], [0.0, 1.0])
    assert ratios(results.of("second"), [2.0, 4.0, 8.0]) == {"ratio": 0.125, "min": 0.0, "max": 0.25}
    with pytest.raises(Stopped, match=r"^interrupted; the figures are of 2 of 3 rounds and a part of one$"):
        results.exit_code()

    results = run(KeyboardInterrupt(), when=0)
    assert (results.measured(), results.of("second")) == (["first"], [])
    with pytest.raises(Stopped, match=r"^interrupted; the figures are of 0 of 3 rounds and a part of one$"):
        results.exit_code()

    results = run_rounds({"only": raises(KeyboardInterrupt(), when=2)}, 3, describe)
    assert results.title() == "2 of 3 rounds"
    with pytest.raises(Stopped, match=r"^interrupted before anything was measured$"):
        run_rounds({"only": raises(KeyboardInterrupt(), when=0)}, 3, describe)


def test_a_failure_keeps_what_was_measured() -> None:
    results = run(TrainingError("exit code 1"), when=1)
    assert (results.of("first"), results.of("second")) == ([0.0, 1.0], [0.0])
    with pytest.raises(TrainingError, match=r"^second: exit code 1$"):
        results.exit_code()
    with pytest.raises(TrainingError, match=r"^only: exit code 1$"):
        run_rounds({"only": raises(TrainingError("exit code 1"), when=0)}, 3, describe)


INTERRUPTED = """\
import signal, sys
from common import comparison, processes
from common.cli import run_script
from common.comparison import Case, comparison_parser, run_comparison
from common.processes import run_python

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
CHILD = '''
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
os.kill(os.getppid(), signal.SIGINT)
time.sleep(600)
'''
rates = [10.0, 20.0, 10.0, 30.0, 10.0]

def rate_of(case, steps):
    if not rates:
        run_python(["-c", CHILD, sys.argv[1]])
    return rates.pop(0)

comparison.rate_of = rate_of
processes.GRACE = 1.0
cases = [Case("slow"), Case("fast", baseline="slow")]
parser = comparison_parser("speed.py", "What is fast?")
run_script(lambda arguments: run_comparison(parser, cases, ["--rounds", "4", "--json", arguments[1]]))
"""


def test_ctrl_c_prints_the_table_of_what_was_measured_and_ends_the_run(tmp_path: Path) -> None:
    pids, figures = tmp_path / "pids", tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(pids), str(figures)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    *lines, last = done.stderr.splitlines()
    assert done.returncode == EXIT_STOPPED, done.stderr
    assert last == "mnist_dist: stopped: interrupted; the figures are of 2 of 4 rounds and a part of one"
    assert [line.partition(" (")[0] for line in lines] == [
        "[1/8] round 1/4, slow: 10.0 steps/s",
        "[2/8] round 1/4, fast: 20.0 steps/s, 2.00 x slow",
        "[3/8] round 2/4, slow: 10.0 steps/s",
        "[4/8] round 2/4, fast: 30.0 steps/s, 3.00 x slow",
        "[5/8] round 3/4, slow: 10.0 steps/s",
    ]
    assert "medians of 2 of 4 rounds and a part of one, 600 steps a run\n" in done.stdout
    assert "2.00 to 3.00" in done.stdout
    assert json.loads(figures.read_text())["fast"]["ratio"] == 2.5
    assert not [pid for pid in map(int, pids.read_text().split()) if is_running(pid)]


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie, which its new parent has not looked at yet, does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, for progress alone."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_same_cases(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with BenchmarkProgress(["short", "long", "short"]) as shown:
        shown.begin("short")
        assert shown.seconds_left() == math.inf
        clock[0] += 10
        shown.end("short")
        assert shown.seconds_left() == 20  # all that is known: 10 s a measurement
        clock[0] += 4
        assert shown.seconds_left() == 16
        clock[0] += 86
        shown.end("long")
        assert shown.seconds_left() == 10
        clock[0] += 500
        assert shown.seconds_left() == 0
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] short (0:10 elapsed, 0:20 left)",
        "[2/3] long (1:40 elapsed, 0:10 left)",
    ]


def test_a_terminal_gets_a_bar_that_goes_at_the_end(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "CONSOLE", terminal)
    with BenchmarkProgress(["case"] * 3) as shown:
        shown.begin("round 1/3, case")
        clock[0] += 5
        shown.end("round 1/3, case: 1.0")
        shown.bar.refresh()
    assert "1/3 ━━━━━" in screen.getvalue()
    assert "0:10 left round 1/3, case" in screen.getvalue()
    assert "[1/3] round 1/3, case: 1.0 (0:05 elapsed, 0:10 left)\n" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the bar's line, erased


def test_what_was_measured_on_a_busy_machine_is_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads, values = iter([0.5, 0.06, 0.04]), iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("common.idle.wait_until_idle", lambda max_load: None)
    monkeypatch.setattr("common.idle.OtherLoad.share", lambda self, own: next(loads))
    assert measure_when_idle(lambda: next(values), max_load=0.05) == 3.0
    assert capsys.readouterr().err.splitlines() == [
        f"repeated: other programs took {load} of the machine (--max_load)" for load in ("50%", "6%")
    ]
    monkeypatch.setattr("common.idle.OtherLoad.share", lambda self, own: 0.5)
    assert measure_when_idle(lambda: 4.0, max_load=1) == 4.0
    with pytest.raises(TrainingError, match=r"^other programs took more than 5% of the machine in all of 100 tries; "):
        measure_when_idle(lambda: 5.0, max_load=0.05)
