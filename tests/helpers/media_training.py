"""A small training run that logs media, as plain values that tests on several ranks can compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_training import open_trainer
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
LoggedMedia = list[tuple[int, int, dict[str, Any]]]


def stateful_model() -> nn.Module:
    """A model that an extra forward pass could change: dropout, and batch norm with running statistics."""
    body = nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 4, 3), nn.Flatten()
    )
    return ImageClassifier(body, nn.Linear(4 * 10 * 10, 10))


def to_plain(value: Any) -> Any:
    """Media with arrays as lists, and nan and infinities as text, since nan is not equal to itself."""
    if isinstance(value, Media):
        return to_plain(asdict(value))
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        assert value.dtype == np.uint8
        return value.tolist()
    return value if not isinstance(value, float) or np.isfinite(value) else repr(value)


def train(
    arguments: tuple[str, ...], folder: Path, sizes: tuple[int, int], has_media: bool = True, stop_after: int = -1
) -> tuple[LoggedMedia, list[dict[str, Any]], str, str, list[int]]:
    """Train from the folder's newest checkpoint to the end, or until the last rank requests a stop.

    Args:
        has_media: whether a Visualizer logs media.
        stop_after: step after which the last rank requests a stop; -1 trains to the end.

    Returns:
        The media that this rank logged, its rows of metrics, the SHA-256 of the weights and of the evaluated weights,
        and the state of torch's random generator.
    """
    topology = read_topology()
    config = load([*ARGUMENTS, *arguments], topology.world_size).config
    logged: LoggedMedia = []
    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:

        def after_step(step: int) -> None:
            if step == stop_after and runtime.rank == runtime.world_size - 1:
                runtime.request_stop()

        def log(step: int, epoch: int, media: Media) -> None:
            logged.append((step, epoch, to_plain(media)))

        log_media = log if has_media else None
        trainer = open_trainer(
            runtime, config, folder, sizes, after_step, build_model=stateful_model, rows=rows, log_media=log_media
        )
        try:
            trainer.train()
        except Stopped:
            assert stop_after >= 0
        assert trainer.state.model.training
        rng_state = torch.get_rng_state().tolist()
        return logged, rows, weights_sha256(trainer.state.model), weights_sha256(trainer.state.eval_model), rng_state
