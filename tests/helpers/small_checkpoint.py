"""A checkpoint of a few tensors, for the tests of writing, reading and refusing checkpoints."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_dist.checkpoint.format import CorruptCheckpoint
from mnist_dist.checkpoint.manager import CheckpointData, verify_checkpoint
from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.config.schema import Config

SIZE = 103  # counts of ten classes
FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json")


def state_of(step: int) -> dict[str, Any]:
    """A state.json of this step."""
    return {
        "run_id": "ab12",
        "progress": asdict(
            TrainProgress(step=step, epoch=step // 4, step_in_epoch=step % 4, images=step * 9, seconds=0.5)
        ),
        "ema_updates": step,
        "window": [1] * SIZE,
        "epoch_counts": [2**60] * SIZE,
        "norms": {"count": 3, "nonfinite": 1, "total": 0.75, "most": 0.5},
        "scaler": {},
        "config": Config().to_dict(),
        "machine": {"torch": "2.10", "kernels": "cpu"},
        "data": {"train": "0123456789abcdef" * 4, "test": "f" * 64},
        "code": {},
        "initial_weights": {
            "source": "runs/a/checkpoints/step-00000009",
            "sha256": "a" * 64,
            "trained_on": [{"sha256": "b" * 64, "seed": 3, "val_size": 5000, "limit": 0}],
        },
    }


def saved(seed: int = 0, step: int = 7) -> CheckpointData:
    """Checkpoint data that is different for each seed and each step."""
    generator = torch.Generator().manual_seed(seed * 1000 + step % 1000)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return CheckpointData(
        model={"body.weight": draw(4, 3, 5, 5).to(memory_format=torch.channels_last), "body.bias": draw(4)},
        optimizer={"body.weight/exp_avg": draw(4, 3, 5, 5), "body.weight/step": torch.tensor(7.0)},
        ema={"body.weight": draw(4, 3, 5, 5), "count": torch.tensor(3)},
        state=state_of(step),
    )


def is_same(found: CheckpointData, expected: CheckpointData) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    pairs = [(getattr(found, part), getattr(expected, part)) for part in ("model", "optimizer", "ema")]
    return found.state == expected.state and all(
        ours.keys() == theirs.keys()
        and all(ours[n].dtype == t.dtype and ours[n].shape == t.shape and ours[n].equal(t) for n, t in theirs.items())
        for ours, theirs in pairs
    )


def corruption(folder: Path) -> str | None:
    """Why the checkpoint in a folder is corrupt, or None if it is whole."""
    try:
        verify_checkpoint(folder)
    except CorruptCheckpoint as reason:
        return str(reason)
    return None


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Forge a checkpoint's file: write other content, and its size and SHA-256 into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
