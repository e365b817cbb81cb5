"""Gradients that are not finite: they change no weight, and train.nonfinite raises, skips or rolls back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import build_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.manager import list_checkpoints, load_verified, newest_verified, step_of
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import ImageSet, Splits
from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import ImageClassifier
from mnist_dist.training import nonfinite
from mnist_dist.training import state as state_module
from mnist_dist.training.nonfinite import NonfiniteGuard
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.errors import Stopped, TrainingError

IMAGES, BATCH, STEPS = 50, 16, 4
SMALL = (
    *("--run.device=cpu", "--run.threads=1", "--train.batch_size=16", "--train.epochs=2", "--train.eval_batch_size=8"),
    *("--tracking.log_steps=3", "--optim.lr=0.01", "--train.precision=no"),
)
OPTIMIZERS = {
    "sgd": ("--optim.name=sgd",),
    "adamw": ("--optim.ema=0.9",),
    "muon": ("--optim.name=muon", "--optim.weight_decay=0.1"),
    "clipped": ("--optim.clip=0.1",),
    "no shards": ("--train.shards=0", "--train.accumulate=2"),
    "bf16": ("--train.precision=bf16",),
}


class NanForWhite(ImageClassifier):
    """A model with batch norm that returns nan, in training mode, for images whose first pixel is white."""

    def __init__(self) -> None:
        body = nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        super().__init__(body, nn.Linear(4 * 8 * 8, 10))

    def forward(self, images: Tensor) -> Tensor:
        white = (images[:, :1, 0, 0] > 2.5) & self.training
        return super().forward(images * torch.where(white, torch.nan, 1.0)[..., None, None])


def images(count: int, seed: int, white: int | None = None) -> ImageSet:
    """Random images. Only the one with index `white` has a white first pixel."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(200, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    if white is not None:
        pixels[white, 0, 0, 0] = 255
    return ImageSet(pixels, torch.randint(10, (count,), generator=generator))


class RecordingConsole(Console):
    """Records warnings, and calls a function after each step."""

    def __init__(self, after_step: Callable[[int], None]) -> None:
        self.after_step, self.warnings = after_step, list[str]()

    def progress(self, step: int, epoch: int) -> None:
        self.after_step(step)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class Run:
    """Result of a run, also of one that failed or was stopped."""

    trainer: Trainer
    rows: list[dict[str, Any]]
    warnings: list[str]
    error: str = ""
    stopped: bool = False

    @property
    def sha256(self) -> tuple[str, str]:
        """Of the weights and of the evaluated weights."""
        return weights_sha256(self.trainer.state.model), weights_sha256(self.trainer.state.eval_model)


