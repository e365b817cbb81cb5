"""Trainer on one rank: length of a run, evaluations, drop_last and overfit_batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_run import DATA, STEPS, WITHOUT_VAL, config, start, steps_of, stop_after

from mnist_dist.checkpoint.manager import list_checkpoints
from mnist_dist.data.dataset import split
from mnist_dist.utils.errors import UserError


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    run = start(config(max_steps=6, log_steps=50), tmp_path)
    progress = run.trainer.progress
    assert (progress.step, progress.epoch, progress.step_in_epoch, progress.evaluated) == (6, 1, 2, 6)
    assert steps_of(tmp_path) == [4, 6]
    assert [step for step, _ in run.values("val.loss")] == [4, 6]
    # The last steps of an epoch and of the run are logged even if they are fewer than log_steps.
    assert [step for step, _ in run.values("train.loss")] == [4, 6]
    assert [(row["step"], row["epoch"]) for row in run.rows] == [(4, 1), (4, 1), (4, 1), (6, 2), (6, 2)]


def test_max_steps_beyond_the_last_epoch_changes_nothing(tmp_path: Path) -> None:
    assert start(config(max_steps=99), tmp_path).trainer.progress.step == 2 * STEPS


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [4, 8]), (3, [3, 4, 6, 8]), (4, [4, 8]), (1, [1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_eval_steps_and_checkpoint_steps(tmp_path: Path, every: int, steps: list[int]) -> None:
    evaluated = start(config(eval_steps=every, keep=9), tmp_path / "a")
    assert [step for step, _ in evaluated.values("val.loss")] == steps
    assert len(evaluated.console.evaluations) == len(steps) - 2  # those within epochs
    assert steps_of(tmp_path / "a") == [4, 8]
    saved = start(config(checkpoint_steps=every, keep=9), tmp_path / "b")
    assert [step for step, _ in saved.values("val.loss")] == [4, 8]
    assert steps_of(tmp_path / "b") == steps
    assert saved.sha256 == evaluated.sha256


def test_without_validation_images_the_test_set_is_evaluated_and_no_best_step_is_chosen(tmp_path: Path) -> None:
    run = start(config(epochs=3, keep=1), tmp_path, WITHOUT_VAL)
    assert [step for step, _ in run.values("test.count")] == [4, 8, 12]
    assert {count for _, count in run.values("test.count")} == {7}
    assert not run.values("val.count")
    assert run.trainer.progress.best == {}
    assert steps_of(tmp_path) == [12]
    assert [row["split"] for row in run.console.epochs] == ["test"] * 3


def test_drop_last_skips_the_smaller_last_batch(tmp_path: Path) -> None:
    run = start(config(data={"drop_last": True}), tmp_path)
    assert (run.trainer.progress.step, run.trainer.progress.images) == (6, 96)
    assert run.values("epoch.train.count") == [(3, 48), (6, 48)]


def test_drop_last_without_a_full_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.drop_last=true leaves nothing: 50 training images .*batch_size=51"):
        start(config(data={"drop_last": True}, batch_size=51), tmp_path)


def test_overfit_batches(tmp_path: Path) -> None:
    """The loss of two batches of random images, neither shuffled nor augmented, falls to almost 0."""
    adam = {"name": "adam", "lr": 0.003}
    settings = config(adam, {"shift": 14.0, "rotate": 180.0, "val_size": 5}, overfit_batches=2, epochs=25, batch_size=8)
    run = start(settings, tmp_path, split(DATA.train, DATA.test, settings.data, 0, settings.train_limit))
    assert run.trainer.progress.step == 50
    assert run.values("epoch.train.count")[0] == (2, 16)
    assert run.values("epoch.train.loss")[-1][1] < 0.02
    assert run.values("epoch.train.accuracy")[-1][1] == 1.0


def test_no_aug_epochs_trains_the_last_epochs_on_the_images_as_they_are(tmp_path: Path) -> None:
    moved, plain = config(data={"shift": 2.0, "rotate": 10.0}), config()
    mixed = config(data={"shift": 2.0, "rotate": 10.0, "no_aug_epochs": 1})
    start(moved, tmp_path / "first", before=stop_after(STEPS))
    (checkpoint,) = list_checkpoints(tmp_path / "first")
    by_hand = start(plain, tmp_path / "by hand", resume=checkpoint)
    assert start(mixed, tmp_path / "mixed").sha256 == by_hand.sha256
    assert start(moved, tmp_path / "moved").sha256 != by_hand.sha256
