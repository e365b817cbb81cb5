"""The content of state.json: a run's progress and sums, their types, and the check of what was read.

A file can match its SHA-256 and still make no sense, so every key, type and range is checked before a run resumes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mnist_dist.config.data_sets import MAX_MATRIX_CLASSES
from mnist_dist.config.loader import dump
from mnist_dist.config.schema import Config
from mnist_dist.config.yaml_files import MAX_YAML_BYTES
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.run_id import RUN_ID
from mnist_dist.utils.strict_json import dump_strict, parse_strict, type_error

SHA256 = re.compile(r"[0-9a-f]{64}")
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
BEST_KEYS = {"step", "accuracy", "loss"}
DATA_KEYS = {"train", "test"}
STOP_REASONS = ("target_accuracy", "patience", "max_minutes")
"""Settings of `train` that may end a run before its last step."""
LATER_PROGRESS_FIELDS = ("held_out_best", "evaluations_since_best", "highest_accuracy", "wall_seconds", "stop_reason")
"""Fields of `progress` that the first versions did not write."""
PROGRESS_FIELDS_0_1 = {"skipped": "scaler_skips", "left_out": "nonfinite_skips", "avoided": "skip_batches"}
"""Fields of `position`, as version 0.1 named `progress`, to today's names; the other fields kept theirs."""


@dataclass
class TrainProgress:
    """How far a run has come."""

    step: int = 0
    """Global batches done, skipped ones included. The order of the data is a function of it."""
    scaler_skips: int = 0
    """Updates that the fp16 gradient scaler skipped. The learning rate is a function of `step - scaler_skips`."""
    nonfinite_skips: int = 0
    """Updates skipped because their gradient was not finite (train.nonfinite=skip)."""
    rollbacks: int = 0
    """Returns to a checkpoint (train.nonfinite=rollback). Each one halves the learning rate."""
    skip_batches: list[int] = field(default_factory=list)
    """Steps whose batches are not trained on, because they led to a rollback."""
    epoch: int = 0
    """The epoch in progress, counted from 0."""
    step_in_epoch: int = 0
    """Global batches of that epoch that are done."""
    evaluated: int = -1
    """Step of the last evaluation on the held-out set; -1 before the first."""
    images: int = 0
    """Training images learned from, repeats included."""
    seconds: float = 0.0
    """Time spent in training steps, without evaluations and checkpoints."""
    best: dict[str, float] = field(default_factory=dict)
    """step, accuracy and loss of the best evaluation on the validation split; empty before the first."""
    held_out_best: dict[str, float] = field(default_factory=dict)
    """accuracy and loss of the best of all evaluations that were due on the held-out set; empty before the first."""
    evaluations_since_best: int = 0
    """Evaluations that were due on the held-out set since the best one (train.patience)."""
    highest_accuracy: float = 0.0
    """Highest accuracy of all evaluations on the held-out set (train.target_accuracy)."""
    wall_seconds: float = 0.0
    """Time spent in training, with evaluations and checkpoints (train.max_minutes)."""
    stop_reason: str = ""
    """The setting that ended the run before its last step: one of `STOP_REASONS`; empty if none did."""

    def finish_step(self) -> None:
        """Count one more global batch."""
        self.step += 1
        self.step_in_epoch += 1

    def finish_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.step_in_epoch = 0

    def note_best(self, accuracy: float, loss: float) -> None:
        """Make the current step the best one if its accuracy, or at equal accuracy its loss, is better.

        A step whose loss is not finite is never the best.
        """
        if is_better(accuracy, loss, self.best):
            self.best = {"step": self.step, "accuracy": accuracy, "loss": loss}

    def note_held_out(self, accuracy: float, loss: float) -> None:
        """Count an evaluation that was due on the held-out set, for train.patience."""
        if is_better(accuracy, loss, self.held_out_best):
            self.held_out_best, self.evaluations_since_best = {"accuracy": accuracy, "loss": loss}, 0
        else:
            self.evaluations_since_best += 1


def is_better(accuracy: float, loss: float, best: Mapping[str, float]) -> bool:
    """Whether an evaluation is better than the best one before, of which there may be none (empty)."""
    return math.isfinite(loss) and (not best or (accuracy, -loss) > (best["accuracy"], -best["loss"]))


@dataclass
class NormSums:
    """Sums of the gradient norms since the last row of metrics, as plain numbers."""

    count: int = 0
    """Updates, also those with a norm that is not finite."""
    nonfinite: int = 0
    """Updates with a norm that is not finite."""
    total: float = 0.0
    """Sum of the finite norms, added in order: a resumed run gets the same bits as an uninterrupted one."""
    most: float = 0.0
    """Largest finite norm."""


@dataclass
class TrainingImages:
    """Which images weights were trained on: `data.dataset.split_indices` gives their indices."""

    sha256: str
    """Of the whole training set; empty if it is not known."""
    seed: int
    val_size: int
    limit: int
    """Images trained on; 0: all that were not held out."""


