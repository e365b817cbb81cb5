"""Peak memory, compute time per rank and profiles of several ranks."""

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
from mnist_dist.training import profiler, summary
from mnist_dist.utils.errors import EXIT_DONE

SIZES = (40, 20)
SHORT = (*BASICS, "--train.batch_size=24", "--train.epochs=1")


def summarize(folder: Path) -> dict[str, Any]:
    """The summary of a run on this rank, with a fake peak memory: 1001 bytes on ranks 1, 3, ..., else 1000."""
    topology = read_topology()
    config = load(SHORT, topology.world_size).config
    summary.peak_memory = lambda device: 1000 + topology.rank % 2
    with start_runtime(config, topology) as runtime:
        trainer = open_trainer(runtime, config, folder, SIZES)
        trainer.train()
        return summary.summarize(trainer, trainer.evaluate("test"), None)


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_summary_has_the_largest_peak_memory_of_all_ranks(world_size: int, tmp_path: Path) -> None:
    for found in run_ranks(world_size, summarize, tmp_path):
        assert found["memory.peak_bytes"] == (1001 if world_size > 1 else 1000)
        assert found["train.images_per_second"] * found["train.step_seconds"] == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize(
    "settings", [["--train.shards=0"], ["--train.shards=6"], ["--train.shards=0", "--train.accumulate=2"]]
)
def test_the_slowest_rank_is_found_although_all_ranks_wait_for_it(settings: list[str], tmp_path: Path) -> None:
    """Rank 1 sleeps 0.2 s in each step. The other ranks wait for its gradient, which is not their compute time."""
    ranks = run_ranks(3, train_with_slow_rank, settings, tmp_path)
    assert ranks[0] == ranks[1] == ranks[2]
    (row,) = ranks[0]
    assert row["step_seconds.slowest_rank"] == 1
    assert row["step_seconds.most"] > 0.2 > 0.1 > row["step_seconds.least"] > 0


def train_with_slow_rank(settings: list[str], folder: Path) -> list[dict[str, Any]]:
    """The `step_seconds.*` of the rows of eight steps, with an evaluation and a checkpoint between them."""
    topology = read_topology()
    steps = ["--tracking.log_steps=8", "--train.eval_steps=4", "--train.checkpoint_steps=5"]
    arguments = [*BASICS, "--train.batch_size=12", "--train.epochs=1", *steps, *settings]
    config = load(arguments, topology.world_size).config

    def slow_down(step: int) -> None:
        if topology.rank == 1:
            time.sleep(0.2)

    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:
        open_trainer(runtime, config, folder, (96, 20), slow_down, rows=rows).train()
    found = [{key: value for key, value in row.items() if key.startswith("step_seconds.")} for row in rows]
    return [spread for spread in found if spread]


def run_program(arguments: list[str]) -> int:
    """Run the program on this rank, with a fake peak of rank + 1 GFLOP/s."""
    rank = read_topology().rank
    profiler.measure_peak = lambda *_: 1e9 * (rank + 1)
    return train.main(arguments)


@pytest.mark.parametrize("shards", [0, 6])
def test_each_rank_writes_its_trace_and_rank_0_the_table(shards: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=240, test=20)
    run = tmp_path / "run"
    options = [f"--data.root={tmp_path}/data", "--data.source=local", "--data.val_size=0", "--tracking.mode=disabled"]
    steps = ["--train.epochs=2", "--train.profile=2", f"--train.shards={shards}", "--run.quiet=true"]
    assert run_ranks(3, run_program, [*SHORT, *options, *steps, f"--run.dir={run}"]) == [EXIT_DONE] * 3
    names = {path.name for path in (run / "profile").iterdir()}
    assert names == {"rank0.json", "rank1.json", "rank2.json", "operators.txt"}
    text = (run / "profile/operators.txt").read_text()
    assert text.startswith("steps:     2, up to step 12, traced on rank 0 of 3\n")
    assert "6.00 GFLOP/s by all processes at once" in text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "mfu" in row]
    assert len(rows) == 20
    assert all(row["mfu"] == pytest.approx(row["flops_per_second"] / 6e9) for row in rows)
