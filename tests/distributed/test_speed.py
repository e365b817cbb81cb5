"""What several processes say together of their speed and memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from programs import write_digits
from small_training import BASICS, open_trainer

from mnist_dist import train
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.training import profiler as profiling
from mnist_dist.training import summary
from mnist_dist.utils.errors import EXIT_DONE

SIZES = (40, 20)
SHORT = (*BASICS, "--train.batch_size=24", "--train.epochs=1")
ACCUMULATED = "--train.accumulate=2"


def summarized(folder: Path) -> dict[str, Any]:
    """A run's summary, as this rank has it; its memory is made up."""
    topology = read_topology()
    config = load(SHORT, topology.world_size).config
    summary.peak_memory = lambda device: 1000 + topology.rank % 2
    with start_runtime(config, topology) as runtime:
        trainer = open_trainer(runtime, config, folder, SIZES)
        trainer.train()
        return summary.summarize(trainer, trainer.evaluate("test"), None)


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_memory_is_that_of_the_process_that_needs_most(world_size: int, tmp_path: Path) -> None:
    for found in run_ranks(world_size, summarized, tmp_path):
        assert found["memory.peak_bytes"] == (1001 if world_size > 1 else 1000)
        assert found["train.images_per_second"] * found["train.step_seconds"] == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("settings", [["--train.shards=0"], ["--train.shards=6"], ["--train.shards=0", ACCUMULATED]])
def test_the_slowest_process_is_named_though_all_wait_for_it(settings: list[str], tmp_path: Path) -> None:
    """Rank 1 has work of 0.2 s beside each step. Others wait for it, mostly for its gradients: not their own work."""
    ranks = run_ranks(3, hindered, settings, tmp_path)
    assert ranks[0] == ranks[1] == ranks[2]
    (row,) = ranks[0]
    assert row["step_seconds.slowest_rank"] == 1
    assert row["step_seconds.most"] > 0.2 > 0.1 > row["step_seconds.least"] > 0


def hindered(settings: list[str], folder: Path) -> list[dict[str, Any]]:
    """The spread in the rows of a run of eight steps, with an evaluation and a checkpoint between them."""
    topology = read_topology()
    between = ["--tracking.log_steps=8", "--train.eval_steps=4", "--train.checkpoint_steps=5"]
    arguments = [*BASICS, "--train.batch_size=12", "--train.epochs=1", *between, *settings]
    config = load(arguments, topology.world_size).config

    def work(step: int) -> None:
        if topology.rank == 1:
            time.sleep(0.2)

    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:
        open_trainer(runtime, config, folder, (96, 20), work, rows=rows).train()
    spreads = [{key: value for key, value in row.items() if key.startswith("step_seconds.")} for row in rows]
    return [spread for spread in spreads if spread]


def profiled(arguments: list[str]) -> int:
    """The program, on ranks whose peaks are made up."""
    rank = read_topology().rank
    profiling.measure_peak = lambda *_: 1e9 * (rank + 1)
    return train.main(arguments)


@pytest.mark.parametrize("shards", [0, 6])
def test_each_process_writes_its_trace_and_the_main_one_the_table(shards: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=240, test=20)
    run = tmp_path / "run"
    options = [f"--data.root={tmp_path}/data", "--data.source=local", "--data.val_size=0", "--tracking.mode=disabled"]
    steps = ["--train.epochs=2", "--train.profile=2", f"--train.shards={shards}", "--run.quiet=true"]
    assert run_ranks(3, profiled, [*SHORT, *options, *steps, f"--run.dir={run}"]) == [EXIT_DONE] * 3
    names = {path.name for path in (run / "profile").iterdir()}
    assert names == {"rank0.json", "rank1.json", "rank2.json", "operators.txt"}
    text = (run / "profile/operators.txt").read_text()
    assert text.startswith("steps:     2, up to step 12, traced on rank 0 of 3\n")
    assert "6.00 GFLOP/s by all processes at once" in text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "mfu" in row]
    assert len(rows) == 20
    assert all(row["mfu"] == pytest.approx(row["flops_per_second"] / 6e9) for row in rows)
