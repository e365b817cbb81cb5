"""Rates and ratios of whole processes: overhead.py, loader.py, scaling.py, reliability_cost.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import loader
import overhead
import reliability_cost
import scaling
from common import comparison
from common.comparison import Case, compare, print_rates, rate_of, summarize, with_baselines
from common.processes import REFERENCES
from mnist_dist.data.find_files import find_files
from mnist_dist.data.prepare import default_root
from mnist_dist.utils.errors import EXIT_DONE, TrainingError, UserError

ALL_CASES = [overhead.CASES, loader.CASES, scaling.cases_of("auto"), reliability_cost.CASES]


def give_rates(monkeypatch: pytest.MonkeyPatch, *rates: float) -> None:
    """Let the runs have these rates, one after the other."""
    given: Iterator[float] = iter(rates)
    monkeypatch.setattr(comparison, "rate_of", lambda case, steps: next(given))


def test_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give_rates(monkeypatch, 10.0, 20.0, 100.0, 50.0, 1.0, 3.0)
    cases = [Case("slow"), Case("fast", baseline="slow")]
    found = summarize(cases, compare(cases, rounds=3, steps=60))
    assert found["slow"] == {"steps_per_second": 10.0, "rates": [10.0, 100.0, 1.0]}
    assert (found["fast"]["ratio"], found["fast"]["min"], found["fast"]["max"]) == (2.0, 0.5, 3.0)
    print_rates("overhead", found)
    assert "0.50 to 3.00" in capsys.readouterr().out


@pytest.mark.parametrize("cases", ALL_CASES)
def test_every_case_is_compared_with_an_earlier_one(cases: list[Case]) -> None:
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for place, case in enumerate(cases):
        assert case.baseline in ("", *names[:place])
        assert not case.reference or (REFERENCES / case.reference).is_file()


def test_chosen_cases_come_with_their_baselines() -> None:
    chosen = [case.name for case in with_baselines(reliability_cost.CASES, "rollback")]
    assert chosen == ["no checkpoint", "a checkpoint every 50 steps", "nonfinite=rollback, a checkpoint every 50 steps"]
    with pytest.raises(UserError, match=r"^--only fp8: no case has this in its name; the cases are: bare loop, fp32;"):
        with_baselines(overhead.CASES, "fp8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "argument --rounds: must be at least 1, not 0"),
        (["--rounds", "many"], "argument --rounds: must be an integer, not many"),
        (["--steps", "59"], "argument --steps: must be at least 60, not 59"),
        (["--step", "60"], "unrecognized arguments: --step 60"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        overhead.main(arguments)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.launcher
def test_one_round_of_real_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not find_files(default_root()):
        pytest.skip("needs MNIST in mnist_dist's folder of the user's cache; `mnist-dist data fetch` brings it")
    monkeypatch.setattr(overhead, "CASES", overhead.CASES[:2])
    file = tmp_path / "overhead.json"
    assert overhead.main(["--rounds", "1", "--steps", "60", "--json", str(file)]) == EXIT_DONE
    found = json.loads(file.read_text())
    assert all(case["steps_per_second"] > 1 for case in found.values())
    trainer, loop = found["trainer, fp32"], found["bare loop, fp32"]
    assert trainer["ratio"] == pytest.approx(trainer["steps_per_second"] / loop["steps_per_second"], rel=0.01)


def test_a_case_that_fails_is_named() -> None:
    with pytest.raises(TrainingError, match=r"^odd: exit code 2: mnist_dist: error: train\.shards=-9"):
        compare([Case("odd", ["--train.shards=-9"])], rounds=1, steps=60)
    with pytest.raises(TrainingError, match=r"^exit code 2: .*--model"):
        rate_of(Case("odd", ["--model"], reference=comparison.BARE_LOOP), 60)
