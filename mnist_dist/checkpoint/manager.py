"""Save, verify, find and prune the checkpoints in `run.dir/checkpoints`. A process may be killed at any moment.

A checkpoint is written to a temporary folder, fsynced, and renamed only once it is complete; an old one is deleted only
after its successor is on disk.

Why no library: `Accelerator.save_state` writes into the final folder, deletes old checkpoints before it writes the new
one, pickles optimizer and RNG state, and keeps one RNG file per rank, which another number of processes does not have.
`torch.distributed.checkpoint` writes one file per rank and pickles its metadata. Neither detects a flipped bit, and to
unpickle a file is to execute what its author wrote.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mnist_dist.checkpoint.format import (
    MANIFEST,
    MAX_BYTES,
    STATE,
    TENSOR_FILES,
    CorruptCheckpoint,
    build_manifest,
    read_files,
)
from mnist_dist.checkpoint.state import check_state, upgrade_state
from mnist_dist.checkpoint.tensors import copy_to_cpu, dump_tensors, parse_tensors
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.files import sync
from mnist_dist.utils.strict_json import parse_strict

FOLDER_NAME = re.compile(r"step-([0-9]{8,200})")
WRITING = ".writing-"
"""Prefix of a folder that is being written: incomplete."""
REPLACED = ".replaced-"
"""Prefix of a whole checkpoint that makes way for a new one of the same step."""
DELETING = ".deleting-"
"""Prefix of a checkpoint that is being deleted: incomplete."""


@dataclass(frozen=True)
class CheckpointData:
    """What a checkpoint holds: named tensors of the model, optimizer and EMA (empty without one), and the state."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]
    """As `checkpoint.state.CheckpointState` describes it."""

    def to_host(self) -> CheckpointData:
        """The same data with private copies of the tensors in host memory, which further training does not change."""
        return replace(self, **{part: copy_to_cpu(getattr(self, part)) for part in TENSOR_FILES})


# Writing: only the main process, one checkpoint at a time


def save_checkpoint(root: Path, step: int, data: CheckpointData) -> Path:
    """Write `root/step-NNNNNNNN`; it has that name only once it is complete and on disk.

    If the process is killed meanwhile, every earlier checkpoint stays, also an earlier one of this step; `recover`
    removes the rest.

    Args:
        root: created if missing. Its parent is not: if a mounted run directory vanished, the disk below stays empty.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError: the disk is full or the folder cannot be written; no incomplete checkpoint is left.
    """
    final = checkpoint_path(root, step)
    writing, replaced = root / f"{WRITING}{final.name}", root / f"{REPLACED}{final.name}"
    try:
        root.mkdir(exist_ok=True)
        recover(root)
        writing.mkdir()
        for name, content in serialize(step, data).items():
            with (writing / name).open("xb") as file:
                file.write(content)
            sync(writing / name)
        sync(writing)
        if final.exists():  # a resumed run reached this step again
            final.rename(replaced)
        writing.rename(final)
        sync(root)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            recover(root)
        raise TrainingError(
            f"checkpoint {final}: cannot be written ({getattr(error, 'strerror', None) or error}); earlier ones are "
            "untouched: free space or check the disk"
        ) from error
    return final


def serialize(step: int, data: CheckpointData) -> dict[str, bytes]:
    """The content of each file of a checkpoint, the manifest last.

    Raises:
        ValueError: a file is larger than the reader accepts, or the state holds a number that is not finite.
    """
    parts = {name: getattr(data, part) for part, name in TENSOR_FILES.items() if part != "ema" or data.ema}
    files = {name: dump_tensors(tensors) for name, tensors in parts.items()}
    files[STATE] = json.dumps(data.state, indent=1, allow_nan=False).encode()
    for name, content in files.items():
        if len(content) > MAX_BYTES[name]:
            raise ValueError(f"{name} would have {len(content)} bytes, and no more than {MAX_BYTES[name]} are read")
    return files | {MANIFEST: build_manifest(step, files)}


