"""A gradient that is not finite on one rank alone: all do the same, at any number of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks
from small_training import Rows, open_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier
from mnist_dist.utils.errors import TrainingError

ARGUMENTS = ["--train.epochs=2", "--train.batch_size=12", "--run.device=cpu", "--run.threads=1", "--data.std=1"]
POISON = 7
"""The index of the image that no gradient can be had of. Its first two pixels spell it."""


class Allergic(ImageClassifier):
    """A net that gives infinity, in training, for one image."""

    def forward(self, images: Tensor) -> Tensor:
        first = (images[:, 0, 0, :2] + 0.1307).mul(255).round()
        bad = (first[:, 0] == 0) & (first[:, 1] == POISON) & self.training
        return super().forward(images) * torch.where(bad, torch.inf, 1.0)[:, None]


class Noting(Rows):
    """Notes a rewind as a row."""

    def rewind(self, step: int) -> None:
        """Note it."""
        self.rows.append({"step": step})


def train(arguments: list[str], folder: Path, fsdp: bool) -> tuple[str, str, int, int, tuple[int, ...]]:
    """The weights' digest, the error, what was left out and gone back from, and the images that each epoch counted."""
    if fsdp:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    topology = read_topology()
    config = load([*ARGUMENTS, *arguments], topology.world_size).config
    error = ""
    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:
        body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten())
        network = Allergic(body, nn.Linear(4 * 13 * 13, 10))
        trainer = open_trainer(runtime, config, folder, (60, 20), network=lambda: network, metrics_file=Noting(rows))
        try:
            trainer.train()
        except TrainingError as caught:
            error = str(caught)
        counted = tuple(row["epoch.train.count"] for row in rows if "epoch.train.count" in row)
        return (
            weights_sha256(trainer.state.eval_model),
            error,
            trainer.progress.nonfinite_skips,
            trainer.progress.rollbacks,
            counted,
        )


@pytest.mark.parametrize("way", ["shards", "whole", "fsdp"])
@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_all_ranks_decide_alike(policy: str, way: str, tmp_path: Path) -> None:
    shards = 6 if way == "shards" else 0
    arguments = [f"--train.shards={shards}", f"--train.nonfinite={policy}", "--tracking.log_steps=4"]
    ends = {n: run_ranks(n, train, arguments, tmp_path / str(n), way == "fsdp") for n in (1, 2, 3)}
    for ranks in ends.values():
        assert len(set(ranks)) == 1
    ((sha256, error, nonfinite_skips, rollbacks, counted),) = ends[1]
    assert bool(error) == (policy == "raise")
    # Each epoch has one batch with that image: counted where it was computed, but not where it was then avoided.
    assert counted == {"raise": (), "skip": (60, 60), "rollback": (48, 48)}[policy]
    assert (nonfinite_skips, rollbacks) == {"raise": (0, 0), "skip": (2, 0), "rollback": (0, 2)}[policy]
    for ranks in ends.values():
        assert ranks[0][1:] == (error, nonfinite_skips, rollbacks, counted)
        assert ranks[0][0] == sha256 or way != "shards"
