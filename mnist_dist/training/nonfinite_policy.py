"""What a run does about updates that were left out: the three values of train.nonfinite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mnist_dist.config.schema import Config
from mnist_dist.training.nonfinite import FiniteGuard
from mnist_dist.training.state import TrainingState
from mnist_dist.utils.errors import TrainingError

MAX_STREAK = 50  # updates left out one after the other, after which skipping more would be no training
MAX_ROLLBACKS = 5


@dataclass(frozen=True)
class Setback:
    """Why a run is to return to its last snapshot, in words, and the batch, by step, to leave out from then on."""

    what: str
    avoid: int


def judge(guard: FiniteGuard, state: TrainingState, config: Config, warn: Callable[[str], None]) -> Setback | None:
    """Act on the updates left out since the last call; what to return to a snapshot for, if train.nonfinite says so.

    Every process must call it, and all get the same.

    Raises:
        TrainingError: the run is not to go on, or cannot.
    """
    at, nonfinite = state.at, config.train.nonfinite
    left_out = guard.take()
    images = state.total(state.window).nonfinite
    # With fp16 only losses tell: its gradients overflow as a matter of course, and its scaler skips them.
    if not left_out.count and not (images and (nonfinite == "raise" or not guard.active)):
        return None
    what = left_out.describe(at.step, images)
    if nonfinite == "raise" or left_out.streak >= MAX_STREAK or at.rollbacks >= MAX_ROLLBACKS:
        raise TrainingError(
            f"{what} (epoch {at.epoch + 1}; it changed no weight; train.nonfinite={nonfinite}); lower "
            f"optim.lr={config.optim.lr:g}, raise optim.warmup or set optim.clip, and find the operation with "
            "--train.detect_anomaly=true",
            everywhere=True,
        )
    if nonfinite == "skip":
        at.left_out += left_out.count
        warn(f"{what}; these updates were left out")
        return None
    return Setback(what, left_out.first if left_out.count else at.step - 1)
