"""On-disk format of a checkpoint: its files, the manifest, and how they are read without trusting them.

    checkpoints/step-00000215/
        model.safetensors      weights and buffers, without wrapper prefixes
        optimizer.safetensors  optimizer state as `{parameter}/{key}`, for example `head.weight/exp_avg`
        ema.safetensors        only with optim.ema
        state.json             progress, counts and the configuration: see `checkpoint.state`
        manifest.json          step, and the size and SHA-256 of each other file

Tensors are safetensors and everything else is JSON, so loading a checkpoint cannot execute code. Whoever can write into
the run directory may have written these files: each is read once, at a bounded size, checked against the manifest, and
parsed from those same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_dist.utils.files import MAX_JSON_BYTES, read_bounded
from mnist_dist.utils.strict_json import parse_strict, type_error

FORMAT_VERSION = 1
MANIFEST, STATE = "manifest.json", "state.json"
TENSOR_FILES = {part: f"{part}.safetensors" for part in ("model", "optimizer", "ema")}
REQUIRED_FILES = (STATE, TENSOR_FILES["model"], TENSOR_FILES["optimizer"])

MAX_TENSOR_BYTES = 1 << 30  # per file: Adam's state of 134 million parameters
MAX_STATE_BYTES = 1 << 24  # the counts of a million images of a thousand classes
MAX_BYTES = {STATE: MAX_STATE_BYTES} | dict.fromkeys(TENSOR_FILES.values(), MAX_TENSOR_BYTES)


class CorruptCheckpoint(Exception):
    """A checkpoint cannot be trusted. The message is one short line: which file, and why."""


def read_files(folder: Path, step: int) -> dict[str, bytes]:
    """Read every file that the manifest lists, each of the listed size and SHA-256.

    Args:
        folder: the checkpoint's folder.
        step: the step that the manifest must name.

    Raises:
        CorruptCheckpoint: a file is missing, not a regular file, too large, or differs from the manifest.
    """
    name = MANIFEST
    try:
        data = read_bounded(folder / MANIFEST, MAX_JSON_BYTES)
        entries = check_manifest(parse_strict(data), step)
        if data != dump_manifest(step, entries):
            raise ValueError("is not formatted as it was written")
        files = {}
        for name, entry in entries.items():
            files[name] = read_bounded(folder / name, MAX_BYTES[name], entry["bytes"])
            if hashlib.sha256(files[name]).hexdigest() != entry["sha256"]:
                raise ValueError("does not match its SHA-256 in the manifest")
    except OSError as error:
        reason = "is a link, not a file" if error.errno == errno.ELOOP else error.strerror
        raise CorruptCheckpoint(f"{name}: {reason}") from None
    except ValueError as error:
        raise CorruptCheckpoint(f"{name}: {error}") from None
    return files


def check_manifest(manifest: Mapping[str, Any], step: int) -> dict[str, dict[str, Any]]:
    """The manifest's entries, `{file: {"sha256", "bytes"}}`, once everything in it is checked.

    Raises:
        ValueError: another format version or step, or entries that no checkpoint has.
    """
    version = manifest.get("format")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"format {version!r:.40}, this version reads {FORMAT_VERSION}")
    if manifest.keys() != {"format", "step", "files"}:
        raise ValueError("has other keys than format, step and files")
    if type(manifest["step"]) is not int or manifest["step"] != step:
        raise ValueError(f"step {manifest['step']!r:.40} is not the step in the folder's name")
    entries = manifest["files"]
    if wrong := type_error(entries, dict[str, dict[str, Any]], "files"):
        raise ValueError(wrong)
    if unknown := sorted(entries.keys() - MAX_BYTES.keys()):
        raise ValueError(f"{unknown[0]!r:.40} is not a file of a checkpoint")
    if missing := [name for name in REQUIRED_FILES if name not in entries]:
        raise ValueError(f"does not list {missing[0]}")
    for name, entry in entries.items():
        if entry.keys() != {"bytes", "sha256"} or type(entry["bytes"]) is not int or type(entry["sha256"]) is not str:
            raise ValueError(f"does not list {name} with bytes and sha256 alone")
    return entries


def build_manifest(step: int, files: Mapping[str, bytes]) -> bytes:
    """The manifest of a checkpoint of `step` that holds these files."""
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return dump_manifest(step, entries)


def dump_manifest(step: int, entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The one spelling of a manifest; any other is refused when read."""
    return json.dumps({"format": FORMAT_VERSION, "step": step, "files": entries}, indent=1).encode()