def train(
    arguments: tuple[str, ...],
    folder: Path,
    nan_at: int | None,
    skip_batches: tuple[int, ...] = (),
    after_step: Callable[[Trainer, int], None] = lambda trainer, step: None,
) -> Run:
    """Train, from the folder's newest checkpoint if there is one, on images of which one may give nan.

    Args:
        nan_at: position of that image in the first epoch's order; None: there is none.
        skip_batches: batches to skip from the start.
    """
    config: Config = load([*SMALL, *arguments]).config
    order = GlobalBatchSampler(IMAGES, BATCH, seed=config.run.seed).permutation()
    empty = ImageSet(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    data = Splits(images(IMAGES, 0, None if nan_at is None else int(order[nan_at])), empty, images(20, 1))
    with start_runtime(config, Topology()) as runtime:
        torch.manual_seed(0)
        console = RecordingConsole(lambda step: after_step(run.trainer, step))
        newest, rows = newest_verified(folder, pytest.fail), list[dict[str, Any]]()
        resume = newest.parse() if newest else None
        model = runtime.to_device(NanForWhite())
        trainer = build_trainer(config, runtime, model, data, console, folder, rows=rows, resume=resume)
        run = Run(trainer, rows, console.warnings)
        run.trainer.progress.skip_batches = [*run.trainer.progress.skip_batches, *skip_batches]
        try:
            run.trainer.train()
        except TrainingError as error:
            run.error = str(error) if error.everywhere else f"on this rank: {error}"
        except Stopped:
            run.stopped = True
        return run


def comparable(rows: list[dict[str, Any]], keys: tuple[str, ...] = ("test.loss", "test.correct", "lr")) -> list[Any]:
    """Step and the given keys of each row."""
    return [(row["step"], {key: row[key] for key in keys if key in row}) for row in rows]


def batch_in_second_epoch(position: int) -> int:
    """Number of the batch of the second epoch that has the image at this position of the first epoch's order."""
    sampler = GlobalBatchSampler(IMAGES, BATCH)
    image = sampler.permutation()[position]
    sampler.set_epoch(1)
    return STEPS + int((sampler.permutation() == image).nonzero()) // BATCH


NAN_AT = 20  # in batch 1, the second one
SECOND_NAN_BATCH = batch_in_second_epoch(NAN_AT)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_skipping_an_update_equals_skipping_its_batch_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    arguments = OPTIMIZERS[optimizer]
    skipped = train((*arguments, "--train.nonfinite=skip"), tmp_path / "update", NAN_AT)
    batches = (1, SECOND_NAN_BATCH)
    expected = train(arguments, tmp_path / "batch", NAN_AT, skip_batches=batches)
    assert skipped.sha256 == expected.sha256
    assert comparable(skipped.rows) == comparable(expected.rows)
    assert (skipped.trainer.progress.nonfinite_skips, expected.trainer.progress.nonfinite_skips) == (2, 0)
    assert skipped.trainer.metric_logger.tracker.alerts == [("Update left out", text) for text in skipped.warnings]
    assert [text.split(";")[0] for text in skipped.warnings] == [
        f"the gradient was not finite in 1 of the steps from {first + 1} to {noticed}"
        for first, noticed in (
            (1, 3),
            (SECOND_NAN_BATCH, STEPS + 2 if SECOND_NAN_BATCH < STEPS + 2 else 2 * STEPS),
        )
    ]
    assert all(tensor.isfinite().all() for tensor in skipped.trainer.state.model.state_dict().values())


def test_the_first_update_of_a_run_can_be_skipped(tmp_path: Path) -> None:
    """torch's fused optimizers would then leave their state uninitialised."""
    for name in ("sgd", "adamw", "muon"):
        arguments = (f"--optim.name={name}", "--train.nonfinite=skip", "--train.max_steps=3", "--optim.ema=0.9")
        skipped = train(arguments, tmp_path / f"{name}-update", 0)
        expected = train(arguments, tmp_path / f"{name}-batch", 0, skip_batches=(0,))
        assert skipped.sha256 == expected.sha256
        assert skipped.trainer.progress.nonfinite_skips == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_raise_ends_the_run_before_the_step_is_logged_or_saved(tmp_path: Path, optimizer: str) -> None:
    arguments = (*OPTIMIZERS[optimizer], "--train.checkpoint_steps=1", "--tracking.log_steps=50", "--train.keep=9")
    run = train(arguments, tmp_path, NAN_AT)
    assert run.error.startswith("the gradient was not finite in 1 of the steps from 2 to 2 (epoch 1;")
    assert "--train.detect_anomaly=true" in run.error
    assert len(run.error.splitlines()) == 1
    assert run.rows == []
    (saved,) = list_checkpoints(tmp_path)
    assert step_of(saved) == 1
    assert all(tensor.isfinite().all() for tensor in load_verified(saved).parse().model.values())


def test_the_guard_is_read_at_rows_and_epoch_ends_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read waits for the device. Rows come every 3 steps; epochs of 4 steps end with an evaluation and a save."""
    steps: list[int] = []
    pop_skipped = NonfiniteGuard.pop_skipped

    def record_step(guard: NonfiniteGuard) -> Any:
        steps.append(trainers[0].progress.step)
        return pop_skipped(guard)

    trainers: list[Trainer] = []
    monkeypatch.setattr(NonfiniteGuard, "pop_skipped", record_step)
    train((), tmp_path, None, after_step=lambda trainer, step: trainers.append(trainer))
    assert steps == [3, 4, 6, 8]


def test_a_run_that_skips_updates_and_is_stopped_at_every_step_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    arguments = ("--train.nonfinite=skip",)
    uninterrupted = train(arguments, tmp_path / "uninterrupted", NAN_AT)
    rows: list[dict[str, Any]] = []
    for step in range(1, 2 * STEPS + 1):
        stop = lambda trainer, done, step=step: trainer.runtime.request_stop() if done == step else None  # noqa: E731
        run = train(arguments, tmp_path / "stopped", NAN_AT, after_step=stop)
        assert run.stopped
        rows += run.rows
    resumed = train(arguments, tmp_path / "stopped", NAN_AT)
    assert resumed.sha256 == uninterrupted.sha256
    assert comparable(rows + resumed.rows) == comparable(uninterrupted.rows)
    assert resumed.trainer.progress.nonfinite_skips == uninterrupted.trainer.progress.nonfinite_skips == 2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_without_fused_kernels_updates_are_skipped_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on MPS and XPU. torch's optimizers that are not fused refuse `found_inf`."""
    monkeypatch.setattr(state_module, "can_fuse", lambda runtime: False)
    arguments = (f"--optim.name={name}", "--train.nonfinite=skip", "--train.max_steps=3", "--optim.ema=0.9")
    skipped = train(arguments, tmp_path / "update", NAN_AT)
    expected = train(arguments, tmp_path / "batch", NAN_AT, skip_batches=(1,))
    assert skipped.sha256 == expected.sha256
    assert skipped.trainer.progress.nonfinite_skips == 1


def test_anomaly_detection_names_the_operation(tmp_path: Path) -> None:
    """It raises at a gradient that is nan. A gradient that is infinite is found by its norm, without that advice."""
    torch.autograd.set_detect_anomaly(True)
    try:
        with pytest.warns(UserWarning, match="Error detected in"):
            found = train(("--train.detect_anomaly=true", "--train.nonfinite=skip"), tmp_path / "nan", NAN_AT)
        infinite = ("--train.detect_anomaly=true", "--optim.lr=1e30", "--optim.warmup=0", "--train.max_steps=1")
        run = train((*infinite, "--train.shards=0"), tmp_path / "inf", None, after_step=poison_the_norm)
    finally:
        torch.autograd.set_detect_anomaly(False)
    assert found.error.startswith("on this rank: step 2: the gradient of the operation LogSoftmax is nan (input 0;")
    assert len(found.error.splitlines()) == 1
    assert run.error.startswith("the gradient was not finite in 1 of the steps from 1 to 1 ")
    assert "detect_anomaly" not in run.error


def poison_the_norm(trainer: Trainer, step: int) -> None:
    """Make the guard believe that the gradient of the last step was infinite."""
    trainer.train_step.guard.nonfinite[-1].fill_(True)


def test_too_many_skipped_updates_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "MAX_STREAK", 5)
    run = train(
        ("--train.nonfinite=skip", "--optim.lr=1e30", "--optim.schedule=constant", "--optim.warmup=0"), tmp_path, None
    )
    assert run.error.startswith("the gradient was not finite in 2 of the steps from 5 to 6 ")
    assert "train.nonfinite=skip" in run.error


