"""Gradients that are not finite: the optimizer skips the update on the device, and then train.nonfinite is applied.

The gradient is the same on every rank, so all ranks decide alike without communication. No step waits for the device:
the host reads which updates were skipped at the next row, checkpoint, evaluation or stop. The weights of every
checkpoint are finite.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_dist.distributed.runtime import Runtime
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.state import TrainingState
from mnist_dist.utils.errors import TrainingError

MAX_STREAK = 50  # consecutive skipped updates after which the run ends; in fp16 the scale is then 2**-50 of its first
MAX_ROLLBACKS = 5  # the next one ends the run instead


@dataclass(frozen=True)
class NonfiniteSteps:
    """Updates that were skipped since the last call of `NonfiniteGuard.pop_skipped`."""

    count: int
    first: int
    """Number of the first one's batch, from 0; -1 if none was skipped."""
    streak: int
    """Consecutive skipped updates up to now, those of earlier calls included."""

    def describe(self, what: str, step: int) -> str:
        """The problem in words, for an error or a warning.

        Args:
            what: what was not finite.
            step: the current step.
        """
        return f"{what} was not finite in {self.count} of the steps from {self.first + 1} to {step}"


class NonfiniteGuard:
    """Skips updates whose gradient is not finite, and restores the model's buffers (running statistics) then.

    In fp16 the gradient scaler skips them instead. Infinite gradients are normal there, and make it lower its scale:
    only batches with a loss that is not finite count as skipped here.

    Args:
        model: the model that the optimizer updates.
        optimizer: must support `found_inf`, as those of `build_optimizer` do: a tensor () that is 1 to skip the update.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, runtime: Runtime) -> None:
        self.optimizer, self.runtime = optimizer, runtime
        self.has_scaler = runtime.mixed_precision.name == "fp16"
        self.buffers = list(model.buffers())
        self.saved_buffers: list[Tensor] = []
        self.steps: list[int] = []  # numbers of the batches since the last call of `pop_skipped`
        self.nonfinite: list[Tensor] = []  # for each of them, bool () on the device; in fp16 of this rank's images only
        self.streak = 0
        self.scaler_streak = 0  # consecutive updates up to now that the gradient scaler skipped

    def before_forward(self) -> None:
        """Save the buffers, which a forward pass changes. Call it before each forward pass."""
        self.saved_buffers = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def before_update(self, step: int, norm: Tensor, losses: list[Tensor]) -> Tensor | None:
        """Make the optimizer skip the next update if the gradient is not finite. Call it before each update.

        Args:
            step: number of the batch, from 0.
            norm: L2 norm of the full gradient, a tensor () on the device.
            losses: losses of this rank's images, on the device.

        Returns:
            Whether the optimizer will skip it, bool () on the device; None in fp16, where the scaler decides.
        """
        self.steps.append(step)
        if self.has_scaler:
            self.nonfinite.append(~torch.cat([norm.new_zeros(1), *losses]).isfinite().all())
            return None
        nonfinite = ~torch.isfinite(norm)
        self.nonfinite.append(nonfinite)
        self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        for buffer, saved in zip(self.buffers, self.saved_buffers, strict=True):
            buffer.copy_(torch.where(nonfinite, saved, buffer))
        return nonfinite

    @torch.no_grad()
    def after_update(self, skipped_by_scaler: bool) -> None:
        """Restore the buffers if the gradient scaler skipped the update. Call it after each update."""
        self.scaler_streak = self.scaler_streak + 1 if skipped_by_scaler else 0
        if not skipped_by_scaler:
            return
        for buffer, saved in zip(self.buffers, self.saved_buffers, strict=True):
            buffer.copy_(saved)

    def pop_skipped(self) -> NonfiniteSteps:
        """The updates skipped since the last call. Waits for the device. Every rank must call it."""
        nonfinite: list[bool] = []
        if self.nonfinite:
            flags = torch.stack(self.nonfinite)
            nonfinite = (self.runtime.all_reduce_max(flags.int()) if self.has_scaler else flags).tolist()
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


def apply_policy(
    guard: NonfiniteGuard, state: TrainingState, window: Metrics, warn: Callable[[str], None]
) -> Rollback | None:
    """Apply train.nonfinite to the updates that were skipped since the last call. Every rank must call it.

    Args:
        window: metrics since the last row.
        warn: takes one line if updates were skipped and training goes on.

    Returns:
        With train.nonfinite=rollback, the rollback to do, the same on every rank; None if there is nothing to do.

    Raises:
        TrainingError: train.nonfinite=raise, or too many updates were skipped in a row (in fp16 whatever
            train.nonfinite says), or too many rollbacks.
    """
    progress, config = state.progress, state.config
    policy, found = config.train.nonfinite, guard.pop_skipped()
    if guard.scaler_streak >= MAX_STREAK > found.streak:
        scale = state.runtime.mixed_precision.state_dict()["scale"]
        raise TrainingError(
            f"the fp16 gradient overflowed in {guard.scaler_streak} updates in a row up to step {progress.step}, "
            f"at last with the loss scaled by {scale:.3g} (they changed no weight): no scale helps; use "
            "--train.precision=bf16 or no",
            everywhere=True,
        )
    reason = found.describe("the loss" if guard.has_scaler else "the gradient", progress.step)
    if not found.count:
        if not (window.nonfinite and policy == "raise"):
            return None
        reason = f"the loss of {window.nonfinite} images was not finite in the steps up to {progress.step}"
    if policy == "raise" or found.streak >= MAX_STREAK or progress.rollbacks >= MAX_ROLLBACKS:
        # The anomaly detection would have ended the run at an operation whose gradient is nan: this one is infinite.
        find = "" if config.train.detect_anomaly else ", and find the operation with --train.detect_anomaly=true"
        raise TrainingError(
            f"{reason} (epoch {progress.epoch + 1}; it changed no weight; train.nonfinite={policy}); lower "
            f"optim.lr={config.optim.lr:g}, raise optim.warmup or set optim.clip{find}",
            everywhere=True,
        )
    if policy == "skip":
        if not guard.has_scaler:  # those of the scaler are in `scaler_skips` already
            progress.nonfinite_skips += found.count
        warn(f"{reason}; these updates were skipped")
        return None
    return Rollback(reason, found.first)


def anomaly_error(error: RuntimeError, step: int) -> TrainingError | None:
    """What train.detect_anomaly found, in one line, given torch's error; None for any other error.

    Args:
        step: number of the batch, from 0.
    """
    found = re.match(r"Function '(\w+?)(Backward\d*)?' returned nan values in its (\d+)th output", str(error))
    if found is None:
        return None
    return TrainingError(
        f"step {step + 1}: the gradient of the operation {found[1]} is nan (input {found[3]}; found by "
        "train.detect_anomaly); torch's warning above shows where the model calls it"
    )
