"""Load the trained model of a run from one of its checkpoints."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mnist_dist.checkpoint.manager import (
    VerifiedCheckpoint,
    checkpoint_path,
    list_checkpoints,
    load_verified,
    newest_verified,
    step_of,
)
from mnist_dist.checkpoint.run_paths import CHECKPOINTS, newest_run
from mnist_dist.checkpoint.tensors import load_weights
from mnist_dist.config.schema import Config
from mnist_dist.config.values import describe_error
from mnist_dist.models import ImageClassifier, create_model
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home
from mnist_dist.utils.strict_json import dump_strict

NEWEST = ("last", "latest")
"""Names of the newest checkpoint; `last` is also the newest run."""
STEP = re.compile(r"(?:step-)?([0-9]{1,18})")
MAX_LISTED = 6
"""Checkpoints that an error lists."""


@dataclass(frozen=True)
class LoadedModel:
    """The model of a checkpoint, on the CPU and in eval mode. Its weights are the EMA if the run had one."""

    config: Config
    """The run's; settings that are newer than the run have their default."""
    model: ImageClassifier
    step: int
    """Optimizer steps of the checkpoint."""
    digests: dict[str, str]
    """SHA-256 of the training set (`train`) and of the test set (`test`); empty in checkpoints of version 0.1.0."""


def load_model(run: str, checkpoint: str = "last") -> LoadedModel:
    """Load the model of a run.

    Args:
        run: the folder of a run or of one of its checkpoints, or `last`: the newest run in runs/.
        checkpoint: `last`, `best` (on the validation split), a step (`430` or `step-00000430`), or the path of a
            checkpoint.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    verified = find_checkpoint(run, checkpoint)
    saved = verified.parse()
    config = read_config(saved.state["config"], verified.folder)
    with torch.random.fork_rng(devices=()):  # the weights that it draws are replaced
        model = create_model(config.model.name)
    load_weights(model, saved.ema or saved.model, str(verified.folder))
    return LoadedModel(config, model.eval(), step_of(verified.folder), saved.state["data"])


def find_checkpoint(run: str, checkpoint: str) -> VerifiedCheckpoint:
    """The checkpoint that `load_model` loads: its files verified, its tensors not yet parsed.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = newest_run() if run == "last" else expand_home(run)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{run}: {what}; give the folder of a run, which it prints at its end, or last for the newest")
    if step_of(folder.absolute()) >= 0:
        if checkpoint not in NEWEST:
            raise UserError(f"{run}: names a checkpoint, and --checkpoint {checkpoint} another one; give one of them")
        return load_verified(folder.absolute())
    if folder.name == CHECKPOINTS:
        folder = folder.parent
    return choose_checkpoint(folder, checkpoint)


def choose_checkpoint(folder: Path, checkpoint: str) -> VerifiedCheckpoint:
    """The checkpoint of the run in `folder` that `--checkpoint` means, or the one at that path.

    Raises:
        UserError: there is none, or it is damaged. It lists those that there are.
    """
    root = folder / CHECKPOINTS
    if match := STEP.fullmatch(checkpoint):
        path = checkpoint_path(root, int(match.group(1)))
        if not path.is_dir():
            raise UserError(f"{folder}: has no checkpoint {path.name}; {describe_checkpoints(root)}")
        return load_verified(path)
    if checkpoint not in (*NEWEST, "best"):
        path = expand_home(checkpoint, "--checkpoint ")
        if not path.is_dir():
            raise UserError(
                f"--checkpoint {checkpoint}: no such checkpoint; give last, best, a step or a path; "
                f"{folder}: {describe_checkpoints(root)}"
            )
        return load_verified(path.absolute())
    newest = newest_verified(root, lambda text: print(f"mnist_dist: warning: {text}", file=sys.stderr))
    if newest is None:
        raise UserError(f"{folder}: has no complete checkpoint; give the folder of a run that wrote one")
    if checkpoint == "best":
        best = newest.parse().state["progress"]["best"]
        if not best:
            raise UserError(f"{folder}: has no best checkpoint; it needs data.val_size above 0 and one epoch")
        return choose_checkpoint(folder, str(best["step"]))
    return newest


def describe_checkpoints(root: Path) -> str:
    """The newest checkpoints in a folder, as a clause."""
    names = [folder.name for folder in list_checkpoints(root)]
    more = f"{len(names) - MAX_LISTED} older ones, " if len(names) > MAX_LISTED else ""
    return f"it has {more}{', '.join(names[-MAX_LISTED:])}" if names else "it has none"


def read_config(saved: dict[str, dict[str, Any]], source: Path) -> Config:
    """The configuration that a checkpoint's state holds. A setting that it lacks is newer, and gets its default.

    Raises:
        UserError: it is not one of this version.
    """
    try:
        return Config.model_validate_json(dump_strict(saved))  # JSON's lists may be tuples here
    except ValidationError as error:
        wrong = " ".join(describe_error(error))
    raise UserError(f"checkpoint {source}: was written by another version of mnist_dist ({wrong})")
