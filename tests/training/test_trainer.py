"""The loop, in one process: what it computes, where it stops and goes on, and what it keeps and records."""

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
from clocks import ROW_CLOCKS
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
"""Training images, images of a global batch, and steps of an epoch: the last batch has two images only."""


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
    """Two epochs of plain SGD at a constant rate, unless told otherwise; `log_steps` goes to tracking."""
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


class Listener(Console):
    """Keeps what the loop shows, and does something after each step."""

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
    """What one start of a run left."""

    trainer: Trainer
    stopped: bool = False
    rows: list[Row] = field(default_factory=list)

    @property
    def shown(self) -> Listener:
        assert isinstance(self.trainer.console, Listener)
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
    return build_trainer(config, runtime, model, data, Listener(), checkpoints, **options)


def start(
    config: Config,
    checkpoints: Path,
    data: Splits = DATA,
    *,
    resume: Path | CheckpointData | None = None,
    before: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train once, from the beginning or from a checkpoint, to the end or to the next stop."""
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
        run.shown.after_step = lambda done: run.trainer.runtime.request_stop() if done == step else None

    return prepare


def comparable(rows: list[Row]) -> list[Row]:
    """Rows without what no two runs share."""
    return [{k: v for k, v in row.items() if k not in ROW_CLOCKS} for row in rows]


def steps_of(checkpoints: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(checkpoints)]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


# What a step computes


def train_by_hand(config: Config, epochs: int, smoothing: float = 0.0) -> tuple[nn.Module, list[float]]:
    """Plain SGD on the mean loss of each global batch, at its rate; the model and the batches' losses."""
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
def test_learns_from_the_mean_over_each_global_batch(tmp_path: Path, model: str, accumulate: int) -> None:
    """The last batch has two images: in four parts, two of them are empty."""
    optim = {"lr": 0.05, "schedule": "cosine", "warmup": 0.25}
    settings = config(optim, model=model, accumulate=accumulate, log_steps=1)
    run = start(settings, tmp_path)
    expected, losses = train_by_hand(settings, epochs=2)
    for found, wanted in zip(run.trainer.state.model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert [loss for _, loss in run.values("train.loss")] == pytest.approx(losses, rel=1e-5)
    assert run.trainer.progress.images == 2 * IMAGES


def test_the_same_command_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    settings = config(optim={"name": "adamw"}, data={"rotate": 10.0})
    first, second = start(settings, tmp_path / "a"), start(settings, tmp_path / "b")
    assert first.sha256 == second.sha256
    assert comparable(first.rows) == comparable(second.rows)
    assert (
        start(settings.model_copy(update={"run": settings.run.model_copy(update={"seed": 1})}), tmp_path / "c").sha256
        != first.sha256
    )


def update_sizes(settings: Config, checkpoints: Path) -> tuple[list[float], str]:
    """The L2 norm of all weights' change in each step, and the weights' digest."""
    sizes: list[float] = []
    before: list[list[Tensor]] = []

    def note(run: Run) -> None:
        before.append(weights(run.trainer.state.model))

        def measure(step: int) -> None:
            now = weights(run.trainer.state.model)
            sizes.append(math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(now, before[-1], strict=True))))
            before.append(now)

        run.shown.after_step = measure

    return sizes, start(settings, checkpoints, before=note).sha256


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_limits_the_norm_of_the_whole_gradient(tmp_path: Path, accumulate: int) -> None:
    """At rate 1, plain SGD moves the weights by the gradient."""

    def sizes(clip: float) -> tuple[list[float], str]:
        return update_sizes(config({"lr": 1.0, "clip": clip}, accumulate=accumulate, max_steps=3), tmp_path / str(clip))

    free, clipped = sizes(0.0), sizes(0.01)
    assert min(free[0]) > 0.1
    assert clipped[0] == pytest.approx([0.01] * 3, rel=1e-3)
    assert sizes(1e6)[1] == free[1]


