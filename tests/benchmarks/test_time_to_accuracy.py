"""time_to_accuracy.py: means of accuracies, and times of the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import time_to_accuracy
from common.rounds import RoundResults
from mnist_dist.data.find_files import find_files
from mnist_dist.data.prepare import default_root
from mnist_dist.utils.errors import EXIT_DONE
from time_to_accuracy import RECIPE, REFERENCE, print_accuracy, summarize


def test_accuracy_is_a_mean_and_times_are_of_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    reference = [(0.98, 4.0), (1.0, 6.0), (0.99, 30.0)]
    recipe = [(0.99, 1.0, 3.65), (0.99, 3.0, 8.95), (0.9903, 3.0, 2.9725)]
    results: RoundResults[dict[str, float]] = RoundResults([REFERENCE, RECIPE], 3, "seed")
    for theirs, ours in zip(reference, recipe, strict=True):
        own = dict(zip(("accuracy", "seconds", "whole"), ours, strict=True)) | {"imports": 2.0, "data": 0.5}
        results.rounds.append({REFERENCE: dict(zip(("accuracy", "seconds"), theirs, strict=True)), RECIPE: own})
    found = summarize(results)
    assert found[REFERENCE]["accuracy"] == {"mean": pytest.approx(0.99), "min": 0.98, "max": 1.0}
    assert found[REFERENCE]["seconds"] == {"seconds": 6.0}
    assert (found[RECIPE]["ratio"], found[RECIPE]["min"], found[RECIPE]["max"]) == (0.25, 0.1, 0.5)
    assert found[RECIPE]["whole_over_allowed"] == pytest.approx(1.0)
    print_accuracy("title", found)
    assert "99.01%" in capsys.readouterr().out


@pytest.mark.launcher
def test_one_seed_of_the_fastest_recipe_reaches_99_percent(tmp_path: Path) -> None:
    if not find_files(default_root()):
        pytest.skip("needs MNIST in mnist_dist's folder of the user's cache; `mnist-dist data fetch` brings it")
    file = tmp_path / "accuracy.json"
    assert time_to_accuracy.main(["--seeds", "1", "--json", str(file)]) == EXIT_DONE
    found = json.loads(file.read_text())
    assert found[RECIPE]["accuracy"]["mean"] > 0.985  # a single seed; the mean of many is above 0.99
    assert 0 < found[RECIPE]["seconds"]["seconds"] < found[RECIPE]["seconds"]["whole"]
    assert found[REFERENCE]["accuracy"]["mean"] > 0.98
