"""Updates whose gradient is not finite: skipped on the device, and then what train.nonfinite says.

The gradient is the same on every rank, so all ranks decide alike without an exchange. No step waits for the device: the
host learns of skipped updates at the next row, checkpoint, evaluation or stop. The weights of every checkpoint are
finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_dist.training.state import TrainingState
from mnist_dist.utils.errors import TrainingError

MAX_STREAK = 50  # updates skipped in a row, after which going on would be no training
MAX_ROLLBACKS = 5


@dataclass(frozen=True)
class NonfiniteSteps:
    """Updates that were skipped since the host last looked."""

    count: int
    first: int
    """Number of the first one's batch; -1 without one."""
    streak: int
    """How many were skipped in a row up to now."""

    def describe(self, step: int, images: int) -> str:
        """What was found at a step, for the user.

        Args:
            images: number of images whose loss was not finite.
        """
        if self.count:
            return f"the gradient was not finite in {self.count} of the steps from {self.first + 1} to {step}"
        return f"the loss of {images} images was not finite in the steps up to {step}"


class NonfiniteGuard:
    """Protects an optimizer and a model's buffers (statistics of batch norms) from a gradient that is not finite.

    The optimizer must obey `found_inf`, as torch's fused ones and MuonAdamW do: a tensor () that is 1 if the update is
    to be skipped.

    Args:
        active: False in fp16: there the gradient scaler skips updates, and infinite gradients are ordinary.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, active: bool) -> None:
        self.active, self.optimizer = active, optimizer
        self.buffers = list(model.buffers())
        self.saved_buffers: list[Tensor] = []
        self.steps: list[int] = []  # since the host last looked
        self.nonfinite: list[Tensor] = []  # for each of them, bool () on the device
        self.streak = 0

    def before_forward(self) -> None:
        """Save what a forward pass changes. Call it before each forward pass."""
        self.saved_buffers = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def before_update(self, step: int, norm: Tensor) -> None:
        """Let the next update be skipped if the gradient is not finite. Call it before each update.

        Args:
            step: number of the batch.
            norm: L2 norm of the whole gradient, a tensor ().
        """
        if not self.active:
            return
        nonfinite = ~torch.isfinite(norm)
        self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        for buffer, saved in zip(self.buffers, self.saved_buffers, strict=True):
            buffer.copy_(torch.where(nonfinite, saved, buffer))
        self.steps.append(step)
        self.nonfinite.append(nonfinite)

    def take(self) -> NonfiniteSteps:
        """The updates skipped since the last call. Waits for the device."""
        nonfinite = torch.stack(self.nonfinite).tolist() if self.nonfinite else []
        skipped = [step for step, is_skipped in zip(self.steps, nonfinite, strict=True) if is_skipped]
        for is_skipped in nonfinite:
            self.streak = self.streak + 1 if is_skipped else 0
        self.steps, self.nonfinite = [], []
        return NonfiniteSteps(len(skipped), skipped[0] if skipped else -1, self.streak)


@dataclass(frozen=True)
class Rollback:
    """Why a run must return to its last checkpoint, for the user, and the number of the batch to skip from then on."""

    reason: str
    skip_batch: int


def apply_policy(guard: NonfiniteGuard, state: TrainingState, warn: Callable[[str], None]) -> Rollback | None:
    """Do what train.nonfinite says about the updates skipped since the last call. Every rank must call it.

    Returns:
        The rollback, the same on every rank, if that is what it says.

    Raises:
        TrainingError: the run must not go on, or cannot.
    """
    progress, config = state.progress, state.config
    policy, found = config.train.nonfinite, guard.take()
    images = state.reduce_counts(state.window).nonfinite
    # In fp16 only losses tell: its gradients overflow as a matter of course, and its scaler skips them.
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
        warn(f"{reason}; these updates were left out")
        return None
    return Rollback(reason, found.first if found.count else progress.step - 1)
