"""benchmarks/robustness.py measures finished runs as `mnist-dist evaluate` does, and records shipped recipes only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from kept_run import copy_kept_run

import robustness
from common.corruptions import CORRUPTIONS
from common.robustness_lines import read_robustness
from mnist_dist import evaluate
from mnist_dist.data.dataset import ImageSet
from mnist_dist.utils.errors import EXIT_DONE, Stopped, UserError

RECORDED = Path("benchmarks/results/robustness")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run, with its data, in the current folder, which looks like the repository's."""
    monkeypatch.chdir(copy_kept_run(tmp_path))
    RECORDED.parent.mkdir(parents=True)
    return "run"


def test_clean_accuracy_is_that_of_evaluate(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert robustness.main(["--only", "shift", run]) == EXIT_DONE
    shown = capsys.readouterr().out
    clean = re.search(r"clean\s*│\s*│\s*([\d.]+) \(", shown)
    assert clean, shown
    assert float(clean[1]) == round(100 * evaluate(run).accuracy, 2)
    assert "shift" in shown
    assert "blur" not in shown
    assert not RECORDED.exists()


def test_a_run_of_a_shipped_recipe_is_recorded_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "config_sha256", lambda config: "0" * 64)
    monkeypatch.setattr(robustness, "digests_now", lambda recipe, changes: {"0" * 64})
    monkeypatch.setattr(robustness, "list_recipes", lambda: ["seeds/basic"])
    for _ in range(2):
        assert robustness.main(["--record", run]) == EXIT_DONE
    (line,) = read_robustness(RECORDED / "seeds-basic.jsonl")
    assert (line.recipe, line.count) == ("seeds/basic", 50)
    assert line.correct["clean"] == [evaluate(run).correct]
    for name, corruption in CORRUPTIONS.items():
        assert line.sizes[name] == list(corruption.sizes)
        assert len(line.correct[name]) == len(line.calibration_error[name]) == 5
        assert all(0 <= error <= 1 for error in line.calibration_error[name])


def test_what_is_no_shipped_recipe_is_not_recorded(run: str) -> None:
    with pytest.raises(UserError, match=r"^--record: run was not trained by a shipped recipe as it is now; leave it"):
        robustness.main(["--record", run])
    assert not RECORDED.exists()


def test_wrong_arguments_are_refused_before_any_work(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^--only: a recorded line has all corruptions"):
        robustness.main(["--record", "--only", "blur", run])
    with pytest.raises(UserError, match=r"^--only rain: no case has this in its name; the cases are: shift; rotation"):
        robustness.main(["--only", "rain", run])
    monkeypatch.chdir(run)
    with pytest.raises(UserError, match=r"^--record: there is no benchmarks/results here"):
        robustness.main(["--record", run])


def test_an_interruption_keeps_the_runs_that_are_measured(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = robustness.count_right
    left = iter(range(8))  # clean and five sizes of the first run, then two of the second

    def until(*arguments: object) -> tuple[int, float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return counted(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(robustness, "count_right", until)
    with pytest.raises(Stopped, match=r"^interrupted; 1 of 2 runs are measured$"):
        robustness.main(["--only", "shift", run, run])
    assert "shift" in capsys.readouterr().out


def test_each_corrupted_set_is_made_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def corrupt(images: object, name: str, size: float) -> object:
        made.append((name, size))
        return images

    monkeypatch.setattr(robustness, "corrupt", corrupt)
    sets = robustness.CorruptedSets()
    test = ImageSet(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.zeros(3))
    for digest in ("a", "a", "b"):
        sets.get(test, digest, "blur", 1.0)
        sets.get(test, digest, "clean", 0.0)
    assert made == [("blur", 1.0), ("blur", 1.0)]  # of the test set a, and of b
