"""Stops and resumes on one rank: the same bits and rows as an uninterrupted run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_run import DATA, STEPS, WITHOUT_VAL, Row, Run, comparable, config, start, steps_of, stop_after

from mnist_dist.checkpoint.manager import list_checkpoints, load_verified, newest_verified, step_of
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import Splits
from mnist_dist.optim.lr_schedule import lr_at
from mnist_dist.training import trainer as trainer_module
from mnist_dist.utils.errors import UserError

VARIANTS: dict[str, Config] = {
    "sgd": config({"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": config({"name": "adam"}, model="convnet"),
    "adamw": config({"name": "adamw", "schedule": "onecycle", "warmup": 0.3}),
    "muon": config({"name": "muon", "weight_decay": 0.1, "momentum": 0.9}),
    "ema": config({"name": "adamw", "ema": 0.9}),
    "augmentation": config(
        {"name": "adamw"}, {"shift": 2.0, "rotate": 15.0, "scale": 0.1, "shear": 5.0, "elastic": 1.0}
    ),
    "last epoch without augmentation": config({"name": "adamw"}, {"shift": 2.0, "elastic": 1.0, "no_aug_epochs": 1}),
    "accumulation": config({"name": "adamw", "clip": 0.5, "label_smoothing": 0.1}, accumulate=4),
    "default model, bf16": config({"name": "adamw"}, model="unshuffle", precision="bf16"),
    "evaluations": config({"name": "adamw"}, eval_steps=3, log_steps=1),
    "drop_last": config({"name": "adamw"}, {"drop_last": True}, log_steps=50),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_after_every_step_equals_an_uninterrupted_one(tmp_path: Path, variant: str) -> None:
    """It has the same bits and the same rows. It is stopped within epochs, at their ends and at the end of the run."""
    settings = VARIANTS[variant]
    uninterrupted = start(settings, tmp_path / "uninterrupted")
    total = uninterrupted.trainer.state.total_steps

    rows: list[Row] = []
    newest: Path | None = None
    for step in range(1, total + 1):
        run = start(settings, tmp_path / "stopped", resume=newest, before=stop_after(step))
        rows += run.rows
        assert run.stopped
        newest = newest_verified(tmp_path / "stopped", pytest.fail).folder
        assert step_of(newest) == run.trainer.progress.step == step
    resumed = start(settings, tmp_path / "stopped", resume=newest)

    assert not resumed.stopped
    assert resumed.sha256 == uninterrupted.sha256
    assert weights_sha256(resumed.trainer.state.model) == weights_sha256(uninterrupted.trainer.state.model)
    assert comparable(rows + resumed.rows) == comparable(uninterrupted.rows)
    ends = [replace(run.trainer.progress, seconds=0.0, wall_seconds=0.0) for run in (resumed, uninterrupted)]
    assert ends[0] == ends[1]
    assert {total, int(resumed.trainer.progress.best["step"])} <= set(steps_of(tmp_path / "stopped"))


@pytest.mark.parametrize("data", [DATA, WITHOUT_VAL], ids=["val", "test"])
def test_a_run_stopped_during_each_evaluation_evaluates_after_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Splits
) -> None:
    """Evaluations are at steps 3 and 6 by eval_steps, at 4 by the epoch's end, and at 7 by max_steps."""
    settings = config({"name": "adamw"}, eval_steps=3, max_steps=7)
    uninterrupted = start(settings, tmp_path / "uninterrupted", data)

    evaluate = trainer_module.evaluate
    stopped_at: list[int] = []

    def stop_once_per_step(run: Run) -> None:
        def request_stop_and_evaluate(*arguments: Any) -> Any:
            if run.trainer.progress.step not in stopped_at:
                stopped_at.append(run.trainer.progress.step)
                run.trainer.runtime.request_stop()
            return evaluate(*arguments)

        monkeypatch.setattr(trainer_module, "evaluate", request_stop_and_evaluate)

    rows: list[Row] = []
    newest: Path | None = None
    for step in (3, 4, 6, 7):
        run = start(settings, tmp_path / "stopped", data, resume=newest, before=stop_once_per_step)
        rows += run.rows
        assert run.stopped
        newest = list_checkpoints(tmp_path / "stopped")[-1]
        assert step_of(newest) == step
    resumed = start(settings, tmp_path / "stopped", data, resume=newest, before=stop_once_per_step)
    assert not resumed.stopped
    assert stopped_at == [3, 4, 6, 7]
    assert resumed.sha256 == uninterrupted.sha256
    assert comparable(rows + resumed.rows) == comparable(uninterrupted.rows)


