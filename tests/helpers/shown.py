"""What ranks show of a network: media as plain values that can be compared, and nets that have everything."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rehearsal import open_trainer
from torch import nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier
from mnist_dist.tracking.media import Media
from mnist_dist.utils.errors import Stopped

ARGUMENTS = (
    *("--run.device=cpu", "--run.threads=1", "--train.batch_size=24", "--train.epochs=2", "--train.eval_batch_size=7"),
    *("--tracking.log_steps=2", "--tracking.examples=5"),
)
Shown = list[tuple[int, int, dict[str, Any]]]


def noisy() -> nn.Module:
    """A net that looking at it could disturb: dropout, and batch norms with running statistics."""
    body = nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 4, 3), nn.Flatten()
    )
    return ImageClassifier(body, nn.Linear(4 * 10 * 10, 10))


def plain(value: Any) -> Any:
    """Media with arrays as lists; what is not finite as text, since nan is not equal to itself."""
    if isinstance(value, Media):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        assert value.dtype == np.uint8
        return value.tolist()
    return value if not isinstance(value, float) or np.isfinite(value) else repr(value)


def train(
    arguments: tuple[str, ...], folder: Path, sizes: tuple[int, int], shows: bool = True, stop: int = -1
) -> tuple[Shown, list[dict[str, Any]], str, str, list[int]]:
    """Train, from the folder's newest checkpoint on, until the end or until a stop that one rank asks for.

    Returns:
        what this rank showed, its rows, the digests of the weights and of their average, and the state of torch's
        random numbers.
    """
    topology = read_topology()
    config = load([*ARGUMENTS, *arguments], topology.world_size).config
    shown: Shown = []
    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:

        def after_step(step: int) -> None:
            if step == stop and runtime.rank == runtime.world_size - 1:
                runtime.request_stop()

        show = (lambda *seen: shown.append((*seen[:2], plain(seen[2])))) if shows else None
        trainer = open_trainer(runtime, config, folder, sizes, after_step, network=noisy, rows=rows, show=show)
        try:
            trainer.train()
        except Stopped:
            assert stop >= 0
        assert trainer.state.model.training
        random = torch.get_rng_state().tolist()
        return shown, rows, weights_sha256(trainer.state.model), weights_sha256(trainer.state.eval_model), random
