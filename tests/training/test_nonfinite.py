"""An update that is not finite: it changes nothing, is noticed, and the run does what train.nonfinite says."""

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

from mnist_dist.checkpoint.manager import list_checkpoints, load_checkpoint, newest_checkpoint, step_of
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
    "whole batch": ("--train.shards=0", "--train.accumulate=2"),
    "bf16": ("--train.precision=bf16",),
}


class Allergic(ImageClassifier):
    """A net with batch norm that gives nan, in training, for images whose first pixel is white."""

    def __init__(self) -> None:
        body = nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        super().__init__(body, nn.Linear(4 * 8 * 8, 10))

    def forward(self, images: Tensor) -> Tensor:
        white = (images[:, :1, 0, 0] > 2.5) & self.training
        return super().forward(images * torch.where(white, torch.nan, 1.0)[..., None, None])


def images(count: int, seed: int, white: int | None = None) -> ImageSet:
    """Random images, none with a white first pixel but the one with this index."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(200, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    if white is not None:
        pixels[white, 0, 0, 0] = 255
    return ImageSet(pixels, torch.randint(10, (count,), generator=generator))


class Listener(Console):
    """Keeps warnings, and does something after each step."""

    def __init__(self, after_step: Callable[[int], None]) -> None:
        self.after_step, self.warnings = after_step, list[str]()

    def progress(self, step: int, epoch: int) -> None:
        self.after_step(step)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class Run:
    """What a run left, also one that failed."""

    trainer: Trainer
    rows: list[dict[str, Any]]
    warnings: list[str]
    error: str = ""
    stopped: bool = False

    @property
    def sha256(self) -> tuple[str, str]:
        return weights_sha256(self.trainer.state.model), weights_sha256(self.trainer.state.eval_model)


def train(
    arguments: tuple[str, ...],
    folder: Path,
    poison: int | None,
    avoid: tuple[int, ...] = (),
    after_step: Callable[[Trainer, int], None] = lambda trainer, step: None,
) -> Run:
    """Train, from the folder's newest checkpoint if there is one, on images of which one may be poisonous.

    Args:
        poison: the position in the first epoch's order of that image.
        avoid: batches to leave out from the start.
    """
    config: Config = load([*SMALL, *arguments]).config
    order = GlobalBatchSampler(IMAGES, BATCH, seed=config.run.seed).permutation()
    nothing = ImageSet(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    data = Splits(images(IMAGES, 0, None if poison is None else int(order[poison])), nothing, images(20, 1))
    with start_runtime(config, Topology()) as runtime:
        torch.manual_seed(0)
        console = Listener(lambda step: after_step(run.trainer, step))
        newest, rows = newest_checkpoint(folder, pytest.fail), list[dict[str, Any]]()
        resume = load_checkpoint(newest) if newest else None
        model = runtime.to_device(Allergic())
        trainer = build_trainer(config, runtime, model, data, console, folder, rows=rows, resume=resume)
        run = Run(trainer, rows, console.warnings)
        run.trainer.progress.skip_batches = [*run.trainer.progress.skip_batches, *avoid]
        try:
            run.trainer.train()
        except TrainingError as error:
            run.error = str(error) if error.everywhere else "not raised everywhere"
        except Stopped:
            run.stopped = True
        return run


def comparable(rows: list[dict[str, Any]], keys: tuple[str, ...] = ("test.loss", "test.correct", "lr")) -> list[Any]:
    """What rows say that two runs must share."""
    return [(row["step"], {key: row[key] for key in keys if key in row}) for row in rows]


def second_step_of_second_epoch(poison: int) -> int:
    """In which batch of the second epoch the image comes that comes at this position in the first."""
    sampler = GlobalBatchSampler(IMAGES, BATCH)
    image = sampler.permutation()[poison]
    sampler.set_epoch(1)
    return STEPS + int((sampler.permutation() == image).nonzero()) // BATCH


POISON = 20  # in the second batch
AGAIN = second_step_of_second_epoch(POISON)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_that_is_not_finite_changes_nothing(tmp_path: Path, optimizer: str) -> None:
    """Skipping what a poisoned batch asks for is, bit for bit, never to have computed it."""
    arguments = OPTIMIZERS[optimizer]
    skipped = train((*arguments, "--train.nonfinite=skip"), tmp_path / "skip", POISON)
    if "--optim.ema=0.9" in arguments:  # the average follows weights that stand still
        skip_batches = train(arguments, tmp_path / "avoid", None, avoid=(1, AGAIN))
        assert skipped.sha256[0] == skip_batches.sha256[0]
    else:
        skip_batches = train(arguments, tmp_path / "avoid", POISON, avoid=(1, AGAIN))
        assert skipped.sha256 == skip_batches.sha256
        assert comparable(skipped.rows) == comparable(skip_batches.rows)
    assert (skipped.trainer.progress.nonfinite_skips, skip_batches.trainer.progress.nonfinite_skips) == (2, 0)
    assert [text.split(";")[0] for text in skipped.warnings] == [
        f"the gradient was not finite in 1 of the steps from {first + 1} to {noticed}"
        for first, noticed in ((1, 3), (AGAIN, STEPS + 2 if AGAIN < STEPS + 2 else 2 * STEPS))
    ]
    assert all(tensor.isfinite().all() for tensor in skipped.trainer.state.model.state_dict().values())


def test_the_first_update_of_all_may_be_the_one(tmp_path: Path) -> None:
    """Where the fused kernels would go on from memory that nobody has set."""
    for name in ("sgd", "adamw", "muon"):
        arguments = (f"--optim.name={name}", "--train.nonfinite=skip", "--train.max_steps=3")
        skipped = train(arguments, tmp_path / name, 0)
        skip_batches = train(arguments, tmp_path / f"{name}-avoided", 0, avoid=(0,))
        assert skipped.sha256 == skip_batches.sha256
        assert skipped.trainer.progress.nonfinite_skips == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_raise_ends_the_run_before_anything_is_saved_or_recorded_of_it(tmp_path: Path, optimizer: str) -> None:
    arguments = (*OPTIMIZERS[optimizer], "--train.checkpoint_steps=1", "--tracking.log_steps=50", "--train.keep=9")
    run = train(arguments, tmp_path, POISON)
    assert run.error.startswith("the gradient was not finite in 1 of the steps from 2 to 2 (epoch 1;")
    assert "--train.detect_anomaly=true" in run.error
    assert len(run.error.splitlines()) == 1
    assert run.rows == []
    (saved,) = list_checkpoints(tmp_path)
    assert step_of(saved) == 1
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(saved).model.values())


def test_the_host_looks_only_where_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a row, at a checkpoint, before an evaluation, before a stop."""
    steps: list[int] = []
    take = NonfiniteGuard.pop_skipped

    def note(guard: NonfiniteGuard) -> Any:
        steps.append(run_at[0].progress.step)
        return take(guard)

    run_at: list[Trainer] = []
    monkeypatch.setattr(NonfiniteGuard, "pop_skipped", note)
    train((), tmp_path, None, after_step=lambda trainer, step: run_at.append(trainer))
    assert steps == [3, 4, 6, 8]


