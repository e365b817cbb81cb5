"""A gradient that is not finite on one rank: all ranks do the same, at any number of ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from half_precision import use_fp16_on_cpu
from harness import run_ranks
from small_training import MetricsInMemory, open_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier
from mnist_dist.utils.errors import TrainingError

ARGUMENTS = ["--train.epochs=2", "--train.batch_size=12", "--run.device=cpu", "--run.threads=1", "--data.std=1"]
INF_IMAGE = 7
"""Index of the image whose gradient is not finite. Its first two pixels encode the index."""


class InfForOneImage(ImageClassifier):
    """A model that returns infinity, in training mode, for one image."""

    def forward(self, images: Tensor) -> Tensor:
        index_pixels = (images[:, 0, 0, :2] + 0.1307).mul(255).round()
        is_inf = (index_pixels[:, 0] == 0) & (index_pixels[:, 1] == INF_IMAGE) & self.training
        return super().forward(images) * torch.where(is_inf, torch.inf, 1.0)[:, None]


class WithoutRewind(MetricsInMemory):
    """Keeps the rows of steps that are rolled back."""

    def rewind(self, step: int) -> None:
        """Append a row instead of removing the later ones."""
        self.rows.append({"step": step})


def train(arguments: list[str], folder: Path, strategy: str) -> tuple[str, str, int, int, tuple[int, ...]]:
    """SHA-256 of the weights, error, skipped updates, rollbacks, and the number of images in each epoch's metrics."""
    if strategy == "fp16":
        use_fp16_on_cpu(pytest.MonkeyPatch(), scale=8.0)
    if strategy == "fsdp":
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    topology = read_topology()
    config = load([*ARGUMENTS, *arguments], topology.world_size).config
    error = ""
    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:
        body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten())
        model = InfForOneImage(body, nn.Linear(4 * 13 * 13, 10))
        metrics_file = WithoutRewind(rows)
        trainer = open_trainer(runtime, config, folder, (60, 20), build_model=lambda: model, metrics_file=metrics_file)
        try:
            trainer.train()
        except TrainingError as caught:
            error = str(caught)
        counts = tuple(row["epoch.train.count"] for row in rows if "epoch.train.count" in row)
        return (
            weights_sha256(trainer.state.eval_model),
            error,
            trainer.progress.nonfinite_skips,
            trainer.progress.rollbacks,
            counts,
        )


@pytest.mark.parametrize("strategy", ["shards", "ddp", "fsdp", "fp16"])
@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_any_number_of_ranks_does_the_same(policy: str, strategy: str, tmp_path: Path) -> None:
    shards = 6 if strategy == "shards" else 0
    arguments = [f"--train.shards={shards}", f"--train.nonfinite={policy}", "--tracking.log_steps=4"]
    results = {n: run_ranks(n, train, arguments, tmp_path / str(n), strategy) for n in (1, 2, 3)}
    for ranks in results.values():
        assert len(set(ranks)) == 1
    ((sha256, error, nonfinite_skips, rollbacks, counts),) = results[1]
    assert bool(error) == (policy == "raise")
    # Each epoch has one batch with that image. It is in the metrics, unless a rollback skips the batch.
    assert counts == {"raise": (), "skip": (60, 60), "rollback": (48, 48)}[policy]
    assert (nonfinite_skips, rollbacks) == {"raise": (0, 0), "skip": (2 * (strategy != "fp16"), 0), "rollback": (0, 2)}[
        policy
    ]
    for ranks in results.values():
        assert ranks[0][1:] == (error, nonfinite_skips, rollbacks, counts)
        assert ranks[0][0] == sha256 or strategy != "shards"