def test_max_steps_can_be_raised_at_a_resume(tmp_path: Path) -> None:
    settings = config({"name": "adamw", "schedule": "cosine"})
    uninterrupted = start(settings, tmp_path / "uninterrupted")
    short = settings.model_copy(update={"train": settings.train.model_copy(update={"max_steps": 3})})
    first = start(short, tmp_path / "short")
    assert not first.stopped
    resumed = start(settings, tmp_path / "short", resume=list_checkpoints(tmp_path / "short")[-1])
    assert resumed.sha256 == uninterrupted.sha256
    assert resumed.rows[-1]["step"] == 2 * STEPS


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    settings = config(max_steps=3)
    first = start(settings, tmp_path)
    (checkpoint,) = list_checkpoints(tmp_path)
    inode = checkpoint.stat().st_ino
    again = start(settings, tmp_path, resume=checkpoint)
    assert (again.rows, again.sha256) == ([], first.sha256)
    assert again.trainer.held_out_metrics == first.trainer.held_out_metrics is not None
    assert checkpoint.stat().st_ino == inode


def test_speed_seconds_and_learning_rate_after_a_resume(tmp_path: Path) -> None:
    """Speed is measured from the resume on; seconds of training include those before it."""
    settings = config({"schedule": "linear"})
    start(settings, tmp_path, before=stop_after(STEPS))
    saved = load_verified(list_checkpoints(tmp_path)[-1]).parse()
    saved.state["progress"]["seconds"] = 1e6
    run = start(settings, tmp_path, resume=saved)
    assert run.values("images_per_second")[0][1] > 1
    assert 1e6 < run.trainer.progress.seconds < 1e6 + 60
    # The run was stopped before the first epoch was logged: its row has the learning rate of its last update.
    assert run.console.epochs[0]["lr"] == pytest.approx(lr_at(STEPS - 1, 2 * STEPS, settings.optim))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    start(config(max_steps=1), tmp_path)
    with pytest.raises(
        UserError, match=r"^here/model\.safetensors: body\.0\.weight is .* \(10, 1, 5, 5\), the model's"
    ):
        start(config(model="convnet"), tmp_path, resume=list_checkpoints(tmp_path)[-1])


def test_a_checkpoint_beyond_the_end_of_an_epoch_is_refused(tmp_path: Path) -> None:
    """The epoch has no such batch, so training could not continue."""
    start(config(max_steps=2), tmp_path)
    saved = load_verified(list_checkpoints(tmp_path)[-1]).parse()
    saved.state["progress"]["step_in_epoch"] = STEPS + 1
    with pytest.raises(UserError, match=r"^here: is at batch 5 of an epoch that has 4; choose another one$"):
        start(config(), tmp_path / "again", resume=saved)


def test_a_run_resumed_from_a_checkpoint_within_an_epoch_equals_the_first_run(tmp_path: Path) -> None:
    settings = config({"name": "adamw"}, checkpoint_steps=3, eval_steps=3, keep=9)
    uninterrupted = start(settings, tmp_path / "uninterrupted")
    for step in (3, 6):
        resumed = start(settings, tmp_path / str(step), resume=tmp_path / "uninterrupted" / f"step-{step:08d}")
        assert resumed.sha256 == uninterrupted.sha256
        assert comparable(resumed.rows) == comparable([row for row in uninterrupted.rows if row["step"] > step])
