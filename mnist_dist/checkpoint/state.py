"""What a checkpoint's state.json must hold. Its digest says that it is what was written, not that it makes sense."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mnist_dist.utils.strict_json import type_error

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # trackers make file names of it
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
BEST = {"step", "accuracy", "loss"}


@dataclass
class CheckpointState:
    """state.json, key by key."""

    run_id: str
    progress: TrainProgress
    ema_updates: int
    window: list[int]
    epoch_counts: list[int]
    norms: NormSums
    scaler: dict[str, float]
    config: dict[str, dict[str, Any]]
    machine: dict[str, str]
    """What decides how kernels round, where it was written."""


RENAMED = {"skipped": "scaler_skips", "left_out": "nonfinite_skips", "avoided": "skip_batches"}
"""Fields of `TrainProgress`, which was `position`, by the names that they had before."""


def upgrade_state(state: dict[str, Any]) -> dict[str, Any]:
    """A parsed state.json under today's names, whatever version wrote it; what makes no sense stays as it is."""
    if isinstance(position := state.get("position"), dict) and "progress" not in state:
        state = {key: value for key, value in state.items() if key != "position"}
        state["progress"] = {RENAMED.get(key, key): value for key, value in position.items()}
    return {"norms": asdict(NormSums()), **state}


def check_state(state: dict[str, Any], step: int) -> None:
    """Check a parsed state.json of the checkpoint of this step.

    Raises:
        ValueError: a key is absent or unknown, or its value is of another type or out of range.
    """
    wrong = type_error(state, CheckpointState, "the state") or invalid_value(state, step)
    if wrong:
        raise ValueError(wrong)


def invalid_value(state: dict[str, Any], step: int) -> str | None:
    """Which value cannot be, although it is of the right type; None if all can."""
    progress, best, scaler = state["progress"], state["progress"]["best"], state["scaler"]
    if not RUN_ID.fullmatch(state["run_id"]):
        return "run_id is none"
    if progress["step"] != step:
        return f"progress.step is {progress['step']} in the checkpoint of step {step}"
    start = asdict(TrainProgress())  # nothing falls below where it starts, and that is 0 or a number below
    for name, value in {**state, **progress}.items():
        if name not in ("config", "machine", "progress") and any(
            n < min([0, *numbers(start.get(name))]) for n in numbers(value)
        ):
            return f"{name} holds a number that is too small"
    for name in ("scaler_skips", "epoch", "step_in_epoch", "evaluated"):
        if progress[name] > step:
            return f"progress.{name} is {progress[name]} at step {step}"
    if best and (best.keys() != BEST or type(best["step"]) is not int or best["step"] > step):
        return "progress.best does not name a checkpoint"
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
class TrainProgress:
    """Where a run is. With the weights and the optimizer's state, all there is to a checkpoint."""

    step: int = 0
    """Global batches learned from: the clock of the data."""
    scaler_skips: int = 0
    """Of these, updates that fp16 skipped: `step - scaler_skips` is the clock of the schedule."""
    nonfinite_skips: int = 0
    """Of these, updates left out because their gradient was not finite."""
    rollbacks: int = 0
    """Returns to a checkpoint. Each one halves the learning rate."""
    skip_batches: list[int] = field(default_factory=list)
    """DeviceLoader, by step, that are not learned from because a rollback was due to them."""
    epoch: int = 0
    """The epoch in progress, counted from 0."""
    step_in_epoch: int = 0
    """DeviceLoader of it that are done."""
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
