"""Trainer on one rank: steps, stops and resumes, evaluations, checkpoints and logged rows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measured_keys import MEASURED_ROW_KEYS
from small_training import build_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint import async_writer
from mnist_dist.checkpoint.manager import CheckpointData, list_checkpoints, load_checkpoint, newest_checkpoint, step_of
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import ImageSet, Splits, split
from mnist_dist.data.loader import normalize
from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model
from mnist_dist.models.summary import count_flops
from mnist_dist.optim.lr_schedule import lr_at
from mnist_dist.training import trainer as trainer_module
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.errors import Stopped, TrainingError, UserError

Row = dict[str, Any]
IMAGES, BATCH, STEPS = 50, 16, 4
"""Training images, images of a global batch, and steps of an epoch. The last batch has only two images."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(10, (count,), generator=generator))


DATA = Splits(images(IMAGES, 0), images(11, 1), images(7, 2))
WITHOUT_VAL = Splits(images(IMAGES, 0), images(0, 1), images(7, 2))


def config(
    optim: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None, model: str = "basic", **train: Any
) -> Config:
    """Two epochs of plain SGD at a constant learning rate by default; `log_steps` is a setting of tracking."""
    sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
    log_steps = train.pop("log_steps", 3)
    return Config(
        run=RunConfig(threads=1, device="cpu"),
        data=DataConfig(**(data or {})),
        model=ModelConfig(name=model),  # type: ignore[arg-type]
        optim=OptimConfig(**(sgd | dict(optim or {}))),  # type: ignore[arg-type]
        train=TrainConfig(**({"batch_size": BATCH, "epochs": 2, "eval_batch_size": 4, "precision": "no"} | train)),
        tracking=TrackingConfig(log_steps=log_steps),
    )


class RecordingConsole(Console):
    """Records what the trainer passes to the console, and calls a function after each step."""

    def __init__(self) -> None:
        self.epochs: list[Row] = []
        self.evaluations: list[str] = []
        self.warnings: list[str] = []
        self.after_step: Callable[[int], None] = lambda step: None

    def progress(self, step: int, epoch: int) -> None:
        self.after_step(step)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs.append(dict(row))

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        self.evaluations.append(split)


@dataclass
class Run:
    """Result of training from one start to the next stop or the end."""

    trainer: Trainer
    stopped: bool = False
    rows: list[Row] = field(default_factory=list)

    @property
    def console(self) -> RecordingConsole:
        assert isinstance(self.trainer.console, RecordingConsole)
        return self.trainer.console

    @property
    def sha256(self) -> str:
        return weights_sha256(self.trainer.state.eval_model)

    def values(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) of each row that has the key."""
        return [(row["step"], row[key]) for row in self.rows if key in row]


def build(
    config: Config, runtime: Runtime, data: Splits = DATA, checkpoints: Path = Path("checkpoints"), **options: Any
) -> Trainer:
    torch.manual_seed(config.run.seed)
    model = runtime.to_device(create_model(config.model.name))
    return build_trainer(config, runtime, model, data, RecordingConsole(), checkpoints, **options)


def start(
    config: Config,
    checkpoints: Path,
    data: Splits = DATA,
    *,
    resume: Path | CheckpointData | None = None,
    before: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train from the beginning or from a checkpoint, to the next stop or the end.

    Args:
        before: called with the run before training.
    """
    with start_runtime(config, Topology()) as runtime:
        saved = load_checkpoint(resume) if isinstance(resume, Path) else resume
        rows: list[Row] = []
        run = Run(build(config, runtime, data, checkpoints, rows=rows, resume=saved), rows=rows)
        before(run)
        try:
            run.trainer.train()
        except Stopped:
            run.stopped = True
    return run


def stop_after(step: int) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        run.console.after_step = lambda done: run.trainer.runtime.request_stop() if done == step else None

    return prepare


def comparable(rows: list[Row]) -> list[Row]:
    """Rows without measured times and memory."""
    return [{k: v for k, v in row.items() if k not in MEASURED_ROW_KEYS} for row in rows]


def steps_of(checkpoints: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(checkpoints)]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


# Steps


