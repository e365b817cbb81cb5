"""Load the trained model of a run from one of its checkpoints."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from mnist_dist.checkpoint.manager import (
    VerifiedCheckpoint,
    checkpoint_path,
    list_checkpoints,
    load_verified,
    newest_verified,
    step_of,
)
from mnist_dist.checkpoint.model_files import check_model_files
from mnist_dist.checkpoint.run_paths import CHECKPOINTS, MODEL, named_run
from mnist_dist.checkpoint.tensors import load_weights
from mnist_dist.config.model_file import is_file_name, split_name
from mnist_dist.config.schema import Config
from mnist_dist.config.values import describe_error
from mnist_dist.models import ModelBuilder, find_builder
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
    model: nn.Module
    step: int
    """Optimizer steps of the checkpoint."""
    digests: dict[str, str]
    """SHA-256 of the training set (`train`) and of the test set (`test`); empty in checkpoints of version 0.1.0."""
    code: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the source files that built the model, if it is not one of the package."""


def load_model(run: str, checkpoint: str = "last", model: str | None = None, trust: bool = False) -> LoadedModel:
    """Load the model of a run.

    Code that came with a run is not run unasked: a run whose model is not one of the package needs `model` or `trust`.

    Args:
        run: the folder of a run or of one of its checkpoints, or `last`: the newest run in runs/.
        checkpoint: `last`, `best` (on the validation split), a step (`430` or `step-00000430`), or the path of a
            checkpoint.
        model: the code that builds the model, `FILE.py:FUNCTION` or `MODULE:FUNCTION`.
        trust: whether to run the code that is in the run's folder, or that its configuration names.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or its model's code is not given or does not fit.
    """
    verified = find_checkpoint(run, checkpoint)
    saved = verified.parse()
    config = read_config(saved.state["config"], verified.folder)
    builder = choose_builder(config.model.name, verified.folder, saved.state["code"], model, trust)
    with torch.random.fork_rng(devices=()):  # the weights that it draws are replaced
        network = builder.build(len(config.data.class_names), config.model.args)
    with builder.running("loading its weights:"):
        load_weights(network, saved.ema or saved.model, str(verified.folder))
    return LoadedModel(config, network.eval(), step_of(verified.folder), saved.state["data"], builder.digests)


def choose_builder(
    name: str, checkpoint: Path, digests: dict[str, str], model: str | None, trust: bool
) -> ModelBuilder:
    """The builder of a run's model.

    Args:
        name: the run's model.name.
        checkpoint: its folder.
        digests: of the model's source files in training.
        model, trust: see `load_model`.

    Raises:
        UserError: see `load_model`.
    """
    source, function = split_name(name)
    run = checkpoint.parents[1]
    if not source:
        if model:
            raise UserError(f"--model {model}: the network of {run} is {name}, which this package has; leave it out")
        return find_builder(name)
    copy = run / MODEL / Path(source).name if is_file_name(source) else None
    if model:
        if not split_name(model)[0]:
            raise UserError(f"--model {model}: give FILE.py:FUNCTION or MODULE:FUNCTION, as in --model {name}")
        builder = find_builder(model)
        if sorted(builder.digests.values()) != sorted(digests.values()):
            at = f", which {run / MODEL} has" if copy else ""
            warn(f"{model}: is not the code that {run} was trained with{at}; its weights may mean something else here")
        return builder
    if not trust:
        what = f"the copy {copy}" if copy else f"the module {source}"
        raise UserError(
            f"{run}: its network is built by code that is not of this package, {name}, and code of a run is not run "
            f"unasked; give yours by --model {name}, or --trust to run {what}"
        )
    if copy is None:
        return find_builder(name)
    check_model_files(run, digests)
    return find_builder(f"{copy}:{function}")


def warn(text: str) -> None:
    """Write a warning to standard error."""
    print(f"mnist_dist: warning: {text}", file=sys.stderr)


def find_checkpoint(run: str, checkpoint: str) -> VerifiedCheckpoint:
    """The checkpoint that `load_model` loads: its files verified, its tensors not yet parsed.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = named_run(run)
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
    damaged: list[str] = []
    newest = newest_verified(root, damaged.append)
    if newest is None:
        why = f" ({damaged[0]})" if damaged else ""
        raise UserError(f"{folder}: has no complete checkpoint{why}; give the folder of a run that wrote one")
    for line in damaged:
        warn(line)
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


def read_config(saved: dict[str, dict[str, Any]], source: Path | str) -> Config:
    """The configuration that a checkpoint's state holds. A setting that it lacks is newer, and gets its default.

    Raises:
        UserError: it is not one of this version.
    """
    try:
        return Config.model_validate_json(dump_strict(saved))  # JSON's lists may be tuples here
    except ValidationError as error:
        wrong = " ".join(describe_error(error))
    raise UserError(f"checkpoint {source}: was written by another version of mnist_dist ({wrong})")
