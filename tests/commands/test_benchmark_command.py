"""`mnist-dist benchmark`: ratios of whole processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mnist_dist.commands import benchmark
from mnist_dist.commands.benchmark import KINDS, Contestant, main, measure, rate_of, references_folder
from mnist_dist.data.sources import default_root, find
from mnist_dist.errors import TrainingError, UserError


def test_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rates = iter([10.0, 20.0, 100.0, 50.0, 1.0, 3.0])
    monkeypatch.setattr(benchmark, "rate_of", lambda contestant, steps: next(rates))
    found = measure([Contestant("slow", []), Contestant("fast", [], "slow")], rounds=3, steps=60)
    assert found["slow"] == {"steps_per_second": 10.0, "rates": [10.0, 100.0, 1.0]}
    assert (found["fast"]["ratio"], found["fast"]["least"], found["fast"]["most"]) == (2.0, 0.5, 3.0)
    benchmark.show({"overhead": found}, 3, 60)
    assert "0.50 to 3.00" in capsys.readouterr().out


def test_every_contestant_is_compared_with_one_of_its_kind() -> None:
    for contestants in KINDS.values():
        names = [contestant.name for contestant in contestants]
        assert len(set(names)) == len(names)
        assert {contestant.against for contestant in contestants} <= {"", *names}
    for name in (benchmark.BARE, benchmark.TEXTBOOK):
        assert (references_folder() / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["overheat"], "invalid choice: 'overheat'"),
        (["overhead", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["overhead", "--steps", "59"], "--steps 59: must be at least 60"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        main(arguments)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.launcher
def test_one_round_of_real_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if not find(default_root()):
        pytest.skip("needs MNIST in mnist_dist's folder of the user's cache; `mnist-dist data fetch` brings it")
    monkeypatch.setattr(benchmark, "KINDS", {"overhead": KINDS["overhead"][:2]})
    assert main(["overhead", "--rounds", "1", "--steps", "60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["overhead"]
    assert all(contestant["steps_per_second"] > 1 for contestant in found.values())
    assert 0.1 < found["trainer, fp32"]["ratio"] < 10


def test_a_contestant_that_fails_is_named() -> None:
    with pytest.raises(
        TrainingError, match=r"^benchmark: odd: ended with exit code 2: mnist_dist: error: train\.shards=-9"
    ):
        rate_of(Contestant("odd", ["-m", "mnist_dist.train", "--train.shards=-9"]), 60)
