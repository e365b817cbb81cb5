"""A checkpoint's files: each read once, at a bounded size, checked against the manifest, and parsed from those bytes.

Whoever may write into a run's folder may have written these files, so nothing in them is trusted: what is odd is
refused in one line, before memory is spent on it.
"""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from mnist_dist.utils.files import MAX_JSON_BYTES, read_bounded
from mnist_dist.utils.strict_json import parse_strict, type_error

MANIFEST, STATE = "manifest.json", "state.json"
PARTS = ("model", "optimizer", "ema")
TENSOR_FILES = {part: f"{part}.safetensors" for part in PARTS}
FORMAT = 1

MAX_TENSOR_BYTES = 1 << 28  # of one file: two hundred times the largest registered model with Adam's state
LIMITS = {STATE: MAX_JSON_BYTES} | dict.fromkeys(TENSOR_FILES.values(), MAX_TENSOR_BYTES)


class CorruptCheckpoint(Exception):
    """A checkpoint cannot be trusted. The message is one short line: which file, and why."""


def read_files(folder: Path, step: int) -> dict[str, bytes]:
    """The content of the files that the manifest names, each as long and with the digest that it says.

    Args:
        step: what the checkpoint must be of.

    Raises:
        CorruptCheckpoint: a file is absent, no regular file, too large, or not what was written.
    """
    name = MANIFEST
    try:
        data = read_bounded(folder / MANIFEST, MAX_JSON_BYTES)
        described = check_manifest(manifest := parse_strict(data), step)
        if data != dump_manifest(manifest["step"], described):
            raise ValueError("is not spaced as it was written")
        files = {}
        for name, expected in described.items():
            files[name] = read_bounded(folder / name, LIMITS[name], expected["bytes"])
            if hashlib.sha256(files[name]).hexdigest() != expected["sha256"]:
                raise ValueError("its content is not what was written")
    except OSError as error:
        linked = error.errno == errno.ELOOP
        raise CorruptCheckpoint(f"{name}: {'is a link, not a file' if linked else error.strerror}") from None
    except ValueError as error:
        raise CorruptCheckpoint(f"{name}: {error}") from None
    return files


def dump_manifest(step: int, described: dict[str, dict[str, Any]]) -> bytes:
    """The manifest of a checkpoint of this step, from each file's `sha256` and `bytes`."""
    return json.dumps({"format": FORMAT, "step": step, "files": described}, indent=1).encode()


def check_manifest(manifest: dict[str, Any], step: int) -> dict[str, dict[str, Any]]:
    """The manifest's description of each file. Raises ValueError."""
    if (found := manifest.get("format")) != FORMAT or type(found) is not int:
        raise ValueError(f"format {found!r:.40}, this version reads {FORMAT}")
    if manifest.keys() != {"format", "step", "files"}:
        raise ValueError("names other things than format, step and files")
    if type(manifest["step"]) is not int or manifest["step"] != step:
        raise ValueError(f"is of step {manifest['step']!r:.40}, which is not the folder's name")
    files = manifest["files"]
    if wrong := type_error(files, dict[str, dict[str, Any]], "files"):
        raise ValueError(wrong)
    if unknown := sorted(files.keys() - LIMITS.keys()):
        raise ValueError(f"{unknown[0]!r:.40} is not a file of a checkpoint")
    if {STATE, TENSOR_FILES["model"], TENSOR_FILES["optimizer"]} - files.keys():
        raise ValueError("names too few files")
    for name, description in files.items():
        size, digest = description.get("bytes"), description.get("sha256")
        if description.keys() != {"bytes", "sha256"} or type(size) is not int or type(digest) is not str:
            raise ValueError(f"does not describe {name} by bytes and sha256")
    return files
