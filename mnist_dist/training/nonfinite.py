"""Gradients that are not finite: the optimizer skips the update on the device, and then train.nonfinite is applied.

The gradient is the same on every rank, so all ranks decide alike without communication. No step waits for the device:
the host reads which updates were skipped at the next row, checkpoint, evaluation or stop. The weights of every
checkpoint are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_dist.training.state import TrainingState
from mnist_dist.utils.errors import TrainingError

MAX_STREAK = 50  # consecutive skipped updates after which the run ends
MAX_ROLLBACKS = 5  # the next one ends the run instead


@dataclass(frozen=True)
class NonfiniteSteps:
    """Updates that were skipped since the last call of `NonfiniteGuard.pop_skipped`."""

    count: int
    first: int
    """Number of the first one's batch, from 0; -1 if none was skipped."""
    streak: int
    """Consecutive skipped updates up to now, those of earlier calls included."""

    def describe(self, step: int, images: int) -> str:
        """The problem in words, for an error or a warning.

        Args:
            step: the current step.
            images: number of images whose loss was not finite.
        """
        if self.count:
            return f"the gradient was not finite in {self.count} of the steps from {self.first + 1} to {step}"
        return f"the loss of {images} images was not finite in the steps up to {step}"


class NonfiniteGuard:
    """Skips updates whose gradient is not finite, and restores the model's buffers (running statistics) then.

    Args:
        model: the model that the optimizer updates.
        optimizer: must support `found_inf`, as torch's fused optimizers and MuonAdamW do: a tensor () that is 1 to skip
            the update.
        active: False in fp16, where the gradient scaler skips updates, and infinite gradients are normal.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, active: bool) -> None:
        self.active, self.optimizer = active, optimizer
        self.buffers = list(model.buffers())
        self.saved_buffers: list[Tensor] = []
        self.steps: list[int] = []  # numbers of the batches since the last `take`
        self.nonfinite: list[Tensor] = []  # for each of them, bool () on the device
        self.streak = 0

    def before_forward(self) -> None:
        """Save the buffers, which a forward pass changes. Call it before each forward pass."""
        if self.active:
            self.saved_buffers = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def before_update(self, step: int, norm: Tensor) -> None:
        """Make the optimizer skip the next update if the gradient is not finite. Call it before each update.

        Args:
            step: number of the batch, from 0.
            norm: L2 norm of the full gradient, a tensor () on the device.
        """
        if not self.active:
            return
        nonfinite = ~torch.isfinite(norm)
        self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        for buffer, saved in zip(self.buffers, self.saved_buffers, strict=True):
            buffer.copy_(torch.where(nonfinite, saved, buffer))
        self.steps.append(step)
        self.nonfinite.append(nonfinite)

    def pop_skipped(self) -> NonfiniteSteps:
        """The updates skipped since the last call. Waits for the device."""
        nonfinite = torch.stack(self.nonfinite).tolist() if self.nonfinite else []
        skipped = [step for step, is_skipped in zip(self.steps, nonfinite, strict=True) if is_skipped]
        for is_skipped in nonfinite:
            self.streak = self.streak + 1 if is_skipped else 0
        self.steps, self.nonfinite = [], []
        return NonfiniteSteps(len(skipped), skipped[0] if skipped else -1, self.streak)


@dataclass(frozen=True)
class Rollback:
    """A decision to restore the last checkpoint."""

    reason: str
    """For the user."""
    skip_batch: int
    """Number of the batch to skip after that."""


def apply_policy(guard: NonfiniteGuard, state: TrainingState, warn: Callable[[str], None]) -> Rollback | None:
    """Apply train.nonfinite to the updates that were skipped since the last call. Every rank must call it.

    Args:
        warn: takes one line if updates were skipped and training goes on.

    Returns:
        With train.nonfinite=rollback, the rollback to do, the same on every rank; None if there is nothing to do.

    Raises:
        TrainingError: train.nonfinite=raise, or too many updates were skipped in a row, or too many rollbacks.
    """
    progress, config = state.progress, state.config
    policy, found = config.train.nonfinite, guard.pop_skipped()
    images = state.reduce_counts(state.window).nonfinite
    # In fp16 only the losses count: overflowing gradients are normal there, and the scaler skips them.
    if not found.count and not (images and (policy == "raise" or not guard.active)):
        return None
    reason = found.describe(progress.step, images)
    if policy == "raise" or found.streak >= MAX_STREAK or progress.rollbacks >= MAX_ROLLBACKS:
        raise TrainingError(
            f"{reason} (epoch {progress.epoch + 1}; it changed no weight; train.nonfinite={policy}); lower "
            f"optim.lr={config.optim.lr:g}, raise optim.warmup or set optim.clip, and find the operation with "
            "--train.detect_anomaly=true",
            everywhere=True,
        )
    if policy == "skip":
        progress.nonfinite_skips += found.count
        warn(f"{reason}; these updates were skipped")
        return None
    return Rollback(reason, found.first if found.count else progress.step - 1)
