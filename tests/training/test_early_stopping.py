"""Early stopping: when a run ends, that a stop or a kill does not change it, and how it goes on with other settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import run_ranks
from measured_keys import MEASURED_ROW_KEYS
from recorded_run import Row, Run, build, comparable, config, start, stop_after
from small_training import BASICS, open_trainer, synthetic_images

from mnist_dist.checkpoint.manager import list_checkpoints, load_verified, newest_verified
from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.data.dataset import Splits
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology, read_topology
from mnist_dist.training import early_stopping
from mnist_dist.training import trainer as trainer_module
from mnist_dist.training.early_stopping import check_target, summary_keys
from mnist_dist.utils.errors import TrainingError

DATA = Splits(synthetic_images(50, seed=1), synthetic_images(40, seed=2), synthetic_images(20, seed=3))
"""Four steps an epoch. The classes are easy to tell apart."""
FROZEN = {"lr": 0.0}
"""No evaluation is better than the first one."""
LEARNS = {"name": "adam", "lr": 0.01}


def ended(run: Run) -> tuple[int, str, str]:
    """Step, reason and weights."""
    return run.trainer.progress.step, run.trainer.progress.stop_reason, run.sha256


def timeless(run: Run) -> Any:
    return replace(run.trainer.progress, seconds=0.0, wall_seconds=0.0)


@pytest.mark.parametrize(("eval_steps", "patience", "step"), [(0, 1, 8), (3, 2, 6), (3, 3, 8), (1, 4, 5)])
def test_patience_ends_the_run_after_that_many_evaluations_without_a_new_best(
    tmp_path: Path, eval_steps: int, patience: int, step: int
) -> None:
    run = start(config(FROZEN, epochs=9, eval_steps=eval_steps, patience=patience), tmp_path, DATA)
    assert ended(run)[:2] == (step, "patience")
    assert [at for at, _ in run.values("train.loss")][-1] == step  # the row of the last steps
    assert run.values("val.loss")[-1][0] == step
    assert newest_verified(tmp_path, pytest.fail).folder == tmp_path / f"step-{step:08d}"
    assert summary_keys(run.trainer.state)["train.stop_reason"] == "patience"


def test_a_lower_loss_at_equal_accuracy_is_a_new_best() -> None:
    progress = TrainProgress()
    for accuracy, loss, since in [(0.5, 2, 0), (0.5, 3, 1), (0.5, 2, 2), (0.5, 1, 0), (0.4, 0, 1), (0.9, math.nan, 2)]:
        progress.note_held_out(accuracy, loss)
        assert progress.evaluations_since_best == since


def test_the_target_ends_the_run_at_the_evaluation_that_reaches_it(tmp_path: Path) -> None:
    whole = start(config(LEARNS, epochs=3, eval_steps=1), tmp_path / "whole", DATA).values("val.accuracy")
    step, target = next((step, accuracy) for step, accuracy in whole if accuracy > 0.3)
    run = start(config(LEARNS, epochs=3, eval_steps=1, target_accuracy=target), tmp_path / "run", DATA)
    assert ended(run)[:2] == (step, "target_accuracy")
    assert run.values("val.accuracy") == [row for row in whole if row[0] <= step]
    check_target(summary_keys(run.trainer.state))


def test_media_are_logged_after_the_evaluation_that_ends_the_run(tmp_path: Path) -> None:
    """Also within an epoch. They were collected before it was known."""
    settings = config(FROZEN, epochs=9, eval_steps=3, patience=3)
    epochs: list[tuple[int, int]] = []
    with start_runtime(settings, Topology()) as runtime:
        build(
            settings, runtime, DATA, tmp_path, log_media=lambda step, epoch, media: epochs.append((step, epoch))
        ).train()
    assert epochs == [(4, 1), (8, 2)]


def test_a_target_that_is_not_reached_is_an_error_of_all_ranks(tmp_path: Path) -> None:
    run = start(config(FROZEN, target_accuracy=0.99), tmp_path, DATA)
    summary = summary_keys(run.trainer.state) | {"train.steps": 8}
    assert (summary["train.stop_reason"], summary["train.target_reached"]) == ("last_step", False)
    with pytest.raises(
        TrainingError, match=r"^train\.target_accuracy=0\.99 is not reached: after 8 steps the hi"
    ) as error:
        check_target(summary)
    assert error.value.everywhere


SETTINGS = {
    "patience within an epoch": config(FROZEN, epochs=3, eval_steps=3, patience=2, log_steps=4),
    "patience at an epoch's end": config(FROZEN, epochs=3, patience=1),
    "target": config(LEARNS | {"ema": 0.5}, epochs=3, eval_steps=3, target_accuracy=0.3, log_steps=50),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stop_or_a_kill_at_any_step_changes_neither_the_last_step_nor_the_weights(tmp_path: Path, name: str) -> None:
    settings = SETTINGS[name]
    whole = start(settings, tmp_path / "whole", DATA)
    assert whole.trainer.progress.stop_reason
    rows: list[Row] = []
    newest: Path | None = None
    for step in range(1, whole.trainer.progress.step + 1):
        run = start(settings, tmp_path / "stopped", DATA, resume=newest, before=stop_after(step))
        rows += run.rows
        newest = newest_verified(tmp_path / "stopped", pytest.fail).folder
    again = start(settings, tmp_path / "stopped", DATA, resume=newest)
    assert ended(again) == ended(whole)
    assert comparable(rows + again.rows) == comparable(whole.rows)
    assert timeless(again) == timeless(whole)

    often = settings.model_copy(update={"train": settings.train.model_copy(update={"checkpoint_steps": 1, "keep": 99})})
    start(often, tmp_path / "killed", DATA)
    for checkpoint in list_checkpoints(tmp_path / "killed"):
        saved = load_verified(checkpoint).parse()
        again = start(often, tmp_path / "again", DATA, resume=saved)
        assert ended(again) == ended(whole)
        done = saved.state["progress"]["step"]
        assert comparable(again.rows) == [row for row in comparable(whole.rows) if row["step"] > done]


def test_a_stop_during_the_evaluation_that_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resumed run does no step, and has the row of the steps before."""
    settings = SETTINGS["patience within an epoch"]
    whole = start(settings, tmp_path / "whole", DATA)
    evaluate = trainer_module.evaluate

    def stop_in_last(model: Any, data: Any, config: Any, runtime: Any, size: int, *rest: Any) -> Any:
        if run.trainer.progress.step == 6:
            runtime.request_stop()
        return evaluate(model, data, config, runtime, size, *rest)

    def remember(started: Run) -> None:
        nonlocal run
        run = started

    run: Run
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "evaluate", stop_in_last)
        stopped = start(settings, tmp_path / "stopped", DATA, before=remember)
    assert stopped.stopped
    assert stopped.trainer.progress.step == 6
    again = start(
        settings, tmp_path / "stopped", DATA, resume=newest_verified(tmp_path / "stopped", pytest.fail).folder
    )
    assert ended(again) == ended(whole)
    assert comparable(stopped.rows + again.rows) == comparable(whole.rows)


