"""Runs on 2, 47 and 1000 classes: the same bits on any number of ranks, after a kill too; then the commands."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks, try_ranks
from idx_sets import write_known_set
from programs import read_rows

from mnist_dist.__main__ import main
from mnist_dist.train import main as train
from mnist_dist.training.train_step import TrainStep
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER

SETTINGS = ["--data.root=data", "--data.source=local", "--data.val_size=60", "--train.batch_size=40"]
SETTINGS += ["--train.epochs=1", "--train.checkpoint_steps=2", "--tracking.log_steps=3", "--tracking.mode=disabled"]
SETTINGS += ["--model.name=basic", "--run.device=cpu", "--run.threads=1", "--train.precision=no"]
VARYING = ("time", "seconds", "step_seconds", "images_per_second", "flops_per_second", "memory.peak_bytes", "run_id")
VARYING += ("world_size", "resumed_from")


def train_in(folder: Path, arguments: list[str], kill_at: int = 0) -> int:
    """Train in a folder; rank 0 kills itself before step `kill_at`, counted from 1."""
    os.chdir(folder)
    step, steps = TrainStep.step, 0

    def step_or_die(self: TrainStep, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == kill_at and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    TrainStep.step = step_or_die  # type: ignore[method-assign]
    return train(arguments)


def fixed(row: dict[str, Any]) -> dict[str, Any]:
    """A row or a summary without times and what depends on the number of ranks."""
    return {key: value for key, value in row.items() if not any(part in key for part in VARYING)}


def results(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the summary of a run."""
    return [fixed(row) for row in read_rows(run)], fixed(json.loads((run / "summary.json").read_text()))


@pytest.mark.parametrize(("name", "num_classes"), [("emnist-balanced", 47), ("idx", 1000)])
def test_the_number_of_ranks_changes_no_bit(
    tmp_path: Path, name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_known_set(tmp_path / "data", name, num_classes, 460, 110, kind="short" if num_classes > 256 else "")
    options = [*SETTINGS, f"--data.name={name}"]
    assert run_ranks(1, train_in, tmp_path, [*options, "--run.dir=one"]) == [EXIT_DONE]
    rows, summary = results(tmp_path / "one")
    assert (summary["data.name"], summary["data.num_classes"]) == (name, num_classes)
    assert len(summary["test.recall"]) == num_classes
    assert summary["test.count"] == 110

    # On two ranks, killed while counts of the epoch are in the checkpoint, then on one or two again.
    ended = try_ranks(2, train_in, tmp_path, [*options, "--run.dir=two"], 6)
    assert ended[0].exit_code == -signal.SIGKILL
    assert run_ranks(2, train_in, tmp_path, [*options, "--run.dir=two"]) == [EXIT_DONE] * 2
    assert results(tmp_path / "two") == (rows, summary)

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["evaluate", "two", "--json"]) == EXIT_DONE
    evaluated = json.loads(capsys.readouterr().out)
    assert {key: evaluated[key] for key in evaluated if key.startswith("test.")} == {
        key: value for key, value in summary.items() if key.startswith("test.")
    }
    assert main(["predict", "two", "--index", "0", "--first", "12"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert "test image 0: " in out
    assert max(map(len, out.splitlines())) <= 100
    assert train([*options, "--run.dir=two", "--data.name=mnist", "--data.classes="]) == EXIT_USER


def test_two_classes_with_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_known_set(tmp_path / "data", "idx", 2, 160, 30)
    options = [*SETTINGS, "--data.name=idx", "--data.classes=left,right", "--run.dir=run"]
    assert run_ranks(1, train_in, tmp_path, options) == [EXIT_DONE]
    _, summary = results(tmp_path / "run")
    assert summary["data.num_classes"] == len(summary["test.confusion"]) == 2
    assert summary["test.top2"] == 1
