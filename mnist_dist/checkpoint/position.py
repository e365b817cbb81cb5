"""Where a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mnist_dist.training.metrics import Metrics


@dataclass
class Position:
    """Where a run is. With the weights and the optimizer's state, all there is to a checkpoint."""

    step: int = 0
    """Global batches learned from: the clock of the data."""
    skipped: int = 0
    """Of these, updates that fp16 skipped: `step - skipped` is the clock of the schedule."""
    left_out: int = 0
    """Of these, updates left out because their gradient was not finite."""
    rollbacks: int = 0
    """Returns to a checkpoint. Each one halves the learning rate."""
    avoided: list[int] = field(default_factory=list)
    """Batches, by step, that are not learned from because a rollback was due to them."""
    epoch: int = 0
    """The epoch in progress, counted from 0."""
    step_in_epoch: int = 0
    """Batches of it that are done."""
    evaluated: int = -1
    """Step of the last evaluation on the held-out set."""
    images: int = 0
    """Training images learned from."""
    seconds: float = 0.0
    """Time spent in training steps, without evaluations and checkpoints."""
    best: dict[str, float] = field(default_factory=dict)
    """step, accuracy and loss of the best checkpoint on the validation split; empty without one."""

    def note_best(self, metrics: Metrics) -> None:
        """Remember this step if it is the best on the validation split so far; one whose loss is nan never is."""
        if not math.isfinite(metrics.loss):
            return
        if not self.best or (metrics.accuracy, -metrics.loss) > (self.best["accuracy"], -self.best["loss"]):
            self.best = {"step": self.step, "accuracy": metrics.accuracy, "loss": metrics.loss}
