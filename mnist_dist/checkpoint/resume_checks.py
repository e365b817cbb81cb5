"""With which settings and on which hardware a run may be resumed from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnist_dist.config.schema import Config, OptimConfig
from mnist_dist.utils.errors import UserError

RESUME_OVERRIDABLE = {
    "run.dir",
    "run.resume",
    "run.device",
    "run.threads",
    "run.timeout",
    "run.quiet",
    "data.root",
    "data.source",
    "data.classes",
    "train.max_steps",
    "train.patience",
    "train.target_accuracy",
    "train.max_minutes",
    "train.eval_batch_size",
    "train.checkpoint_steps",
    "train.keep",
    "train.profile",
}
"""Settings that a resumed run may change: none of them changes what it computes. Nor do those of `tracking`."""


def is_extendable(optim: OptimConfig) -> bool:
    """Whether a run may be resumed with more train.epochs: its learning rates so far do not depend on them."""
    return optim.schedule == "constant" and not optim.warmup


def check_resumable(config: Config, saved: Mapping[str, Mapping[str, Any]], checkpoint: Path) -> None:
    """Refuse to resume with settings that would change what the run computes.

    Args:
        saved: the configuration in the checkpoint, by section. A setting that it lacks had its default.
        checkpoint: the checkpoint's folder, for the message.

    Raises:
        UserError: names the settings that differ.
    """
    before = {section: {**values, **saved.get(section, {})} for section, values in Config().to_dict().items()}
    differing = {
        f"{section}.{key}": f"{section}.{key}={value!r} (was {repr(before[section][key])[:60]})"
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if section != "tracking" and f"{section}.{key}" not in RESUME_OVERRIDABLE and before[section][key] != value
    }
    has_more_epochs = "train.epochs" in differing and config.train.epochs > before["train"]["epochs"]
    if has_more_epochs and is_extendable(config.optim):
        del differing["train.epochs"]
    if not differing:
        return
    if has_more_epochs and [*differing] == ["train.epochs"]:
        raise UserError(
            f"{checkpoint}: was written with other settings: {differing['train.epochs']}, which would have given other "
            "learning rates from the start (except with optim.schedule=constant and optim.warmup=0); start a new run "
            f"from its weights with --model.init_from={checkpoint} and another --run.dir"
        )
    shown = ", ".join([*differing.values()][:4])
    raise UserError(
        f"{checkpoint}: was written with other settings: {shown}{' ...' if len(differing) > 4 else ''}; give the same, "
        "or start anew in another --run.dir"
    )


def warn_if_other_hardware(before: dict[str, str], now: dict[str, str], warn: Callable[[str], None]) -> None:
    """Warn if a run resumes with other versions or on other hardware, where kernels may round differently.

    Args:
        before: `machine` in the checkpoint's state.
        now: the same facts of this process.
    """
    other = ", ".join(f"{key} {now[key]} instead of {before.get(key)}" for key in now if before.get(key) != now[key])
    if other:
        warn(f"this run resumes with {other}: its weights may differ, in the last bits, from an uninterrupted run's")
