"""What several processes say together of their speed and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from rehearsal import BASICS, open_loop

from mnist_dist import summary
from mnist_dist.config_loader import load
from mnist_dist.runtime import start_runtime
from mnist_dist.topology import read_topology

SIZES = (40, 20)
SHORT = (*BASICS, "--train.batch_size=24", "--train.epochs=1")


def summarized(folder: Path) -> dict[str, Any]:
    """A run's summary, as this rank has it; its memory is made up."""
    topology = read_topology()
    config = load(SHORT, topology.world_size).config
    summary.peak_memory = lambda device: 1000 + topology.rank % 2
    with start_runtime(config, topology) as runtime:
        loop = open_loop(runtime, config, folder, SIZES)
        loop.train(folder, lambda row: None)
        return summary.summarize(loop, loop.evaluate("test"), None)


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_memory_is_that_of_the_process_that_needs_most(world_size: int, tmp_path: Path) -> None:
    for found in run_ranks(world_size, summarized, tmp_path):
        assert found["memory.peak_bytes"] == (1001 if world_size > 1 else 1000)
        assert found["train.images_per_second"] * found["train.step_seconds"] == pytest.approx(20, rel=0.01)
