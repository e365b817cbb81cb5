"""Checkpoints that exist whole or not at all: written aside, fsynced, described by a manifest, renamed.

    checkpoints/step-00000215/
        model.safetensors      weights and buffers, without wrapper prefixes
        optimizer.safetensors  `{parameter}/{what}`
        ema.safetensors        only with optim.ema
        state.json             where the run is, and the configuration it came from
        manifest.json          SHA-256 and size of each of the others

Tensors are safetensors and everything else is JSON: nothing that is loaded can execute.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from mnist_dist.checkpoint.format import (
    LIMITS,
    MANIFEST,
    STATE,
    TENSOR_FILES,
    CorruptCheckpoint,
    dump_manifest,
    read_files,
)
from mnist_dist.checkpoint.state import check_state, upgrade_state
from mnist_dist.checkpoint.tensors import contiguous, parse_tensors
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.files import sync
from mnist_dist.utils.strict_json import parse_strict

NAME = re.compile(r"step-([0-9]{8,200})")
WRITING, REPLACED, DELETING = ".writing-", ".replaced-", ".deleting-"
"""Before a checkpoint's name: it is not complete, another takes its place, it is on its way out."""


@dataclass(frozen=True)
class CheckpointData:
    """What a checkpoint holds: named tensors of the model, the optimizer and (or empty) the EMA, and the state."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]

    def to_host(self) -> CheckpointData:
        """The same with copies of the tensors in host memory, which nothing that trains on will change."""
        copies = {part: contiguous(getattr(self, part)) for part in TENSOR_FILES}
        return replace(self, **copies)


def save_checkpoint(root: Path, step: int, saved: CheckpointData) -> Path:
    """Write `root/step-NNNNNNNN`, durable and complete before it has that name.

    A process that is killed at any moment leaves every earlier checkpoint, of this step too; `recover` tidies up.

    Args:
        root: created if it is absent, but not what it lies in: where that was mounted, nothing else belongs.

    Raises:
        TrainingError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    final = root / f"step-{step:08d}"
    aside, replaced = root / f"{WRITING}{final.name}", root / f"{REPLACED}{final.name}"
    try:
        root.mkdir(exist_ok=True)
        recover(root)
        aside.mkdir()
        for name, data in serialize(step, saved).items():
            with (aside / name).open("xb") as file:
                file.write(data)
            sync(aside / name)
        sync(aside)
        if final.exists():  # the same step again, after a resume: the new one replaces it
            final.rename(replaced)
        aside.rename(final)
        sync(root)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, ValueError, SafetensorError) as error:
        with suppress(OSError):
            recover(root)
        raise TrainingError(
            f"checkpoint {final}: cannot be written ({getattr(error, 'strerror', None) or error}); earlier ones are "
            "untouched: free space or check the disk"
        ) from error
    return final


def serialize(step: int, saved: CheckpointData) -> dict[str, bytes]:
    """The content of each of a checkpoint's files, the manifest last.

    Raises:
        ValueError: a file would be larger than what is read again, or the state holds a number that is not finite.
    """
    parts = {name: getattr(saved, part) for part, name in TENSOR_FILES.items() if part != "ema" or saved.ema}
    files = {name: save(contiguous(tensors)) for name, tensors in parts.items()}
    files[STATE] = json.dumps(saved.state, indent=1, allow_nan=False).encode()
    for name, data in files.items():
        if len(data) > LIMITS[name]:
            raise ValueError(f"{name} would have {len(data)} bytes, and no more than {LIMITS[name]} are read")
    described = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return files | {MANIFEST: dump_manifest(step, described)}


def recover(root: Path) -> None:
    """Settle what a killed process left. Only for the one process that writes here.

    A checkpoint that was moved aside for one that never came gets its name back, everything else half-done goes.

    Raises:
        OSError: the folder cannot be read or changed.
    """
    half_done = (WRITING, REPLACED, DELETING)
    left = [path for path in root.iterdir() if path.name.startswith(half_done)] if root.is_dir() else []
    for path in left:
        final = root / path.name.removeprefix(REPLACED)
        if path.name.startswith(REPLACED) and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)
    if left:
        sync(root)


def list_checkpoints(root: Path) -> list[Path]:
    """Folders named as checkpoints, oldest step first."""
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A whole checkpoint: the bytes that were checked, which are also the ones that are parsed, here or elsewhere."""

    folder: Path
    files: dict[str, bytes]

    def parse(self) -> CheckpointData:
        """The tensors and the state.

        Raises:
            CorruptCheckpoint: a file does not hold what it should, although it is what was written.
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


def verify(folder: Path) -> VerifiedCheckpoint:
    """Read a checkpoint's files, each once, and check everything that can be checked without a model.

    Raises:
        CorruptCheckpoint: says which file, and why.
    """
    if step_of(folder) < 0:
        raise CorruptCheckpoint("its folder is not named step- and eight digits, as it was written")
    verified = VerifiedCheckpoint(folder, read_files(folder, step_of(folder)))
    verified.parse()
    return verified


def newest_verified(root: Path, warn: Callable[[str], None]) -> VerifiedCheckpoint | None:
    """The newest checkpoint that is whole; a damaged one is named in a warning and passed over."""
    for folder in reversed(list_checkpoints(root)):
        try:
            return verify(folder)
        except CorruptCheckpoint as reason:
            warn(f"checkpoint {folder} is damaged ({reason}) and passed over")
    return None


def newest_checkpoint(root: Path, warn: Callable[[str], None]) -> Path | None:
    """The folder of `newest_verified`."""
    newest = newest_verified(root, warn)
    return newest.folder if newest else None


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None if it is whole."""
    try:
        verify(folder)
    except CorruptCheckpoint as reason:
        return str(reason)
    return None


def load_checkpoint(folder: Path) -> CheckpointData:
    """Read a checkpoint after checking it.

    Raises:
        UserError: it is damaged or absent.
    """
    return load_verified(folder).parse()


def load_verified(folder: Path) -> VerifiedCheckpoint:
    """As `verify`, for a checkpoint that a user named.

    Raises:
        UserError: it is damaged or absent.
    """
    try:
        return verify(folder)
    except CorruptCheckpoint as reason:
        raise UserError(f"checkpoint {folder}: {reason}; choose another one") from None


def prune_checkpoints(root: Path, keep: int, best_step: int | None, newest_step: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. Call it after a new one is complete.

    Args:
        newest_step: the one just written. Later ones are of a future that the run left behind: damaged ones that were
            passed over, which must not count as kept.
    """
    folders = list_checkpoints(root)
    late = [folder for folder in folders if step_of(folder) > newest_step]
    early = folders[: len(folders) - len(late)]
    for folder in [*early[:-keep], *late]:
        if step_of(folder) != best_step:
            with suppress(OSError):  # it goes at once: nobody meets half of it
                shutil.rmtree(folder.rename(root / f"{DELETING}{folder.name}"), ignore_errors=True)
