"""Load the trained model of a run from one of its checkpoints."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mnist_dist.checkpoint.manager import VerifiedCheckpoint, load_verified, newest_verified, step_of
from mnist_dist.checkpoint.run_paths import CHECKPOINTS
from mnist_dist.checkpoint.tensors import load_weights
from mnist_dist.config.schema import FIELDS, Config
from mnist_dist.config.values import describe_error
from mnist_dist.models import ImageClassifier, create_model
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home
from mnist_dist.utils.strict_json import dump_strict


@dataclass(frozen=True)
class LoadedModel:
    """The model of a checkpoint, on the CPU and in eval mode. Its weights are the EMA if the run had one."""

    config: Config
    model: ImageClassifier
    step: int
    """Optimizer steps of the checkpoint."""
    folder: Path
    """The run's."""


def load_model(run: str, checkpoint: str = "latest") -> LoadedModel:
    """Load the model of a run.

    Args:
        run: the run's folder.
        checkpoint: `latest`, `best` (on the validation split), a step, or the path of a checkpoint.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    folder = expand_home(run)
    if not folder.is_dir():
        raise UserError(f"{run}: no such folder; give the folder of a run, which it prints at its end")
    verified = find_checkpoint(folder, checkpoint)
    saved = verified.parse()
    config = read_config(saved.state["config"], verified.folder)
    model = create_model(config.model.name)
    load_weights(model, saved.ema or saved.model, str(verified.folder))
    return LoadedModel(config, model.eval(), step_of(verified.folder), folder)


def find_checkpoint(folder: Path, checkpoint: str) -> VerifiedCheckpoint:
    """The checkpoint that `load_model` loads: its files verified, its tensors not yet parsed.

    Raises:
        UserError: there is none, or it is damaged.
    """
    root = folder / CHECKPOINTS
    if checkpoint.isdecimal():
        return load_verified(root / f"step-{int(checkpoint):08d}")
    if checkpoint not in ("latest", "best"):
        return load_verified(expand_home(checkpoint, "--checkpoint "))
    newest = newest_verified(root, lambda text: print(f"mnist_dist: warning: {text}", file=sys.stderr))
    if checkpoint == "best":
        best = newest.parse().state["progress"]["best"] if newest else {}
        if not best:
            raise UserError(f"{folder}: has no best checkpoint; it needs data.val_size above 0 and one epoch")
        return load_verified(root / f"step-{best['step']:08d}")
    if newest is None:
        raise UserError(f"{folder}: has no complete checkpoint; give the folder of a run that wrote one")
    return newest


def read_config(saved: dict[str, dict[str, Any]], source: Path) -> Config:
    """The configuration that a checkpoint's state holds.

    Raises:
        UserError: it is not one of this version.
    """
    try:
        config = Config.model_validate_json(dump_strict(saved))  # JSON's lists may be tuples here
    except ValidationError as error:
        wrong = " ".join(describe_error(error))
    else:
        absent = [key for key in FIELDS if key.partition(".")[2] not in saved.get(key.partition(".")[0], ())]
        if not absent:
            return config
        wrong = f"{absent[0]} is missing"
    raise UserError(f"checkpoint {source}: was written by another version of mnist_dist ({wrong})")