def test_smoothing_is_for_training_only(tmp_path: Path) -> None:
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
    """With weights that stand still, the loss of every epoch is the same, unless its images moved."""
    run = start(config({"lr": 1e-12}, {"shift": 5.0} if augment else {}, epochs=2), tmp_path)
    (_, first), (_, second) = run.values("epoch.train.loss")
    assert (abs(first - second) > 1e-5) == augment
    (_, first), (_, second) = run.values("val.loss")
    assert first == pytest.approx(second, abs=1e-6)


def test_the_average_of_the_weights_is_what_is_evaluated(tmp_path: Path) -> None:
    """A decay near 0 follows the weights; near 1 it stays at those of the first step."""
    near = {ema: start(config({"lr": 0.1, "ema": ema}), tmp_path / str(ema)) for ema in (0.0, 1e-7, 0.9999999)}
    assert near[0.0].trainer.state.eval_model is near[0.0].trainer.state.model
    assert near[1e-7].values("val.loss")[-1][1] == pytest.approx(near[0.0].values("val.loss")[-1][1], rel=1e-4)
    still = [loss for _, loss in near[0.9999999].values("val.loss")]
    assert still[0] == pytest.approx(still[1], rel=1e-4)
    assert near[0.9999999].sha256 != weights_sha256(near[0.9999999].trainer.state.model) == near[0.0].sha256


def test_the_rate_follows_the_schedule_over_all_epochs(tmp_path: Path) -> None:
    optim = {"schedule": "onecycle", "warmup": 0.3, "final_lr": 0.1, "lr": 0.02}
    run = start(config(optim, log_steps=1, max_steps=5), tmp_path)
    expected = [(step, lr_at(step - 1, 2 * STEPS, run.trainer.config.optim)) for step in range(1, 6)]
    assert run.values("lr") == expected  # max_steps ends early, wherever the schedule is
    assert [row["lr"] for row in run.shown.epochs] == [expected[STEPS - 1][1]]


def test_a_skipped_update_moves_neither_the_schedule_nor_the_average(tmp_path: Path) -> None:
    """As fp16 does when its gradients overflow."""
    skipped = {2, 3, 6}

    def skip(run: Run) -> None:
        optimizer, progress = run.trainer.train_step.optimizer, run.trainer.progress

        class Skipping:
            step_was_skipped = False

            def step(self) -> None:
                self.step_was_skipped = progress.step + 1 in skipped
                if not self.step_was_skipped:
                    optimizer.step()

            def zero_grad(self) -> None:
                optimizer.zero_grad()

        run.trainer.train_step.optimizer = Skipping()

    run = start(config({"schedule": "linear", "ema": 0.5}, log_steps=1), tmp_path, before=skip)
    assert run.trainer.progress.scaler_skips == 3
    assert run.trainer.state.ema is not None
    assert int(run.trainer.state.ema.n_averaged) == 2 * STEPS - 3
    rates = [lr_at(clock, 2 * STEPS, run.trainer.config.optim) for clock in (0, 1, 1, 1, 2, 3, 3, 4)]
    assert run.values("lr") == list(zip(range(1, 9), rates, strict=True))
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    with start_runtime(run.trainer.config, Topology()) as runtime:
        resumed = build(run.trainer.config, runtime, resume=saved)
    assert (resumed.train_step.lr, resumed.progress.scaler_skips) == (rates[-1], 3)


# Stop and go on