# Going on


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"epochs": 1}, {"epochs": 3}),
        ({"epochs": 3, "max_steps": 5}, {"epochs": 3}),
        ({"epochs": 1, "max_steps": 3, "eval_steps": 2}, {"epochs": 2, "eval_steps": 2, "max_steps": 7}),
        ({"epochs": 3, "patience": 1, "eval_steps": 2}, {"epochs": 3, "patience": 4, "eval_steps": 2}),
        ({"epochs": 1, "patience": 2, "max_steps": 3}, {"epochs": 4, "patience": 2}),
        ({"epochs": 3, "target_accuracy": 0.2}, {"epochs": 3, "target_accuracy": 0.99}),
    ],
)
def test_a_longer_run_has_the_bits_of_one_that_was_longer_from_the_start(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    optim = FROZEN if "patience" in first else LEARNS | {"ema": 0.9}
    augmented = {"shift": 2.0}
    whole = start(config(optim, augmented, **then), tmp_path / "whole", DATA)
    short = start(config(optim, augmented, **first), tmp_path / "run", DATA)
    newest = newest_verified(tmp_path / "run", pytest.fail).folder
    longer = start(config(optim, augmented, **then), tmp_path / "run", DATA, resume=newest)
    assert short.trainer.progress.step < longer.trainer.progress.step
    assert ended(longer) == ended(whole)
    assert weights_sha256(longer.trainer.state.model) == weights_sha256(whole.trainer.state.model)
    assert timeless(longer) == timeless(whole)
    assert longer.trainer.held_out_metrics == whole.trainer.held_out_metrics
    if short.trainer.progress.step_in_epoch == 0:  # otherwise the shorter one has a row and an evaluation more
        assert comparable(short.rows + longer.rows) == comparable(whole.rows)


# Time


class Clock:
    """Seconds that only tests advance; counts how often rank 0 was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(early_stopping, "time", SimpleNamespace(monotonic=lambda: self.seconds))

    def tick(self, seconds: float) -> Callable[[Run], None]:
        """For `start`: let each step take as long."""

        def prepare(run: Run) -> None:
            def after_step(step: int) -> None:
                self.seconds += seconds

            run.console.after_step = after_step

        return prepare


def test_max_minutes_ends_the_run_with_few_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, questions = Clock(monkeypatch), 0

    def before(run: Run) -> None:
        clock.tick(0.5)(run)
        broadcast = run.trainer.runtime.broadcast

        def count(value: Any) -> Any:
            nonlocal questions
            questions += 1
            return broadcast(value)

        run.trainer.runtime.broadcast = count  # type: ignore[method-assign, assignment]

    run = start(config(FROZEN, epochs=99, max_minutes=0.5), tmp_path, DATA, before=before)
    assert ended(run)[:2] == (60, "max_minutes")
    assert run.trainer.progress.wall_seconds == 30.0
    evaluations = len(run.values("val.loss"))
    assert questions - evaluations <= 8


def test_max_minutes_counts_the_time_before_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    settings = config(FROZEN, epochs=9, max_minutes=0.5)

    def before(run: Run) -> None:
        run.console.after_step = lambda step: (
            run.trainer.runtime.request_stop() if step == 3 else None,
            setattr(clock, "seconds", clock.seconds + 5.0),
        )  # type: ignore[func-returns-value, assignment, return-value]

    assert start(settings, tmp_path, DATA, before=before).trainer.progress.step == 3
    clock.seconds += 1e6  # between the two
    again = start(
        settings,
        tmp_path,
        DATA,
        resume=newest_verified(tmp_path, pytest.fail).folder,
        before=clock.tick(5.0),
    )
    assert ended(again)[:2] == (6, "max_minutes")
    same = start(settings, tmp_path, DATA, resume=newest_verified(tmp_path, pytest.fail).folder, before=clock.tick(5.0))
    assert ended(same) == ended(again)
    assert not same.rows
    more = settings.model_copy(update={"train": settings.train.model_copy(update={"max_minutes": 1.0})})
    longer = start(more, tmp_path, DATA, resume=newest_verified(tmp_path, pytest.fail).folder, before=clock.tick(5.0))
    assert ended(longer)[:2] == (12, "max_minutes")


def test_the_time_is_kept_without_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(config(FROZEN, max_steps=3), tmp_path, DATA, before=Clock(monkeypatch).tick(5.0))
    assert load_verified(tmp_path / "step-00000003").parse().state["progress"]["wall_seconds"] == 15.0


# Several ranks


def end_on_rank(folder: Path, *arguments: str) -> tuple[int, str, str, list[Row]]:
    """How a run ended on this rank. With max_minutes, rank 0's clock says that 25 s pass in each step, others' none."""
    topology = read_topology()
    settings = load([*BASICS, *arguments], topology.world_size).config
    clock, rows = SimpleNamespace(seconds=0.0), list[Row]()
    early_stopping.time = SimpleNamespace(monotonic=lambda: clock.seconds)  # type: ignore[assignment]

    def after_step(step: int) -> None:
        clock.seconds += 0.0 if topology.rank else 25.0

    with start_runtime(settings, topology) as runtime:
        trainer = open_trainer(runtime, settings, folder, (64, 32), after_step, rows=rows)
        trainer.train()
        shown = [{key: str(value) for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows]
        progress = trainer.progress
        return progress.step, progress.stop_reason, weights_sha256(trainer.state.eval_model), shown


@pytest.mark.parametrize(
    ("arguments", "step", "reason"),
    [
        (["--optim.lr=0", "--train.eval_steps=3", "--train.patience=3"], 8, "patience"),
        (["--optim.lr=0.01", "--train.eval_steps=1", "--train.target_accuracy=0.4"], None, "target_accuracy"),
        (["--train.max_minutes=2"], 5, "max_minutes"),
    ],
)
def test_all_ranks_end_at_the_same_step(tmp_path: Path, arguments: list[str], step: int | None, reason: str) -> None:
    options = ["--train.batch_size=16", "--train.epochs=9", "--data.val_size=0", *arguments]
    [one] = run_ranks(1, end_on_rank, tmp_path / "one", *options)
    ranks = run_ranks(2, end_on_rank, tmp_path / "two", *options)
    assert ranks == [one, one]
    assert one[:2] == (step or one[0], reason)
