"""DDP's reducer is freed before its process group: afterwards its destructor could wait for gloo's threads for ever."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
from harness import run_ranks
from small_training import open_trainer

from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology

ARGUMENTS = ["--train.epochs=1", "--train.batch_size=12", "--train.shards=0", "--run.device=cpu", "--run.threads=1"]


def reducer_outlives_runtime(folder: Path, fails: bool) -> bool:
    """Whether the reducer lives after the runtime, while the trainer does."""
    topology = read_topology()
    config = load(ARGUMENTS, topology.world_size).config
    try:
        with start_runtime(config, topology) as runtime:
            trainer = open_trainer(runtime, config, folder, (24, 12))
            reducer = weakref.ref(trainer.train_step.strategy.wrapped_model.reducer)
            trainer.train()
            assert reducer() is not None
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    return reducer() is not None


@pytest.mark.parametrize("fails", [False, True])
def test_the_reducer_is_freed_first(fails: bool, tmp_path: Path) -> None:
    assert run_ranks(2, reducer_outlives_runtime, tmp_path, fails) == [False, False]