def test_skipping_goes_on_after_a_stop_at_any_step_as_if_undisturbed(tmp_path: Path) -> None:
    arguments = ("--train.nonfinite=skip",)
    whole = train(arguments, tmp_path / "whole", POISON)
    rows: list[dict[str, Any]] = []
    for step in range(1, 2 * STEPS + 1):
        ask = lambda trainer, done, step=step: trainer.runtime.request_stop() if done == step else None  # noqa: E731
        run = train(arguments, tmp_path / "stopped", POISON, after_step=ask)
        assert run.stopped
        rows += run.rows
    end = train(arguments, tmp_path / "stopped", POISON)
    assert end.sha256 == whole.sha256
    assert comparable(rows + end.rows) == comparable(whole.rows)
    assert end.trainer.progress.nonfinite_skips == whole.trainer.progress.nonfinite_skips == 2


def test_skipping_without_end_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "MAX_STREAK", 5)
    run = train(
        ("--train.nonfinite=skip", "--optim.lr=1e30", "--optim.schedule=constant", "--optim.warmup=0"), tmp_path, None
    )
    assert run.error.startswith("the gradient was not finite in 2 of the steps from 5 to 6 ")
    assert "train.nonfinite=skip" in run.error


# Rollback


def test_a_rollback_goes_on_from_the_last_checkpoint_at_half_the_rate_without_the_batch(tmp_path: Path) -> None:
    """Poisoned in the second step of each epoch or so; a checkpoint at each epoch's end."""
    run = train(("--train.nonfinite=rollback", "--tracking.log_steps=1"), tmp_path / "rollback", POISON)
    assert not run.error
    assert (
        run.trainer.progress.rollbacks,
        run.trainer.progress.skip_batches,
        run.trainer.progress.nonfinite_skips,
    ) == (2, [1, AGAIN], 0)
    assert [text.split("; ")[1] for text in run.warnings] == [
        "went back to step 0, to go on at half the rate, without the first such batch",
        "went back to step 4, to go on at half the rate, without the first such batch",
    ]
    # Once each: the rows of what was undone are gone.
    assert [row["step"] for row in run.rows if "train.loss" in row] == list(range(1, 2 * STEPS + 1))
    # The first epoch at half the rate, the second at a quarter of it.
    plain = train(("--tracking.log_steps=1",), tmp_path / "plain", None)
    rates = [[row["lr"] for row in rows if "lr" in row] for rows in (run.rows, plain.rows)]
    assert rates[0] == [rate / (2 if step < STEPS else 4) for step, rate in enumerate(rates[1])]
    by_hand = train(("--optim.lr=0.005", "--train.max_steps=4"), tmp_path / "by hand", POISON, avoid=(1,))
    first = load_checkpoint(tmp_path / "rollback" / "step-00000004")
    for name, tensor in by_hand.trainer.state.model.state_dict().items():
        assert tensor.equal(first.model[name]), name