VARIANTS: dict[str, Config] = {
    "sgd": config({"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": config({"name": "adam"}, model="convnet"),
    "adamw": config({"name": "adamw", "schedule": "onecycle", "warmup": 0.3}),
    "muon": config({"name": "muon", "weight_decay": 0.1, "momentum": 0.9}),
    "ema": config({"name": "adamw", "ema": 0.9}),
    "augmentation": config({"name": "adamw"}, {"shift": 2.0, "rotate": 15.0, "scale": 0.1, "shear": 5.0}),
    "accumulation": config({"name": "adamw", "clip": 0.5, "label_smoothing": 0.1}, accumulate=4),
    "default net, bf16": config({"name": "adamw"}, model="unshuffle", precision="bf16"),
    "evaluations": config({"name": "adamw"}, eval_steps=3, log_steps=1),
    "drop_last": config({"name": "adamw"}, {"drop_last": True}, log_steps=50),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_after_every_step_a_run_ends_as_if_undisturbed(tmp_path: Path, variant: str) -> None:
    """In the middle of an epoch, at its end, and at the run's end: the same bits and the same rows."""
    settings = VARIANTS[variant]
    whole = start(settings, tmp_path / "whole")
    total = whole.trainer.state.total_steps

    rows: list[Row] = []
    newest: Path | None = None
    for step in range(1, total + 1):
        run = start(settings, tmp_path / "stopped", resume=newest, before=stop_after(step))
        rows += run.rows
        assert run.stopped
        newest = newest_checkpoint(tmp_path / "stopped", pytest.fail)
        assert newest is not None
        assert step_of(newest) == run.trainer.progress.step == step
    end = start(settings, tmp_path / "stopped", resume=newest)

    assert not end.stopped
    assert end.sha256 == whole.sha256
    assert weights_sha256(end.trainer.state.model) == weights_sha256(whole.trainer.state.model)
    assert comparable(rows + end.rows) == comparable(whole.rows)
    ends = [replace(run.trainer.progress, seconds=0.0) for run in (end, whole)]
    assert ends[0] == ends[1]
    assert {total, int(end.trainer.progress.best["step"])} <= set(steps_of(tmp_path / "stopped"))


@pytest.mark.parametrize("data", [DATA, WITHOUT_VAL], ids=["val", "test"])
def test_a_stop_during_any_evaluation_is_obeyed_and_leaves_it_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Splits
) -> None:
    """At steps 3 and 6 by eval_steps, at 4 by the epoch's end, and at 7 by max_steps."""
    settings = config({"name": "adamw"}, eval_steps=3, max_steps=7)
    whole = start(settings, tmp_path / "whole", data)

    evaluate = trainer_module.evaluate
    disturbed: list[int] = []

    def disturb(run: Run) -> None:
        def ask(*arguments: Any) -> Any:
            if run.trainer.progress.step not in disturbed:
                disturbed.append(run.trainer.progress.step)
                run.trainer.runtime.request_stop()
            return evaluate(*arguments)

        monkeypatch.setattr(trainer_module, "evaluate", ask)

    rows: list[Row] = []
    newest: Path | None = None
    for step in (3, 4, 6, 7):
        run = start(settings, tmp_path / "stopped", data, resume=newest, before=disturb)
        rows += run.rows
        assert run.stopped
        newest = list_checkpoints(tmp_path / "stopped")[-1]
        assert step_of(newest) == step
    end = start(settings, tmp_path / "stopped", data, resume=newest, before=disturb)
    assert not end.stopped
    assert disturbed == [3, 4, 6, 7]
    assert end.sha256 == whole.sha256
    assert comparable(rows + end.rows) == comparable(whole.rows)


def test_max_steps_may_be_raised_later(tmp_path: Path) -> None:
    settings = config({"name": "adamw", "schedule": "cosine"})
    whole = start(settings, tmp_path / "whole")
    short = settings.model_copy(update={"train": settings.train.model_copy(update={"max_steps": 3})})
    first = start(short, tmp_path / "short")
    assert not first.stopped
    rest = start(settings, tmp_path / "short", resume=list_checkpoints(tmp_path / "short")[-1])
    assert rest.sha256 == whole.sha256
    assert rest.rows[-1]["step"] == 2 * STEPS


def test_going_on_from_the_end_changes_nothing(tmp_path: Path) -> None:
    settings = config(max_steps=3)
    first = start(settings, tmp_path)
    (checkpoint,) = list_checkpoints(tmp_path)
    written = checkpoint.stat().st_ino
    again = start(settings, tmp_path, resume=checkpoint)
    assert (again.rows, again.sha256) == ([], first.sha256)
    assert again.trainer.held_out_metrics == first.trainer.held_out_metrics is not None
    assert checkpoint.stat().st_ino == written


def test_rates_and_seconds_go_on_from_where_they_were(tmp_path: Path) -> None:
    """A run that was stopped for long, or trained for long before, shows the speed of now."""
    settings = config({"schedule": "linear"})
    start(settings, tmp_path, before=stop_after(STEPS))
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    saved.state["progress"]["seconds"] = 1e6
    run = start(settings, tmp_path, resume=saved)
    assert run.values("images_per_second")[0][1] > 1
    assert 1e6 < run.trainer.progress.seconds < 1e6 + 60
    # The stop came before the first epoch was finished: its row still shows the rate of its last update.
    assert run.shown.epochs[0]["lr"] == pytest.approx(lr_at(STEPS - 1, 2 * STEPS, settings.optim))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    start(config(max_steps=1), tmp_path)
    with pytest.raises(
        UserError, match=r"^here/model\.safetensors: body\.0\.weight is .* \(10, 1, 5, 5\), the model's"
    ):
        start(config(model="convnet"), tmp_path, resume=list_checkpoints(tmp_path)[-1])


def test_a_checkpoint_beyond_the_end_of_an_epoch_is_refused(tmp_path: Path) -> None:
    """There is no batch to go on with, however long one looks for it."""
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


def test_a_checkpoint_that_cannot_be_written_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config({"name": "adamw"}, checkpoint_steps=1, keep=9)
    whole = start(settings, tmp_path / "whole")
    monkeypatch.setattr(async_writer, "save_checkpoint", failing_at(2, 3, 5))
    run = start(settings, tmp_path / "failed")
    assert run.shown.warnings == [
        f"checkpoint {step}: cannot be written; training goes on without it" for step in (2, 3, 5)
    ]
    assert run.sha256 == whole.sha256
    assert steps_of(tmp_path / "failed") == [1, 4, 6, 7, 8]


@pytest.mark.parametrize("how", ["at the end", "at a stop"])
def test_an_end_or_a_stop_without_its_checkpoint_is_a_failure_of_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    step = 2 * STEPS if how == "at the end" else 3
    monkeypatch.setattr(async_writer, "save_checkpoint", failing_at(step))
    with pytest.raises(TrainingError, match=rf"^checkpoint {step}: cannot be written$") as error:
        start(config(), tmp_path, before=stop_after(3) if how == "at a stop" else lambda run: None)
    assert error.value.everywhere
    assert steps_of(tmp_path) == ([STEPS] if how == "at the end" else [])


def test_what_is_written_is_what_was_there_when_it_was_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the disk takes: the weights have moved on by the time that the thread writes."""
    moved = threading.Event()
    save = async_writer.save_checkpoint

    def wait(root: Path, step: int, saved: CheckpointData) -> Path:
        if step == 3:
            assert moved.wait(30)
        return save(root, step, saved)

    settings = config({"name": "adamw", "ema": 0.9}, checkpoint_steps=3, keep=9)
    monkeypatch.setattr(async_writer, "save_checkpoint", wait)

    def release(run: Run) -> None:
        # The checkpoint of the epoch's end, at step 4, waits for this one: before that, one step is trained.
        run.shown.after_step = lambda done: moved.set() if done == STEPS else None

    whole = start(settings, tmp_path / "whole", before=release)
    rest = start(settings, tmp_path / "rest", resume=tmp_path / "whole" / "step-00000003")
    assert rest.sha256 == whole.sha256


# How long, and what is kept


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    run = start(config(max_steps=6, log_steps=50), tmp_path)
    at = run.trainer.progress
    assert (at.step, at.epoch, at.step_in_epoch, at.evaluated) == (6, 1, 2, 6)
    assert steps_of(tmp_path) == [4, 6]
    assert [step for step, _ in run.values("val.loss")] == [4, 6]
    # The last steps are recorded, however few: nothing else would show their loss.
    assert [step for step, _ in run.values("train.loss")] == [4, 6]
    assert [(row["step"], row["epoch"]) for row in run.rows] == [(4, 1), (4, 1), (4, 1), (6, 2), (6, 2)]


def test_max_steps_beyond_the_last_epoch_changes_nothing(tmp_path: Path) -> None:
    assert start(config(max_steps=99), tmp_path).trainer.progress.step == 2 * STEPS


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [4, 8]), (3, [3, 4, 6, 8]), (4, [4, 8]), (1, [1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_evaluations_and_checkpoints_come_when_asked_for(tmp_path: Path, every: int, steps: list[int]) -> None:
    evaluated = start(config(eval_steps=every, keep=9), tmp_path / "a")
    assert [step for step, _ in evaluated.values("val.loss")] == steps
    assert len(evaluated.shown.evaluations) == len(steps) - 2
    assert steps_of(tmp_path / "a") == [4, 8]
    saved = start(config(checkpoint_steps=every, keep=9), tmp_path / "b")
    assert [step for step, _ in saved.values("val.loss")] == [4, 8]
    assert steps_of(tmp_path / "b") == steps
    assert saved.sha256 == evaluated.sha256


def test_a_checkpoint_in_the_middle_of_an_epoch_goes_on_as_the_run_did(tmp_path: Path) -> None:
    settings = config({"name": "adamw"}, checkpoint_steps=3, eval_steps=3, keep=9)
    whole = start(settings, tmp_path / "whole")
    for step in (3, 6):
        rest = start(settings, tmp_path / str(step), resume=tmp_path / "whole" / f"step-{step:08d}")
        assert rest.sha256 == whole.sha256
        assert comparable(rest.rows) == comparable([row for row in whole.rows if row["step"] > step])


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies of six epochs: the second is best, and the fifth as good with a higher loss."""
    run = start(config(epochs=6, keep=2), tmp_path)
    assert run.trainer.progress.best["step"] in steps_of(tmp_path)

    results = iter([(3, 2.0), (9, 1.0), (9, 1.5), (5, 0.1), (9, 1.0), (8, 0.5)])
    evaluate = trainer_module.evaluate

    def pretend(*arguments: Any) -> Any:
        correct, loss = next(results)
        return replace(evaluate(*arguments), correct=correct, loss_sum=loss * 11)

    monkeypatch.setattr(trainer_module, "evaluate", pretend)
    run = start(config(epochs=6, keep=2), tmp_path / "pretended")
    assert run.trainer.progress.best == {"step": 2 * STEPS, "accuracy": 9 / 11, "loss": pytest.approx(1.0)}
    assert steps_of(tmp_path / "pretended") == [2 * STEPS, 5 * STEPS, 6 * STEPS]


def test_without_held_out_images_the_test_set_is_shown_and_nothing_is_chosen_on_it(tmp_path: Path) -> None:
    run = start(config(epochs=3, keep=1), tmp_path, WITHOUT_VAL)
    assert [step for step, _ in run.values("test.count")] == [4, 8, 12]
    assert {count for _, count in run.values("test.count")} == {7}
    assert not run.values("val.count")
    assert run.trainer.progress.best == {}
    assert steps_of(tmp_path) == [12]
    assert [row["split"] for row in run.shown.epochs] == ["test"] * 3


def test_drop_last_leaves_the_ragged_batch_out(tmp_path: Path) -> None:
    run = start(config(data={"drop_last": True}), tmp_path)
    assert (run.trainer.progress.step, run.trainer.progress.images) == (6, 96)
    assert run.values("epoch.train.count") == [(3, 48), (6, 48)]


def test_drop_last_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.drop_last=true leaves nothing: 50 training images .*batch_size=51"):
        start(config(data={"drop_last": True}, batch_size=51), tmp_path)


def test_a_few_batches_are_learned_by_heart(tmp_path: Path) -> None:
    """Unshuffled and unaugmented: two batches of random images, again and again."""
    adam = {"name": "adam", "lr": 0.003}
    settings = config(adam, {"shift": 14.0, "rotate": 180.0, "val_size": 5}, overfit_batches=2, epochs=25, batch_size=8)
    run = start(settings, tmp_path, split(DATA.train, DATA.test, settings.data, 0, settings.train_limit))
    assert run.trainer.progress.step == 50
    assert run.values("epoch.train.count")[0] == (2, 16)
    assert run.values("epoch.train.loss")[-1][1] < 0.02
    assert run.values("epoch.train.accuracy")[-1][1] == 1.0


# What is recorded


def test_rows_hold_the_means_since_the_row_before(tmp_path: Path) -> None:
    """Every three steps and at the end of each epoch, by images: the last batch has two only."""
    settings = config(log_steps=3)
    run = start(settings, tmp_path)
    _, losses = train_by_hand(settings, epochs=2)
    sizes = [16, 16, 16, 2] * 2

    def mean(first: int, last: int) -> float:
        """Over the images of the batches first..last, counted from 0."""
        total = sum(loss * size for loss, size in zip(losses[first:last], sizes[first:last], strict=True))
        return total / sum(sizes[first:last])

    expected = [(3, mean(0, 3)), (4, mean(3, 4)), (6, mean(4, 6)), (8, mean(6, 8))]
    found = run.values("train.loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    whole = run.values("epoch.train.loss")
    assert [step for step, _ in whole] == [4, 8]
    assert [loss for _, loss in whole] == pytest.approx([mean(0, 4), mean(4, 8)], rel=1e-5)
    assert run.values("epoch.train.count") == [(4, IMAGES), (8, IMAGES)]
    assert all(0 <= accuracy <= 1 for _, accuracy in run.values("train.accuracy"))
    assert all(rate > 0 for _, rate in run.values("images_per_second"))
    assert [row["epoch"] for row in run.rows if "train.loss" in row] == [1, 1, 2, 2]
    assert [row["epoch"] for row in run.shown.epochs] == [1, 2]


def test_rows_say_how_fast_the_steps_since_the_row_before_were(tmp_path: Path) -> None:
    """The same time by steps, by images and by operations; a run that goes on counts from there."""
    settings = config(log_steps=3)
    first = start(settings, tmp_path, before=stop_after(2))
    assert first.stopped
    rest = start(settings, tmp_path, resume=list_checkpoints(tmp_path)[-1])
    flops = 3 * count_flops(create_model("basic"))
    rows = [row for row in first.rows + rest.rows if "train.loss" in row]
    assert [row["step"] for row in rows] == [3, 4, 6, 8]
    for row, images in zip(rows, [16, 2, 16, 9], strict=True):  # of a step, on average
        assert row["step_seconds"] * row["images_per_second"] == pytest.approx(images)
        assert row["flops_per_second"] == pytest.approx(flops * row["images_per_second"])
        assert 1e6 < row["memory.peak_bytes"] < 1e12
        assert "mfu" not in row  # nobody measured the peak


def test_rows_say_how_large_the_gradients_were_before_they_were_clipped(tmp_path: Path) -> None:
    """At rate 1, plain SGD moves the weights by the gradient; clipped to nothing, it stays at the first one."""

    def norms(clip: float, name: str) -> dict[str, list[tuple[int, Any]]]:
        run = start(config({"lr": 1.0 if clip == 0 else 1e-9, "clip": clip}, max_steps=4), tmp_path / name)
        return {key: run.values(key) for key in ("gradient.norm", "gradient.norm_max")}

    sizes, _ = update_sizes(config({"lr": 1.0}, max_steps=4), tmp_path / "sizes")
    free, clipped = norms(0.0, "free"), norms(1e-6, "clipped")
    assert free["gradient.norm"] == [(3, pytest.approx(sum(sizes[:3]) / 3)), (4, pytest.approx(sizes[3]))]
    assert free["gradient.norm_max"] == [(3, pytest.approx(max(sizes[:3]))), (4, pytest.approx(sizes[3]))]
    assert min(norm for _, norm in clipped["gradient.norm"]) > 0.1
    assert not any(key.startswith("step_seconds.") for row in start(config(), tmp_path / "one").rows for key in row)


def test_evaluations_count_every_image_once_whatever_the_batch(tmp_path: Path) -> None:
    def evaluate(size: int) -> list[Row]:
        settings = config(eval_batch_size=size)
        with start_runtime(settings, Topology()) as runtime:
            trainer = build(settings, runtime)
            rows = [trainer.evaluate(name).row(name) for name in ("train", "val", "test")]
            assert trainer.state.model.training  # again
            return rows

    rows = evaluate(4)
    assert [rows[0]["train.count"], rows[1]["val.count"], rows[2]["test.count"]] == [IMAGES, 11, 7]
    for size in (1, 11, 1000):
        for row, other in zip(rows, evaluate(size), strict=True):
            assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("train", [{"log_steps": 2}, {"log_steps": 50}, {"log_steps": 50, "max_steps": 3}])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, train: dict[str, int]) -> None:
    """However seldom rows are logged, and before a checkpoint of it becomes the newest."""
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