# Rollback


def test_a_rollback_restores_the_last_checkpoint_halves_the_rate_and_skips_the_batch(tmp_path: Path) -> None:
    """One batch of each epoch gives nan. Checkpoints are at each epoch's end."""
    run = train(("--train.nonfinite=rollback", "--tracking.log_steps=1"), tmp_path / "rollback", NAN_AT)
    assert not run.error
    progress = run.trainer.progress
    assert (progress.rollbacks, progress.skip_batches, progress.nonfinite_skips) == (2, [1, SECOND_NAN_BATCH], 0)
    assert run.trainer.metric_logger.tracker.alerts == [("Update left out", text) for text in run.warnings]
    assert [text.split("; ")[1] for text in run.warnings] == [
        "rolled back to step 0, to continue at half the learning rate without the first of these batches",
        "rolled back to step 4, to continue at half the learning rate without the first of these batches",
    ]
    # One row per step: rows of steps that were rolled back are removed.
    assert [row["step"] for row in run.rows if "train.loss" in row] == list(range(1, 2 * STEPS + 1))
    # The first epoch has half the learning rate, the second a quarter.
    plain = train(("--tracking.log_steps=1",), tmp_path / "plain", None)
    rates = [[row["lr"] for row in rows if "lr" in row] for rows in (run.rows, plain.rows)]
    assert rates[0] == [rate / (2 if step < STEPS else 4) for step, rate in enumerate(rates[1])]
    expected = train(("--optim.lr=0.005", "--train.max_steps=4"), tmp_path / "expected", NAN_AT, skip_batches=(1,))
    first = load_verified(tmp_path / "rollback" / "step-00000004").parse()
    for name, tensor in expected.trainer.state.model.state_dict().items():
        assert tensor.equal(first.model[name]), name


@pytest.mark.parametrize("killed_at", range(1, 2 * STEPS + 1))
def test_a_run_killed_at_any_step_rolls_back_as_an_uninterrupted_one(tmp_path: Path, killed_at: int) -> None:
    """A killed run saves nothing, so the resumed one repeats the steps since its last checkpoint."""
    arguments = ("--train.nonfinite=rollback", "--train.checkpoint_steps=2", "--optim.ema=0.9")
    uninterrupted = train(arguments, tmp_path / "uninterrupted", NAN_AT)

    def kill(trainer: Trainer, step: int) -> None:
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(arguments, tmp_path / "killed", NAN_AT, after_step=kill)
    resumed = train(arguments, tmp_path / "killed", NAN_AT)
    assert resumed.sha256 == uninterrupted.sha256
    progress, expected = resumed.trainer.progress, uninterrupted.trainer.progress
    assert (progress.rollbacks, progress.skip_batches) == (expected.rollbacks, expected.skip_batches)


def test_the_sixth_rollback_ends_the_run_instead(tmp_path: Path) -> None:
    """At this learning rate, half of it is still too high."""
    run = train(("--train.nonfinite=rollback", "--optim.lr=1e30", "--optim.warmup=0"), tmp_path, None)
    assert len(run.warnings) == 5
    assert "train.nonfinite=rollback" in run.error
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [4]


def test_checkpoints_hold_the_rollbacks_and_the_batches_to_skip(tmp_path: Path) -> None:
    train(("--train.nonfinite=rollback", "--train.max_steps=6"), tmp_path, NAN_AT)
    progress = json.loads((list_checkpoints(tmp_path)[-1] / "state.json").read_text())["progress"]
    assert (progress["rollbacks"], progress["skip_batches"][0]) == (1 + (SECOND_NAN_BATCH < 6), 1)
