"""Training steps on one rank: gradients, clipping, augmentation, the average of weights, learning rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from recorded_run import DATA, IMAGES, STEPS, Run, build, comparable, config, start, train_by_hand, update_norms

from mnist_dist.checkpoint.manager import list_checkpoints, load_verified
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.optim.lr_schedule import lr_at


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
    saved = load_verified(list_checkpoints(tmp_path)[-1]).parse()
    with start_runtime(run.trainer.config, Topology()) as runtime:
        resumed = build(run.trainer.config, runtime, resume=saved)
    assert (resumed.train_step.lr, resumed.progress.scaler_skips) == (rates[-1], 3)
