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
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mnist_dist.errors import TrainingError, UserError

MANIFEST, STATE = "manifest.json", "state.json"
FORMAT = 1
MAX_JSON_BYTES = 1 << 20
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: named CPU tensors of the model, the optimizer and (or empty) the EMA, and the state."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(root: Path, step: int, saved: Saved) -> Path:
    """Write `root/step-NNNNNNNN`, durable and complete before it has that name.

    Raises:
        TrainingError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    final = root / f"step-{step:08d}"
    aside, replaced = root / f".writing-{final.name}", root / f".replaced-{final.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in (aside, replaced):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        files = {"model": saved.model, "optimizer": saved.optimizer} | ({"ema": saved.ema} if saved.ema else {})
        for name, tensors in files.items():
            save_file(contiguous(tensors), aside / f"{name}.safetensors")
        (aside / STATE).write_text(json.dumps(saved.state, indent=1))
        described = {path.name: {"sha256": digest(path), "bytes": path.stat().st_size} for path in aside.iterdir()}
        (aside / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": described}, indent=1))
        for path in aside.iterdir():
            sync(path)
        sync(aside)
        if final.exists():  # the same step again, after a resume: the new one replaces it
            final.rename(replaced)
        aside.rename(final)
        sync(root)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {final}: cannot be written ({error}); free space or check the folder, then start again to "
            "go on from the checkpoint before"
        ) from error
    return final


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors as safetensors stores them: contiguous, none sharing memory with another."""
    return {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def list_checkpoints(root: Path) -> list[Path]:
    """Folders named as checkpoints, oldest step first."""
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def newest_checkpoint(root: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is named in a warning and passed over."""
    for folder in reversed(list_checkpoints(root)):
        reason = damage(folder)
        if reason is None:
            return folder
        warn(f"checkpoint {folder} is damaged ({reason}) and passed over")
    return None


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None if every file is as its manifest says."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            return f"{MANIFEST}: format {manifest.get('format')!r}, this version reads {FORMAT}"
        files = manifest["files"]
        if {STATE, "model.safetensors", "optimizer.safetensors"} - files.keys():
            return f"{MANIFEST}: names too few files"
        for name, expected in files.items():
            if Path(name).name != name or name in ("", ".."):
                return f"{MANIFEST}: {name!r} is not a file's name"
            if (folder / name).stat().st_size != expected["bytes"]:
                return f"{name}: {(folder / name).stat().st_size} bytes instead of {expected['bytes']}"
            if digest(folder / name) != expected["sha256"]:
                return f"{name}: its content is not what was written"
    except OSError as error:
        return f"{Path(str(error.filename or folder)).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error or type(error).__name__}"
    return None


def load_checkpoint(folder: Path) -> Saved:
    """Read a checkpoint after checking it against its manifest.

    Raises:
        UserError: it is damaged or absent.
    """
    reason = damage(folder)
    if reason is not None:
        raise UserError(f"checkpoint {folder}: {reason}; choose another one")
    try:
        described = read_json(folder / MANIFEST)["files"]  # a file that it does not name was not checked
        tensors = {
            name: load_file(folder / f"{name}.safetensors") if f"{name}.safetensors" in described else {}
            for name in ("model", "optimizer", "ema")
        }
        return Saved(**tensors, state=read_json(folder / STATE))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({error})") from error


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a model, which must have exactly these, of these shapes and types.

    Raises:
        UserError: names the first tensor that does not fit.
    """
    own = model.state_dict()
    odd = sorted(own.keys() ^ tensors.keys())
    if odd:
        raise UserError(f"{source}: {odd[0]} is {'missing' if odd[0] in own else 'not part of this model'}")
    for name, tensor in own.items():
        theirs = tensors[name]
        if theirs.shape != tensor.shape or theirs.dtype != tensor.dtype:
            raise UserError(
                f"{source}: {name} is {theirs.dtype} {tuple(theirs.shape)}, the model's {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    model.load_state_dict(dict(tensors))


def prune_checkpoints(root: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. Call it after a new one is complete."""
    for folder in list_checkpoints(root)[:-keep]:
        if step_of(folder) != best_step:
            shutil.rmtree(folder, ignore_errors=True)


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over a model's state: names sorted, each name then its tensor's contiguous little-endian bytes.

    Two runs are the same if and only if this is equal.
    """
    result = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        result.update(name.encode())
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        result.update(raw.numpy().tobytes())
    return result.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        ValueError: too large, not JSON, or not an object. OSError: unreadable.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(path.read_text())
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} does not hold an object")
    return value


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what is written there then takes the place of `path` at once, durably."""
    aside = path.with_name(f".writing-{path.name}")
    try:
        yield aside
        sync(aside)
        aside.rename(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """A file's SHA-256."""
    result = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()


def sync(path: Path) -> None:
    """Have a file's or a folder's content reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
