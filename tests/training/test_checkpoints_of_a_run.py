"""Checkpoints that a run writes: which are kept, what is in them, and what happens if one cannot be written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_run import STEPS, Run, config, start, steps_of, stop_after

from mnist_dist.checkpoint import async_writer
from mnist_dist.checkpoint.manager import CheckpointData
from mnist_dist.training import trainer as trainer_module
from mnist_dist.utils.errors import TrainingError


def failing_at(*steps: int) -> Callable[..., Path]:
    """A `save_checkpoint` that fails at these steps."""
    save = async_writer.save_checkpoint

    def fail(root: Path, step: int, saved: CheckpointData) -> Path:
        if step in steps:
            raise TrainingError(f"checkpoint {step}: cannot be written")
        return save(root, step, saved)

    return fail


def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config({"name": "adamw"}, checkpoint_steps=1, keep=9)
    expected = start(settings, tmp_path / "expected")
    monkeypatch.setattr(async_writer, "save_checkpoint", failing_at(2, 3, 5))
    run = start(settings, tmp_path / "failed")
    assert run.console.warnings == [
        f"checkpoint {step}: cannot be written; training goes on without it" for step in (2, 3, 5)
    ]
    assert run.sha256 == expected.sha256
    assert steps_of(tmp_path / "failed") == [1, 4, 6, 7, 8]


@pytest.mark.parametrize("moment", ["at the end", "at a stop"])
def test_a_last_checkpoint_that_cannot_be_written_is_an_error_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    step = 2 * STEPS if moment == "at the end" else 3
    monkeypatch.setattr(async_writer, "save_checkpoint", failing_at(step))
    with pytest.raises(TrainingError, match=rf"^checkpoint {step}: cannot be written$") as error:
        start(config(), tmp_path, before=stop_after(3) if moment == "at a stop" else lambda run: None)
    assert error.value.everywhere
    assert steps_of(tmp_path) == ([STEPS] if moment == "at the end" else [])


def test_a_checkpoint_has_the_state_of_its_step_however_late_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread writes the checkpoint of step 3 after step 4 has changed the weights."""
    next_step_done = threading.Event()
    save = async_writer.save_checkpoint

    def save_late(root: Path, step: int, saved: CheckpointData) -> Path:
        if step == 3:
            assert next_step_done.wait(30)
        return save(root, step, saved)

    settings = config({"name": "adamw", "ema": 0.9}, checkpoint_steps=3, keep=9)
    monkeypatch.setattr(async_writer, "save_checkpoint", save_late)

    def prepare(run: Run) -> None:
        # Set before the epoch's end, whose checkpoint waits for that of step 3.
        run.console.after_step = lambda done: next_step_done.set() if done == STEPS else None

    uninterrupted = start(settings, tmp_path / "uninterrupted", before=prepare)
    resumed = start(settings, tmp_path / "resumed", resume=tmp_path / "uninterrupted" / "step-00000003")
    assert resumed.sha256 == uninterrupted.sha256


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six epochs the second is the best: the third has the same accuracy at a higher loss, the fifth is equal."""
    run = start(config(epochs=6, keep=2), tmp_path)
    assert run.trainer.progress.best["step"] in steps_of(tmp_path)

    results = iter([(3, 2.0), (9, 1.0), (9, 1.5), (5, 0.1), (9, 1.0), (8, 0.5)])
    evaluate = trainer_module.evaluate

    def fake_evaluate(*arguments: Any) -> Any:
        correct, loss = next(results)
        return replace(evaluate(*arguments), correct=correct, loss_sum=loss * 11)

    monkeypatch.setattr(trainer_module, "evaluate", fake_evaluate)
    run = start(config(epochs=6, keep=2), tmp_path / "fake")
    assert run.trainer.progress.best == {"step": 2 * STEPS, "accuracy": 9 / 11, "loss": pytest.approx(1.0)}
    assert steps_of(tmp_path / "fake") == [2 * STEPS, 5 * STEPS, 6 * STEPS]
