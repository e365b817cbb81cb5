"""`mnist-dist benchmark`: ratios of whole processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mnist_dist.commands import (
    benchmark,
)
from mnist_dist.commands import (
    benchmark_accuracy as time_to_accuracy,
)
from mnist_dist.commands import (
    benchmark_runner as contestants,
)
from mnist_dist.commands.benchmark import KINDS, main, show_rates
from mnist_dist.commands.benchmark_accuracy import OURS, THEIRS, measure_accuracy, show_accuracy
from mnist_dist.commands.benchmark_runner import (
    BARE,
    FASTEST,
    TEXTBOOK,
    Contestant,
    measure,
    rate_of,
    references_folder,
)
from mnist_dist.data.prepare import default_root, find_files
from mnist_dist.utils.errors import TrainingError, UserError


def test_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rates = iter([10.0, 20.0, 100.0, 50.0, 1.0, 3.0])
    monkeypatch.setattr(contestants, "rate_of", lambda contestant, steps: next(rates))
    found = measure([Contestant("slow", []), Contestant("fast", [], "slow")], rounds=3, steps=60)
    assert found["slow"] == {"steps_per_second": 10.0, "rates": [10.0, 100.0, 1.0]}
    assert (found["fast"]["ratio"], found["fast"]["least"], found["fast"]["most"]) == (2.0, 0.5, 3.0)
    show_rates("overhead", found)
    assert "0.50 to 3.00" in capsys.readouterr().out


def test_every_contestant_is_compared_with_one_of_its_kind() -> None:
    for kind in KINDS.values():
        names = [contestant.name for contestant in kind]
        assert len(set(names)) == len(names)
        assert {contestant.against for contestant in kind} <= {"", *names}
    for name in (BARE, TEXTBOOK, FASTEST):
        assert (references_folder() / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["overheat"], "invalid choice: 'overheat'"),
        (["overhead", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["overhead", "--steps", "59"], "--steps 59: must be at least 60"),
        (["accuracy", "--seeds", "0"], "--seeds 0: must be at least 1"),
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
    if not find_files(default_root()):
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


def test_accuracy_is_a_mean_and_times_are_of_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {0: (0.98, 4.0), 1: (1.0, 6.0), 2: (0.99, 30.0)}
    ours = {0: (0.99, 1.0, 3.65), 1: (0.99, 3.0, 8.95), 2: (0.9903, 3.0, 2.9725)}
    monkeypatch.setattr(
        time_to_accuracy, "train_theirs", lambda seed: dict(zip(("accuracy", "seconds"), theirs[seed], strict=True))
    )
    monkeypatch.setattr(
        time_to_accuracy,
        "train_ours",
        lambda seed: (
            dict(zip(("accuracy", "seconds", "whole"), ours[seed], strict=True)) | {"imports": 2.0, "data": 0.5}
        ),
    )
    found = measure_accuracy(3)
    assert found[THEIRS]["accuracy"] == {"mean": pytest.approx(0.99), "least": 0.98, "most": 1.0}
    assert found[THEIRS]["seconds"] == {"seconds": 6.0}
    assert (found[OURS]["ratio"], found[OURS]["least"], found[OURS]["most"]) == (0.25, 0.1, 0.5)
    assert found[OURS]["whole_over_allowed"] == pytest.approx(1.0)
    show_accuracy(found, 3)
    assert "99.01%" in capsys.readouterr().out


@pytest.mark.launcher
def test_one_seed_of_the_fastest_recipe_reaches_99_percent(capsys: pytest.CaptureFixture[str]) -> None:
    if not find_files(default_root()):
        pytest.skip("needs MNIST in mnist_dist's folder of the user's cache; `mnist-dist data fetch` brings it")
    assert main(["accuracy", "--seeds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["accuracy"]
    assert found[OURS]["accuracy"]["mean"] > 0.985  # a single seed; the mean of many is above 0.99
    assert 0 < found[OURS]["seconds"]["seconds"] < found[OURS]["seconds"]["whole"]
    assert found[THEIRS]["accuracy"]["mean"] > 0.98
