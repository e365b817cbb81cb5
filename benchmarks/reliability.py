"""What reliability costs: fixed shards against DistributedDataParallel, and checkpoints against none.

    python benchmarks/reliability.py [--rounds 5] [--steps 200] [--only TEXT]

Every comparison is a ratio of steps per second in one run of this program, rounds interleaved; medians are printed. A
rate is taken between the first and the last row of metrics.jsonl: without the start, with all that happens between.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ONE = [sys.executable, "-m", "mnist_dist.train"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mnist_dist.train"]
COMMON = [
    "--run.quiet=true",
    "--run.device=cpu",
    "--tracking.mode=disabled",
    "--tracking.log_steps=50",
    "--train.epochs=6",
]
CNN = "--config=seeds/cnn"
SHARDS, PLAIN = ["--train.shards=4"], ["--train.shards=0"]
COMPARISONS = {
    "4 shards / DDP, 2 processes, default recipe": (TWO, SHARDS, PLAIN),
    "4 shards / DDP, 2 processes, seeds/cnn": (TWO, [*SHARDS, CNN], [*PLAIN, CNN]),
    "4 shards / whole batch, 1 process, default recipe": (ONE, SHARDS, PLAIN),
    "4 shards / whole batch, 1 process, seeds/cnn": (
        ONE,
        [*SHARDS, "--config=seeds/cnn"],
        [*PLAIN, "--config=seeds/cnn"],
    ),
    "a checkpoint every 50 steps / none": (ONE, ["--train.checkpoint_steps=50"], []),
    "a checkpoint every 10 steps / none": (ONE, ["--train.checkpoint_steps=10"], []),
    "nonfinite=rollback / raise, a checkpoint every 50 steps": (
        ONE,
        ["--train.checkpoint_steps=50", "--train.nonfinite=rollback"],
        ["--train.checkpoint_steps=50"],
    ),
}


def rate(command: list[str], options: list[str], steps: int) -> float:
    """Steps per second of one run."""
    with tempfile.TemporaryDirectory() as folder:
        here = [
            *COMMON,
            "--train.epochs=6",
            f"--train.max_steps={steps}",
            "--train.batch_size=256",
            f"--run.dir={folder}/run",
        ]
        subprocess.run([*command, *options, *here], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "images_per_second" in row]
        return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["time"] - rows[0]["time"])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="of each run; default: %(default)s")
    parser.add_argument("--only", default="", help="comparisons whose name holds this text")
    options = parser.parse_args()
    table = Table(title=f"medians of {options.rounds} rounds of {options.steps} steps")
    for heading in ("comparison", "ratio", "least", "most", "steps/s", "against"):
        table.add_column(heading, justify="left" if heading == "comparison" else "right")
    for name, (command, first, second) in COMPARISONS.items():
        if options.only not in name:
            continue
        pairs = [
            (rate(command, first, options.steps), rate(command, second, options.steps)) for _ in range(options.rounds)
        ]
        ratios = [a / b for a, b in pairs]
        both = [statistics.median(side) for side in zip(*pairs, strict=True)]
        figures = [statistics.median(ratios), min(ratios), max(ratios), *both]
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
