"""What reliability costs: fixed shards against DistributedDataParallel, and checkpoints against none.

    python benchmarks/reliability.py [--rounds 5] [--steps 200] [--only TEXT]

Measured as `mnist-dist benchmark` does: whole processes, rounds interleaved, everything between the steps counted.
"""

from __future__ import annotations

import argparse

from mnist_dist.commands.benchmark import TWO, show_rates
from mnist_dist.commands.benchmark_runner import Contestant, measure

ONE = ["-m", "mnist_dist.train", "--run.quiet=true", "--run.device=cpu", "--tracking.mode=disabled"]
ONE += ["--train.epochs=6", "--train.batch_size=256", "--tracking.log_steps=50"]
PAIR = [*TWO, *ONE]
CNN, SHARDS, PLAIN = "--config=seeds/cnn", "--train.shards=4", "--train.shards=0"
SAVING = "--train.checkpoint_steps=50"
PAIRS = {
    "4 shards / DDP, 2 processes, default recipe": ([*PAIR, SHARDS], [*PAIR, PLAIN]),
    "4 shards / DDP, 2 processes, seeds/cnn": ([*PAIR, SHARDS, CNN], [*PAIR, PLAIN, CNN]),
    "4 shards / whole batch, 1 process, default recipe": ([*ONE, SHARDS], [*ONE, PLAIN]),
    "4 shards / whole batch, 1 process, seeds/cnn": ([*ONE, SHARDS, CNN], [*ONE, PLAIN, CNN]),
    "a checkpoint every 50 steps / none": ([*ONE, SAVING], ONE),
    "a checkpoint every 10 steps / none": ([*ONE, "--train.checkpoint_steps=10"], ONE),
    "nonfinite=rollback / raise, a checkpoint every 50 steps": (
        [*ONE, SAVING, "--train.nonfinite=rollback"],
        [*ONE, SAVING],
    ),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="of each run; default: %(default)s")
    parser.add_argument("--only", default="", help="comparisons whose name holds this text")
    options = parser.parse_args()
    for name, (first, second) in PAIRS.items():
        if options.only in name:
            before, after = name.split(",")[0].split(" / ")
            contestants = [Contestant(after, second), Contestant(before, first, against=after)]
            show_rates(name, measure(contestants, options.rounds, options.steps))


if __name__ == "__main__":
    main()
