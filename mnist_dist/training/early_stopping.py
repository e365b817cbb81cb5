"""Early stopping: train.target_accuracy, train.patience and train.max_minutes end a run before its last step.

The first two are functions of exact metrics, which are the same on all ranks and after a resume, and so are the step
at which they end a run and its weights. The time is that of rank 0, which tells the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.resume_checks import is_extendable
from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.config.sections import TrainConfig
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.state import TrainingState
from mnist_dist.utils.errors import TrainingError

MIN_STEP_SECONDS = 1e-4  # no step is faster


class EarlyStopping:
    """Sets `progress.stop_reason` once the run has to end. Every rank must call its methods.

    Args:
        config: settings of `train`.
        progress: new, or restored from a checkpoint. A reason that another value of its setting removed is cleared.
        runtime: asks rank 0 for the time.
    """

    def __init__(self, config: TrainConfig, progress: TrainProgress, runtime: Runtime) -> None:
        self.config, self.progress, self.runtime = config, progress, runtime
        self.limit = 60 * config.max_minutes  # seconds; 0: none
        self.start = time.monotonic() - progress.wall_seconds
        self.checked = (progress.step, time.monotonic())  # step and time when rank 0 was asked
        self.step_seconds = math.inf  # since the time before; not known yet
        self.next_check = progress.step + 1  # step
        timed_out = progress.stop_reason == "max_minutes" and 0 < self.limit <= progress.wall_seconds
        progress.stop_reason = "max_minutes" if timed_out else self.reason_by_metrics()

    @property
    def depends_on_metrics(self) -> bool:
        """Whether any evaluation of the held-out set may be the last one."""
        return bool(self.config.patience or self.config.target_accuracy)

    def reason_by_metrics(self) -> str:
        """The setting by which the evaluations so far end the run; empty if none does."""
        if is_target_reached(self.config, self.progress):
            return "target_accuracy"
        if 0 < self.config.patience <= self.progress.evaluations_since_best:
            return "patience"
        return ""

    def note_evaluation(self, metrics: Metrics, is_due: bool) -> None:
        """Decide after an evaluation of the held-out set.

        Args:
            is_due: whether it is one of those at the end of an epoch and every train.eval_steps. Others, where a run
                ended, do not count for train.patience: a run that goes on from there decides as if it had not ended.
        """
        if is_due:
            self.progress.note_held_out(metrics.accuracy, metrics.loss)
        self.progress.highest_accuracy = max(self.progress.highest_accuracy, metrics.accuracy)
        self.progress.stop_reason = self.reason_by_metrics() or self.progress.stop_reason
        self.next_check = self.progress.step
        self.check_time()

    def check_time(self) -> None:
        """Decide by train.max_minutes. To be called after each step.

        Only some calls ask rank 0, about as often as the time that is left can be halved until it is one step.
        """
        progress, (step, seconds) = self.progress, self.checked
        was_rolled_back = progress.step < step
        if not self.limit or progress.stop_reason or (progress.step < self.next_check and not was_rolled_back):
            return
        self.note_time()
        now = time.monotonic()
        if progress.step > step:
            self.step_seconds = (now - seconds) / (progress.step - step)
        if progress.step != step:
            self.checked = progress.step, now
        steps = int((self.limit - progress.wall_seconds) / 2 / max(self.step_seconds, MIN_STEP_SECONDS))
        progress.wall_seconds, steps = self.runtime.broadcast((progress.wall_seconds, steps))
        self.next_check = progress.step + max(steps, 1)
        if progress.wall_seconds >= self.limit:
            progress.stop_reason = "max_minutes"

    def note_time(self) -> None:
        """Update `progress.wall_seconds`, before a checkpoint."""
        self.progress.wall_seconds = time.monotonic() - self.start

    def seconds_left(self) -> float:
        """Seconds until train.max_minutes have passed; infinite without it."""
        return max(self.limit - (time.monotonic() - self.start), 0.0) if self.limit else math.inf

    def describe(self) -> str:
        """Why the run ended before its last step, in words."""
        train, progress = self.config, self.progress
        return {
            "target_accuracy": f"train.target_accuracy={train.target_accuracy:g} is reached",
            "patience": f"no new best in {progress.evaluations_since_best} evaluations (train.patience)",
            "max_minutes": f"train.max_minutes={train.max_minutes:g} have passed",
        }[progress.stop_reason]


def is_target_reached(config: TrainConfig, progress: TrainProgress) -> bool:
    """Whether an evaluation of the held-out set reached train.target_accuracy; False without one."""
    return 0 < config.target_accuracy <= progress.highest_accuracy


def is_finished(state: TrainingState) -> bool:
    """Whether nothing is left to train, given a state that was restored from a checkpoint."""
    stopping = EarlyStopping(state.config.train, state.progress, state.runtime)
    return state.progress.step >= state.last_step or bool(stopping.progress.stop_reason)


def how_to_train_longer(state: TrainingState, folder: Path) -> str:
    """What makes a finished run train on, in words.

    Args:
        folder: its run directory.
    """
    train, reason = state.config.train, state.progress.stop_reason
    if reason:
        way = f"it was ended by train.{reason}={getattr(train, reason):g}; another value lets it train on"
    elif state.progress.step < state.total_steps:
        way = "a higher --train.max_steps lets it train on"
    elif is_extendable(state.config):
        way = "more --train.epochs let it train on"
    else:
        way = f"--model.init_from={folder}, with another --run.dir, starts a new run from its weights"
    return f"{way}; --run.resume=never starts this one over"


def summary_keys(state: TrainingState) -> dict[str, str | float | bool | None]:
    """How the run ended, for summary.json: a function of the checkpoint and the settings alone."""
    train, progress = state.config.train, state.progress
    return {
        "train.stop_reason": progress.stop_reason if progress.step < state.last_step else "last_step",
        "train.target_accuracy": train.target_accuracy or None,
        "train.target_reached": is_target_reached(train, progress) if train.target_accuracy else None,
        "train.highest_accuracy": progress.highest_accuracy,
    }


def check_target(summary: Mapping[str, Any]) -> None:
    """Fail a finished run that did not reach train.target_accuracy.

    Args:
        summary: of the run, with `summary_keys`.

    Raises:
        TrainingError: with exit code 1, on every rank.
    """
    if summary["train.target_reached"] is False:
        target, highest = summary["train.target_accuracy"], summary["train.highest_accuracy"]
        raise TrainingError(
            f"train.target_accuracy={target:g} is not reached: after {summary['train.steps']} steps the "
            f"highest accuracy on the held-out set is {highest:.6g}; all else of the run is complete",
            everywhere=True,
        )
