"""With which settings and on which hardware a run may be resumed from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from mnist_dist.config.data_sets import CLASS_NAMES
from mnist_dist.config.schema import Config, flat, flatten
from mnist_dist.utils.errors import UserError

RESUME_OVERRIDABLE = {
    "run.dir",
    "run.resume",
    "run.device",
    "run.threads",
    "run.timeout",
    "run.quiet",
    "data.name",
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
"""Settings that a resumed run may change: none of them changes what it computes. Nor do those of `tracking`.

The names of a data set and of its classes do not, if images, labels and the number of classes are the same: that is
checked.
"""


def is_extendable(config: Config) -> bool:
    """Whether a run may be resumed with more train.epochs: what it did so far does not depend on them."""
    return config.optim.schedule == "constant" and not config.optim.warmup and not config.data.no_aug_epochs


def check_resumable(config: Config, saved: Mapping[str, Mapping[str, Any]], checkpoint: Path) -> None:
    """Refuse to resume with settings that would change what the run computes.

    Args:
        saved: the configuration in the checkpoint, by section. A setting that it lacks had its default.
        checkpoint: the checkpoint's folder, for the message.

    Raises:
        UserError: names the settings that differ.
    """
    classes, had = len(config.data.class_names), count_classes(saved.get("data", {}))
    if classes != had:
        raise UserError(
            f"{checkpoint}: was trained on {had} classes, but there are {classes} now; name the same data with "
            "--data.root=DIR and --data.name=NAME, or start anew in another --run.dir"
        )
    before = flatten({section: {**values, **saved.get(section, {})} for section, values in Config().to_dict().items()})
    now = flat(config)
    differing = {
        key: (f"{key}={now[key]!r}" if key in now else f"no {key}")
        + f" (was {repr(before[key])[:60] if key in before else 'not given'})"
        for key in now | before
        if not key.startswith("tracking.") and key not in RESUME_OVERRIDABLE and not is_same(key, now, before)
    }
    has_more_epochs = "train.epochs" in differing and config.train.epochs > before["train.epochs"]
    if has_more_epochs and is_extendable(config):
        del differing["train.epochs"]
    if not differing:
        return
    if has_more_epochs and [*differing] == ["train.epochs"]:
        raise UserError(
            f"{checkpoint}: was written with other settings: {differing['train.epochs']}, which would have given other "
            "learning rates or images (except with optim.schedule=constant, optim.warmup=0 and data.no_aug_epochs=0); "
            f"start a new run from its weights with --model.init_from={checkpoint} and another --run.dir"
        )
    shown = ", ".join([*differing.values()][:4])
    raise UserError(
        f"{checkpoint}: was written with other settings: {shown}{' ...' if len(differing) > 4 else ''}; give the same, "
        "or start anew in another --run.dir"
    )


def count_classes(saved: Mapping[str, Any]) -> int:
    """The number of classes of a run.

    Args:
        saved: the section `data` of the configuration in its checkpoint.
    """
    return len(saved.get("classes") or CLASS_NAMES.get(saved.get("name", "mnist"), ()))


def is_same(key: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a setting has the same value; the file of a model may have moved, since its content is compared."""
    value, old = now.get(key), before.get(key)
    if key == "model.name":
        return PurePath(str(value)).name == PurePath(str(old)).name
    return value == old and (key in now) == (key in before)


def warn_if_other_hardware(before: dict[str, str], now: dict[str, str], warn: Callable[[str], None]) -> None:
    """Warn if a run resumes with other versions or on other hardware, where kernels may round differently.

    Args:
        before: `machine` in the checkpoint's state.
        now: the same facts of this process.
    """
    other = ", ".join(f"{key} {now[key]} instead of {before.get(key)}" for key in now if before.get(key) != now[key])
    if other:
        warn(f"this run resumes with {other}: its weights may differ, in the last bits, from an uninterrupted run's")