@pytest.mark.parametrize("ended_at", range(1, 2 * STEPS + 1))
def test_a_run_killed_at_any_step_rolls_back_as_one_undisturbed(tmp_path: Path, ended_at: int) -> None:
    """Nothing is written when it is killed: what was not saved yet happens again."""
    arguments = ("--train.nonfinite=rollback", "--train.checkpoint_steps=2", "--optim.ema=0.9")
    whole = train(arguments, tmp_path / "whole", POISON)

    def kill(trainer: Trainer, step: int) -> None:
        if step == ended_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(arguments, tmp_path / "killed", POISON, after_step=kill)
    end = train(arguments, tmp_path / "killed", POISON)
    assert end.sha256 == whole.sha256
    assert (end.trainer.progress.rollbacks, end.trainer.progress.skip_batches) == (
        whole.trainer.progress.rollbacks,
        whole.trainer.progress.skip_batches,
    )


def test_rollbacks_come_to_an_end(tmp_path: Path) -> None:
    """Where no rate is low enough."""
    run = train(("--train.nonfinite=rollback", "--optim.lr=1e30", "--optim.warmup=0"), tmp_path, None)
    assert len(run.warnings) == 5
    assert "train.nonfinite=rollback" in run.error
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [4]


def test_the_progress_survives_a_checkpoint(tmp_path: Path) -> None:
    train(("--train.nonfinite=rollback", "--train.max_steps=6"), tmp_path, POISON)
    progress = json.loads((list_checkpoints(tmp_path)[-1] / "state.json").read_text())["progress"]
    assert (progress["rollbacks"], progress["skip_batches"][0]) == (1 + (AGAIN < 6), 1)