def train_by_hand(config: Config, epochs: int, smoothing: float = 0.0) -> tuple[nn.Module, list[float]]:
    """Plain SGD on the mean loss of each global batch; the model, and the loss of each batch."""
    torch.manual_seed(config.run.seed)
    model: nn.Module = create_model(config.model.name)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr)
    sampler = GlobalBatchSampler(IMAGES, BATCH, seed=config.run.seed)
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for rows in sampler:
            inputs = normalize(DATA.train.images[rows], config.data)
            loss = F.cross_entropy(model(inputs), DATA.train.labels[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr_at(len(losses), 2 * STEPS, config.optim)
            optimizer.step()
            losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("model", ["basic", "unshuffle"])
def test_steps_minimise_the_mean_loss_of_each_global_batch(tmp_path: Path, model: str, accumulate: int) -> None:
    """The last batch has two images: with four microbatches, two of them are empty."""
    optim = {"lr": 0.05, "schedule": "cosine", "warmup": 0.25}
    settings = config(optim, model=model, accumulate=accumulate, log_steps=1)
    run = start(settings, tmp_path)
    expected, losses = train_by_hand(settings, epochs=2)
    for found, parameter in zip(run.trainer.state.model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(found, parameter, rtol=1e-5, atol=1e-7)
    assert [loss for _, loss in run.values("train.loss")] == pytest.approx(losses, rel=1e-5)
    assert run.trainer.progress.images == 2 * IMAGES


def test_the_same_settings_give_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    settings = config(optim={"name": "adamw"}, data={"rotate": 10.0})
    first, second = start(settings, tmp_path / "a"), start(settings, tmp_path / "b")
    assert first.sha256 == second.sha256
    assert comparable(first.rows) == comparable(second.rows)
    other_seed = settings.model_copy(update={"run": settings.run.model_copy(update={"seed": 1})})
    assert start(other_seed, tmp_path / "c").sha256 != first.sha256


def update_norms(settings: Config, checkpoints: Path) -> tuple[list[float], str]:
    """The L2 norm of the change of all weights in each step, and the SHA-256 of the final weights."""
    norms: list[float] = []
    history: list[list[Tensor]] = []

    def prepare(run: Run) -> None:
        history.append(weights(run.trainer.state.model))

        def measure(step: int) -> None:
            now = weights(run.trainer.state.model)
            norms.append(math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(now, history[-1], strict=True))))
            history.append(now)

        run.console.after_step = measure

    return norms, start(settings, checkpoints, before=prepare).sha256


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_limits_the_norm_of_the_full_gradient(tmp_path: Path, accumulate: int) -> None:
    """At a learning rate of 1, plain SGD changes the weights by the gradient."""

    def train(clip: float) -> tuple[list[float], str]:
        return update_norms(config({"lr": 1.0, "clip": clip}, accumulate=accumulate, max_steps=3), tmp_path / str(clip))

    unclipped, clipped = train(0.0), train(0.01)
    assert min(unclipped[0]) > 0.1
    assert clipped[0] == pytest.approx([0.01] * 3, rel=1e-3)
    assert train(1e6)[1] == unclipped[1]


def test_label_smoothing_is_for_training_only(tmp_path: Path) -> None:
    settings = config({"lr": 1e-12, "label_smoothing": 0.3}, log_steps=1)
    run = start(settings, tmp_path)
    model, losses = train_by_hand(settings, epochs=1, smoothing=0.3)
    assert [loss for _, loss in run.values("train.loss")][:STEPS] == pytest.approx(losses, rel=1e-4)
    with torch.no_grad():
        logits = model(normalize(DATA.val.images, settings.data))
    plain = F.cross_entropy(logits, DATA.val.labels).item()
    assert run.values("val.loss")[0] == (STEPS, pytest.approx(plain, rel=1e-4))
    assert plain != pytest.approx(F.cross_entropy(logits, DATA.val.labels, label_smoothing=0.3).item(), rel=1e-3)


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_augmented_in_training_only(tmp_path: Path, augment: bool) -> None:
    """At a learning rate of almost 0, the loss of every epoch is the same, unless its images are augmented."""
    run = start(config({"lr": 1e-12}, {"shift": 5.0} if augment else {}, epochs=2), tmp_path)
    (_, first), (_, second) = run.values("epoch.train.loss")
    assert (abs(first - second) > 1e-5) == augment
    (_, first), (_, second) = run.values("val.loss")
    assert first == pytest.approx(second, abs=1e-6)


def test_the_ema_is_evaluated(tmp_path: Path) -> None:
    """With a decay near 0 it equals the weights; with one near 1 it stays at those of the first step."""
    runs = {decay: start(config({"lr": 0.1, "ema": decay}), tmp_path / str(decay)) for decay in (0.0, 1e-7, 0.9999999)}
    without, fast, slow = runs[0.0], runs[1e-7], runs[0.9999999]
    assert without.trainer.state.eval_model is without.trainer.state.model
    assert fast.values("val.loss")[-1][1] == pytest.approx(without.values("val.loss")[-1][1], rel=1e-4)
    first, second = [loss for _, loss in slow.values("val.loss")]
    assert first == pytest.approx(second, rel=1e-4)
    assert slow.sha256 != weights_sha256(slow.trainer.state.model) == without.sha256


def test_the_learning_rate_follows_the_schedule_over_all_epochs(tmp_path: Path) -> None:
    optim = {"schedule": "onecycle", "warmup": 0.3, "final_lr": 0.1, "lr": 0.02}
    run = start(config(optim, log_steps=1, max_steps=5), tmp_path)
    expected = [(step, lr_at(step - 1, 2 * STEPS, run.trainer.config.optim)) for step in range(1, 6)]
    assert run.values("lr") == expected  # max_steps does not shorten the schedule
    assert [row["lr"] for row in run.console.epochs] == [expected[STEPS - 1][1]]


def test_an_update_that_the_scaler_skips_advances_neither_the_schedule_nor_the_ema(tmp_path: Path) -> None:
    """In fp16, the gradient scaler skips updates whose gradients overflow."""
    skipped = {2, 3, 6}

    def skip(run: Run) -> None:
        optimizer, progress = run.trainer.train_step.optimizer, run.trainer.progress

        class SkippingOptimizer:
            step_was_skipped = False

            def step(self) -> None:
                self.step_was_skipped = progress.step + 1 in skipped
                if not self.step_was_skipped:
                    optimizer.step()

            def zero_grad(self) -> None:
                optimizer.zero_grad()

        run.trainer.train_step.optimizer = SkippingOptimizer()

    run = start(config({"schedule": "linear", "ema": 0.5}, log_steps=1), tmp_path, before=skip)
    assert run.trainer.progress.scaler_skips == 3
    assert run.trainer.state.ema is not None
    assert int(run.trainer.state.ema.n_averaged) == 2 * STEPS - 3
    rates = [lr_at(update, 2 * STEPS, run.trainer.config.optim) for update in (0, 1, 1, 1, 2, 3, 3, 4)]
    assert run.values("lr") == list(zip(range(1, 9), rates, strict=True))
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    with start_runtime(run.trainer.config, Topology()) as runtime:
        resumed = build(run.trainer.config, runtime, resume=saved)
    assert (resumed.train_step.lr, resumed.progress.scaler_skips) == (rates[-1], 3)


# Stop and resume

VARIANTS: dict[str, Config] = {
    "sgd": config({"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": config({"name": "adam"}, model="convnet"),
    "adamw": config({"name": "adamw", "schedule": "onecycle", "warmup": 0.3}),
    "muon": config({"name": "muon", "weight_decay": 0.1, "momentum": 0.9}),
    "ema": config({"name": "adamw", "ema": 0.9}),
    "augmentation": config({"name": "adamw"}, {"shift": 2.0, "rotate": 15.0, "scale": 0.1, "shear": 5.0}),
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
        newest = newest_checkpoint(tmp_path / "stopped", pytest.fail)
        assert newest is not None
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
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
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
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    saved.state["progress"]["step_in_epoch"] = STEPS + 1
    with pytest.raises(UserError, match=r"^here: is at batch 5 of an epoch that has 4; choose another one$"):
        start(config(), tmp_path / "again", resume=saved)


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


# Length of a run, evaluations and checkpoints


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


def test_a_run_resumed_from_a_checkpoint_within_an_epoch_equals_the_first_run(tmp_path: Path) -> None:
    settings = config({"name": "adamw"}, checkpoint_steps=3, eval_steps=3, keep=9)
    uninterrupted = start(settings, tmp_path / "uninterrupted")
    for step in (3, 6):
        resumed = start(settings, tmp_path / str(step), resume=tmp_path / "uninterrupted" / f"step-{step:08d}")
        assert resumed.sha256 == uninterrupted.sha256
        assert comparable(resumed.rows) == comparable([row for row in uninterrupted.rows if row["step"] > step])


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


# Rows of metrics


def test_rows_have_the_mean_loss_per_image_since_the_row_before(tmp_path: Path) -> None:
    """Rows are logged every three steps and at the end of each epoch, whose last batch has only two images."""
    settings = config(log_steps=3)
    run = start(settings, tmp_path)
    _, losses = train_by_hand(settings, epochs=2)
    sizes = [16, 16, 16, 2] * 2

    def mean(first: int, last: int) -> float:
        """Over the images of the batches first to last - 1."""
        total = sum(loss * size for loss, size in zip(losses[first:last], sizes[first:last], strict=True))
        return total / sum(sizes[first:last])

    expected = [(3, mean(0, 3)), (4, mean(3, 4)), (6, mean(4, 6)), (8, mean(6, 8))]
    found = run.values("train.loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    epochs = run.values("epoch.train.loss")
    assert [step for step, _ in epochs] == [4, 8]
    assert [loss for _, loss in epochs] == pytest.approx([mean(0, 4), mean(4, 8)], rel=1e-5)
    assert run.values("epoch.train.count") == [(4, IMAGES), (8, IMAGES)]
    assert all(0 <= accuracy <= 1 for _, accuracy in run.values("train.accuracy"))
    assert all(rate > 0 for _, rate in run.values("images_per_second"))
    assert [row["epoch"] for row in run.rows if "train.loss" in row] == [1, 1, 2, 2]
    assert [row["epoch"] for row in run.console.epochs] == [1, 2]


def test_rows_have_the_speed_since_the_row_before(tmp_path: Path) -> None:
    """Speed in steps, images and FLOPs agree; after a resume, it is measured from there on."""
    settings = config(log_steps=3)
    first = start(settings, tmp_path, before=stop_after(2))
    assert first.stopped
    resumed = start(settings, tmp_path, resume=list_checkpoints(tmp_path)[-1])
    flops = 3 * count_flops(create_model("basic"))
    rows = [row for row in first.rows + resumed.rows if "train.loss" in row]
    assert [row["step"] for row in rows] == [3, 4, 6, 8]
    for row, images in zip(rows, [16, 2, 16, 9], strict=True):  # mean number of images of a step
        assert row["step_seconds"] * row["images_per_second"] == pytest.approx(images)
        assert row["flops_per_second"] == pytest.approx(flops * row["images_per_second"])
        assert 1e6 < row["memory.peak_bytes"] < 1e12
        assert "mfu" not in row  # the peak was not measured


def test_rows_have_the_gradient_norms_before_clipping(tmp_path: Path) -> None:
    """At a learning rate of 1, plain SGD changes the weights by the gradient."""

    def norms(clip: float, name: str) -> dict[str, list[tuple[int, Any]]]:
        run = start(config({"lr": 1.0 if clip == 0 else 1e-9, "clip": clip}, max_steps=4), tmp_path / name)
        return {key: run.values(key) for key in ("gradient.norm", "gradient.norm_max")}

    expected, _ = update_norms(config({"lr": 1.0}, max_steps=4), tmp_path / "expected")
    unclipped, clipped = norms(0.0, "unclipped"), norms(1e-6, "clipped")
    assert unclipped["gradient.norm"] == [(3, pytest.approx(sum(expected[:3]) / 3)), (4, pytest.approx(expected[3]))]
    assert unclipped["gradient.norm_max"] == [(3, pytest.approx(max(expected[:3]))), (4, pytest.approx(expected[3]))]
    assert min(norm for _, norm in clipped["gradient.norm"]) > 0.1
    assert not any(key.startswith("step_seconds.") for row in start(config(), tmp_path / "one").rows for key in row)


def test_evaluations_count_every_image_once_at_any_batch_size(tmp_path: Path) -> None:
    def evaluate(size: int) -> list[Row]:
        settings = config(eval_batch_size=size)
        with start_runtime(settings, Topology()) as runtime:
            trainer = build(settings, runtime)
            rows = [trainer.evaluate(name).row(name) for name in ("train", "val", "test")]
            assert trainer.state.model.training  # back in training mode
            return rows

    rows = evaluate(4)
    assert [rows[0]["train.count"], rows[1]["val.count"], rows[2]["test.count"]] == [IMAGES, 11, 7]
    for size in (1, 11, 1000):
        for row, other in zip(rows, evaluate(size), strict=True):
            assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("train", [{"log_steps": 2}, {"log_steps": 50}, {"log_steps": 50, "max_steps": 3}])
def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint(tmp_path: Path, train: dict[str, int]) -> None:
    """It is found at a row, at the end of an epoch or at the end of the run, whichever is first."""
    with pytest.raises(TrainingError) as error:
        start(config({"lr": 1e30}, **train), tmp_path)
    step = min(train.values())
    noticed = min(step, STEPS)
    assert str(error.value).startswith(
        f"the gradient was not finite in {noticed - 1} of the steps from 2 to {noticed} "
    )
    assert "lower optim.lr=1e+30" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.everywhere
    assert steps_of(tmp_path) == []
