"""Whole runs that end early, go on with other settings, and start from each other: files, lines and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked_training import PLAIN, run_forked
from programs import Ended, write_digits

from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER

COMMON = (
    *("--data.root=digits", "--data.source=local", "--data.val_size=40", "--model.name=basic", "--train.batch_size=40"),
    *("--train.precision=no", "--run.threads=1", "--run.device=cpu", "--tracking.mode=disabled", "--optim.lr=0.001"),
)
FAILING = f"from mnist_dist.training.trainer import Trainer\nTrainer.train = None\n{PLAIN}"
"""A program whose training fails."""
CONSTANT = ("--optim.schedule=constant", "--optim.warmup=0")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "digits").mkdir()
    write_digits(tmp_path / "digits", train=200, test=50)
    return tmp_path


def train(work: Path, *arguments: str) -> Ended:
    return run_forked([*COMMON, *arguments], work)


def summary(work: Path, run: str) -> dict[str, Any]:
    return json.loads((work / run / "summary.json").read_text())


def test_a_target_that_is_missed_is_exit_code_1_now_and_when_started_again(work: Path) -> None:
    settings = ("--run.dir=run", "--train.epochs=1", "--train.target_accuracy=0.999")
    first = train(work, *settings)
    assert first.code == EXIT_FAILED
    [line] = first.err.splitlines()
    assert line.startswith(
        "mnist_dist: error: train.target_accuracy=0.999 is not reached: after 4 steps the highest accu"
    )
    assert summary(work, "run")["train.target_reached"] is False
    again = train(work, *settings)
    assert (again.code, again.err) == (EXIT_FAILED, first.err)
    assert "run holds this run, finished; --model.init_from=run, with another --run.dir, starts a new run" in again.out
    assert train(work, *settings[:2], "--train.target_accuracy=0.01").code == EXIT_DONE


def test_a_run_that_was_killed_after_its_summary_is_finished_in_its_status_too(work: Path) -> None:
    assert train(work, "--run.dir=run", "--train.epochs=1").code == EXIT_DONE
    status = work / "run" / "status.json"
    expected = json.loads(status.read_text())
    status.write_text(json.dumps(expected | {"state": "running", "step": 0}))
    assert train(work, "--run.dir=run", "--train.epochs=1").code == EXIT_DONE
    again = json.loads(status.read_text())
    assert [again[key] for key in ("state", "step", "last_step")] == ["finished", 4, 4]
    assert train(work, "--run.dir=run", "--train.epochs=1").code == EXIT_DONE
    assert json.loads(status.read_text()) == again  # nothing was left to say


def test_a_finished_run_trains_more_epochs_on_a_constant_schedule(work: Path) -> None:
    """Into the same rows, with a new summary."""
    assert train(work, *CONSTANT, "--run.dir=whole", "--train.epochs=3").code == EXIT_DONE
    assert train(work, *CONSTANT, "--run.dir=run", "--train.epochs=1").code == EXIT_DONE
    stopped = train(work, *CONSTANT, "--run.dir=run", "--train.epochs=1")
    assert "run holds this run, finished; more --train.epochs let it train on; " in stopped.out
    assert run_forked([*COMMON, *CONSTANT, "--run.dir=run", "--train.epochs=2"], work, FAILING).code == EXIT_FAILED
    assert not (work / "run" / "summary.json").exists()  # it is not finished any more
    assert train(work, *CONSTANT, "--run.dir=run", "--train.epochs=3").code == EXIT_DONE
    for key in ("weights_sha256", "test.loss", "val.loss", "train.steps", "train.epochs", "train.stop_reason"):
        assert summary(work, "run")[key] == summary(work, "whole")[key]
    steps = [
        [json.loads(line)["step"] for line in (work / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run", "whole")
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("settings", [(), (*CONSTANT, "--data.shift=2", "--data.no_aug_epochs=1")])
def test_a_run_whose_past_depends_on_its_epochs_does_not_train_more(work: Path, settings: tuple[str, ...]) -> None:
    """Its learning rates do, or its last images. The error names the way."""
    assert train(work, *settings, "--run.dir=run", "--train.epochs=1").code == EXIT_DONE
    again = train(work, *settings, "--run.dir=run", "--train.epochs=1")
    assert "--model.init_from=run, with another --run.dir, starts a new run from its weights" in again.out
    refused = train(work, *settings, "--run.dir=run", "--train.epochs=3")
    assert refused.code == EXIT_USER
    *_, line = refused.err.splitlines()
    way = "--model.init_from=run/checkpoints/step-00000004"
    assert line.endswith(f"start a new run from its weights with {way} and another --run.dir")
    assert train(work, *settings, "--run.dir=new", "--train.epochs=1", way).code == EXIT_DONE
    assert summary(work, "new")["init_sha256"] == summary(work, "run")["weights_sha256"]