def recover(root: Path) -> None:
    """Clean up after a process that was killed while it saved or pruned. Only for the one process that writes here.

    A checkpoint that was moved aside for a new one that is not there gets its name back; all else that is incomplete is
    deleted.

    Raises:
        OSError: the folder cannot be read or changed.
    """
    leftovers = [p for p in root.iterdir() if p.name.startswith((WRITING, REPLACED, DELETING))] if root.is_dir() else []
    for path in leftovers:
        final = root / path.name.removeprefix(REPLACED)
        if path.name.startswith(REPLACED) and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)
    if leftovers:
        sync(root)


def prune_checkpoints(root: Path, keep: int, best_step: int | None, newest_step: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. Call it after a new one is complete.

    Args:
        best_step: the step of the best one; None without one.
        newest_step: the step just written. Checkpoints of later steps are damaged ones that this run passed over when
            it resumed: they are deleted too, and do not count as kept.
    """
    folders = list_checkpoints(root)
    later = [folder for folder in folders if step_of(folder) > newest_step]
    earlier = folders[: len(folders) - len(later)]
    for folder in [*earlier[:-keep], *later]:
        if step_of(folder) != best_step:
            with suppress(OSError):  # renamed first: no reader finds half of it under its name
                shutil.rmtree(folder.rename(root / f"{DELETING}{folder.name}"), ignore_errors=True)


# Reading: nothing that is read is trusted before it is verified


def list_checkpoints(root: Path) -> list[Path]:
    """Folders with a checkpoint's name, by step; whole or damaged."""
    found = [path for path in root.iterdir() if FOLDER_NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=step_of)


def checkpoint_path(root: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name; -1 for any other name."""
    match = FOLDER_NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """The bytes of a checkpoint that passed `verify_checkpoint`. Plain values, so it can be sent to other processes."""

    folder: Path
    files: dict[str, bytes]

    def parse(self) -> CheckpointData:
        """The tensors, on the CPU, and the state, from the bytes that were verified.

        Raises:
            CorruptCheckpoint: a file matches its digest but holds what no checkpoint can hold.
        """
        tensors = {}
        for part, name in TENSOR_FILES.items():
            try:
                tensors[part] = parse_tensors(self.files[name]) if name in self.files else {}
            except ValueError as error:
                raise CorruptCheckpoint(f"{name}: {error}") from None
        try:
            state = upgrade_state(parse_strict(self.files[STATE]))
            check_state(state, step_of(self.folder))
        except ValueError as error:
            raise CorruptCheckpoint(f"{STATE}: {error}") from None
        return CheckpointData(**tensors, state=state)


def verify_checkpoint(folder: Path) -> VerifiedCheckpoint:
    """Read a checkpoint's files, each once, and check everything that can be checked without a model.

    Raises:
        CorruptCheckpoint: names the file and the reason.
    """
    if step_of(folder) < 0:
        raise CorruptCheckpoint("the folder's name is not step- and eight digits")
    verified = VerifiedCheckpoint(folder, read_files(folder, step_of(folder)))
    verified.parse()
    return verified


def newest_verified(root: Path, warn: Callable[[str], None]) -> VerifiedCheckpoint | None:
    """The newest whole checkpoint, or None.

    Args:
        warn: takes one line for each newer checkpoint that is damaged.
    """
    for folder in reversed(list_checkpoints(root)):
        try:
            return verify_checkpoint(folder)
        except CorruptCheckpoint as reason:
            warn(f"checkpoint {folder} is damaged ({reason}) and passed over")
    return None


def load_verified(folder: Path) -> VerifiedCheckpoint:
    """`verify_checkpoint` for a checkpoint that the user named.

    Raises:
        UserError: it is damaged or missing.
    """
    try:
        return verify_checkpoint(folder)
    except CorruptCheckpoint as reason:
        raise UserError(f"checkpoint {folder}: {reason}; choose another one") from None