@dataclass
class InitialWeights:
    """Where the weights before the first step are from (model.init_from)."""

    source: str = ""
    """Path of the checkpoint or file; empty if they were drawn by run.seed."""
    sha256: str = ""
    """SHA-256 of the weights that it holds."""
    trained_on: list[TrainingImages] = field(default_factory=list)
    """What they were trained on: by the runs before that run, and last by that run itself. Empty for a file."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> InitialWeights:
        """From what `asdict` gave."""
        return cls(value["source"], value["sha256"], [TrainingImages(**images) for images in value["trained_on"]])


@dataclass
class CheckpointState:
    """state.json, key by key."""

    run_id: str
    """What trackers know the run by."""
    progress: TrainProgress
    ema_updates: int
    """Updates of the moving average of the weights; 0 without one."""
    window: list[int]
    """Metric counts since the last row of metrics, summed over all processes, as `training.metrics` packs them."""
    epoch_counts: list[int]
    """Likewise since the epoch began, without the window."""
    norms: NormSums
    scaler: dict[str, float]
    """The fp16 gradient scaler's state dict; empty at any other precision."""
    config: dict[str, dict[str, Any]]
    """The run's configuration, by section."""
    machine: dict[str, str]
    """Versions and kind of CPU or GPU that decide how kernels round."""
    data: dict[str, str]
    """SHA-256 of the training set (`train`) and of the test set (`test`); empty if the version that wrote it kept none.
    """
    code: dict[str, str]
    """SHA-256 of the source files of a model of the user's own, by relative path; empty with a registered model."""
    initial_weights: InitialWeights
    """Where the weights before the first step are from."""


def upgrade_state(state: dict[str, Any]) -> dict[str, Any]:
    """A parsed state.json with today's keys, whatever version wrote it. What no version wrote stays, to be refused."""
    position = state.get("position")
    if isinstance(position, dict) and "progress" not in state and not position.keys() & {*PROGRESS_FIELDS_0_1.values()}:
        renamed = {PROGRESS_FIELDS_0_1.get(name, name): value for name, value in position.items()}
        state = {name: value for name, value in state.items() if name != "position"} | {"progress": renamed}
    progress = state.get("progress")
    if isinstance(progress, dict) and not progress.keys() & {*LATER_PROGRESS_FIELDS}:
        later = {name: value for name, value in asdict(TrainProgress()).items() if name in LATER_PROGRESS_FIELDS}
        state = state | {"progress": later | progress}
    # The first checkpoints had none of these.
    return {"norms": asdict(NormSums()), "data": {}, "code": {}, "initial_weights": asdict(InitialWeights()), **state}


def check_state(state: dict[str, Any], step: int) -> None:
    """Check the upgraded state.json of the checkpoint of `step`.

    Raises:
        ValueError: a key is missing or unknown, or its value has another type or is out of range.
    """
    wrong = type_error(state, CheckpointState, "the state") or invalid_value(state, step)
    if wrong:
        raise ValueError(wrong)


def check_config_readable(config: Config) -> None:
    """Refuse a configuration that could be written but not read back, such as a number of more than 64 bits.

    Raises:
        UserError: names the setting.
    """
    if (size := len(dump(config).encode())) > MAX_YAML_BYTES:
        raise UserError(f"the configuration has {size} bytes, of which at most {MAX_YAML_BYTES} could be read back")
    for section, values in config.to_dict().items():
        for key, value in values.items():
            try:
                parse_strict(dump_strict({key: value}).encode())
            except ValueError as error:
                raise UserError(f"{section}.{key}={value!r:.40}: {error}; no checkpoint could be read back") from None


def invalid_value(state: dict[str, Any], step: int) -> str | None:
    """Why a value of the right type is impossible, or None if none is."""
    progress, best, scaler = state["progress"], state["progress"]["best"], state["scaler"]
    if not RUN_ID.fullmatch(state["run_id"]):
        return "run_id is not an id"
    if progress["step"] != step:
        return f"progress.step is {progress['step']} in the checkpoint of step {step}"
    if name := too_small(state):
        return f"{name} holds a number that is too small"
    for name in ("scaler_skips", "epoch", "step_in_epoch", "evaluated", "evaluations_since_best"):
        if progress[name] > step:
            return f"progress.{name} is {progress[name]} at step {step}"
    if best and (best.keys() != BEST_KEYS or type(best["step"]) is not int or best["step"] > step):
        return "progress.best does not name a checkpoint"
    if progress["held_out_best"] and progress["held_out_best"].keys() != BEST_KEYS - {"step"}:
        return "progress.held_out_best does not hold accuracy and loss"
    if progress["stop_reason"] not in ("", *STOP_REASONS):
        return "progress.stop_reason is not a setting that ends a run"
    if scaler and (scaler.keys() != SCALER_KEYS or not all(scaler[key] for key in SCALER_KEYS - {"_growth_tracker"})):
        return "scaler is not the state of a gradient scaler"
    if state["data"] and (state["data"].keys() != DATA_KEYS or not all(map(SHA256.fullmatch, state["data"].values()))):
        return "data does not hold the SHA-256 of train and test"
    if not all(map(SHA256.fullmatch, state["code"].values())):
        return "code does not hold SHA-256s"
    initial = state["initial_weights"]
    digests = [initial["sha256"], *(images["sha256"] for images in initial["trained_on"])]
    if not all(map(SHA256.fullmatch, filter(None, digests))) or bool(initial["source"]) != bool(initial["sha256"]):
        return "initial_weights does not hold a source and SHA-256"
    many = len(state["config"].get("data", {}).get("classes", ())) > MAX_MATRIX_CLASSES  # their counts may differ
    if len(state["window"]) != len(state["epoch_counts"]) and not many:
        return f"window holds {len(state['window'])} counts, epoch_counts {len(state['epoch_counts'])}"
    return None


def too_small(state: dict[str, Any]) -> str | None:
    """The name of a value with a number below 0, or below its initial value if that is negative; None without one."""
    initial = asdict(TrainProgress())
    values = {name: value for name, value in state.items() if name not in ("config", "machine", "progress")}
    for name, value in (values | state["progress"]).items():
        least = min([0, *iter_numbers(initial.get(name))])
        if any(number < least for number in iter_numbers(value)):
            return name
    return None


def iter_numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value, at any depth."""
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from iter_numbers(item)
    elif isinstance(value, (int, float)):
        yield value
