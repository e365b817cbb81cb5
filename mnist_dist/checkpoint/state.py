"""What a checkpoint's state.json must hold. Its digest says that it is what was written, not that it makes sense."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mnist_dist.checkpoint.position import Position
from mnist_dist.training.metrics import SIZE
from mnist_dist.training.norms import NormSums
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
    for name in ("window", "epoch_counts"):
        if len(state[name]) != SIZE:
            return f"{name} holds {len(state[name])} counts instead of {SIZE}"
    return None


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a value."""
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value
