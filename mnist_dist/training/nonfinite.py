"""Updates whose gradient is not finite are left out, on the device, and noticed the next time that the host looks.

The gradient is the same on every process, so all decide alike without an exchange. No step waits for the device, and
the weights of every checkpoint are sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_dist.config.schema import Config
from mnist_dist.training.state import TrainingState
from mnist_dist.utils.errors import TrainingError


@dataclass(frozen=True)
class NonfiniteSteps:
    """Updates that were left out: how many, the number of the first one's batch, how many in a row up to now."""

    count: int
    first: int
    streak: int

    def describe(self, step: int, images: int) -> str:
        """What was noticed at a step, for the user; `images` had a loss that was not finite."""
        if self.count:
            return f"the gradient was not finite in {self.count} of the steps from {self.first + 1} to {step}"
        return f"the loss of {images} images was not finite in the steps up to {step}"


class NonfiniteGuard:
    """Keeps an optimizer and a model's buffers (the statistics of batch norms) from a gradient that is not finite.

    The optimizer must obey `found_inf`, as torch's fused ones and MuonAdamW do: a tensor () that is 1 where the update
    is to be left out.

    Args:
        active: False leaves all to a gradient scaler (fp16), to which infinite gradients are ordinary.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, active: bool) -> None:
        self.active, self.optimizer = active, optimizer
        self.buffers = list(model.buffers())
        self.kept: list[Tensor] = []
        self.steps: list[int] = []  # since the host looked
        self.bad: list[Tensor] = []  # of each of them, whether its gradient was not finite, on the device
        self.streak = 0

    def before(self) -> None:
        """Remember what a forward pass changes. Call it before each one."""
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def decide(self, step: int, norm: Tensor) -> None:
        """Have the next update left out if the gradient is not finite. Call it before each one.

        Args:
            step: number of the batch.
            norm: L2 norm of the whole gradient, a tensor ().
        """
        if not self.active:
            return
        bad = ~torch.isfinite(norm)
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(torch.where(bad, kept, buffer))
        self.steps.append(step)
        self.bad.append(bad)

    def take(self) -> NonfiniteSteps:
        """The updates left out since the last call. CommTimer for the device."""
        bad = torch.stack(self.bad).tolist() if self.bad else []
        nonfinite_skips = [step for step, is_bad in zip(self.steps, bad, strict=True) if is_bad]
        for is_bad in bad:
            self.streak = self.streak + 1 if is_bad else 0
        self.steps, self.bad = [], []
        return NonfiniteSteps(len(nonfinite_skips), nonfinite_skips[0] if nonfinite_skips else -1, self.streak)


MAX_STREAK = 50  # updates left out one after the other, after which skipping more would be no training


MAX_ROLLBACKS = 5


@dataclass(frozen=True)
class Rollback:
    """Why a run is to return to its last snapshot, in words, and the batch, by step, to leave out from then on."""

    what: str
    avoid: int


def apply_policy(
    guard: NonfiniteGuard, state: TrainingState, config: Config, warn: Callable[[str], None]
) -> Rollback | None:
    """Act on the updates left out since the last call; what to return to a snapshot for, if train.nonfinite says so.

    Every process must call it, and all get the same.

    Raises:
        TrainingError: the run is not to go on, or cannot.
    """
    progress, nonfinite = state.progress, config.train.nonfinite
    nonfinite_skips = guard.take()
    images = state.total(state.window).nonfinite
    # With fp16 only losses tell: its gradients overflow as a matter of course, and its scaler skips them.
    if not nonfinite_skips.count and not (images and (nonfinite == "raise" or not guard.active)):
        return None
    what = nonfinite_skips.describe(progress.step, images)
    if nonfinite == "raise" or nonfinite_skips.streak >= MAX_STREAK or progress.rollbacks >= MAX_ROLLBACKS:
        raise TrainingError(
            f"{what} (epoch {progress.epoch + 1}; it changed no weight; train.nonfinite={nonfinite}); lower "
            f"optim.lr={config.optim.lr:g}, raise optim.warmup or set optim.clip, and find the operation with "
            "--train.detect_anomaly=true",
            everywhere=True,
        )
    if nonfinite == "skip":
        progress.nonfinite_skips += nonfinite_skips.count
        warn(f"{what}; these updates were left out")
        return None
    return Rollback(what, nonfinite_skips.first if nonfinite_skips.count else progress.step - 1)
