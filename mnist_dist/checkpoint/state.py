"""What a checkpoint's state.json must hold. Its digest says that it is what was written, not that it makes sense."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mnist_dist.utils.strict_json import misfit

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # trackers make file names of it
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
BEST = {"step", "accuracy", "loss"}


@dataclass
class State:
    """state.json, key by key."""

    run_id: str
    position: Position
    ema_updates: int
    window: list[int]
    epoch_counts: list[int]
    norms: NormSums
    scaler: dict[str, float]
    config: dict[str, dict[str, Any]]
    machine: dict[str, str]
    """What decides how kernels round, where it was written."""


def check_state(state: dict[str, Any], step: int) -> None:
    """Check a parsed state.json of the checkpoint of this step.

    Raises:
        ValueError: a key is absent or unknown, or its value is of another type or out of range.
    """
    wrong = misfit(state, State, "the state") or contradiction(state, step)
    if wrong:
        raise ValueError(wrong)


def contradiction(state: dict[str, Any], step: int) -> str | None:
    """Which value cannot be, although it is of the right type; None if all can."""
    position, best, scaler = state["position"], state["position"]["best"], state["scaler"]
    if not RUN_ID.fullmatch(state["run_id"]):
        return "run_id is none"
    if position["step"] != step:
        return f"position.step is {position['step']} in the checkpoint of step {step}"
    start = asdict(Position())  # nothing falls below where it starts, and that is 0 or a number below
    for name, value in {**state, **position}.items():
        if name not in ("config", "machine", "position") and any(
            n < min([0, *numbers(start.get(name))]) for n in numbers(value)
        ):
            return f"{name} holds a number that is too small"
    for name in ("skipped", "epoch", "step_in_epoch", "evaluated"):
        if position[name] > step:
            return f"position.{name} is {position[name]} at step {step}"
    if best and (best.keys() != BEST or type(best["step"]) is not int or best["step"] > step):
        return "position.best does not name a checkpoint"
    if scaler and (scaler.keys() != SCALER or not all(scaler[name] for name in SCALER - {"_growth_tracker"})):
        return "scaler is not that of a gradient scaler"
    if len(state["window"]) != len(state["epoch_counts"]):
        return f"window holds {len(state['window'])} counts, epoch_counts {len(state['epoch_counts'])}"
    return None


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a value."""
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value


@dataclass
class NormSums:
    """What is known of the norms since the last row; plain numbers, for a checkpoint."""

    count: int = 0
    """Updates, those with a norm that is not finite among them."""
    nonfinite: int = 0
    """Updates whose norm is not finite."""
    total: float = 0.0
    """Sum of the finite ones, one added after the other: a run that goes on adds up as one that was not stopped."""
    most: float = 0.0
    """The largest of the finite ones."""


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

    def note_best(self, accuracy: float, loss: float) -> None:
        """Remember this step if it is the best on the validation split so far; one whose loss is nan never is."""
        if math.isfinite(loss) and (not self.best or (accuracy, -loss) > (self.best["accuracy"], -self.best["loss"])):
            self.best = {"step": self.step, "accuracy": accuracy, "loss": loss}
