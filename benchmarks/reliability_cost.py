"""What reliability costs in steps per second: fixed shards against DistributedDataParallel, checkpoints against none.

On the CPU, batch 256. Recorded figures: docs/reliability.md.

examples:
  python benchmarks/reliability_cost.py                             5 rounds of 200 steps: about 10 minutes
  python benchmarks/reliability_cost.py --rounds 1 --steps 110      a quick look: about 2 minutes
  python benchmarks/reliability_cost.py --only checkpoint           the cost of checkpoints alone
  python benchmarks/reliability_cost.py --json reliability.json     the figures in a file, too
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import run_script
from common.comparison import Case, comparison_parser, run_comparison

TRAIN = ["--run.device=cpu", "--tracking.mode=disabled", "--train.epochs=6", "--train.batch_size=256"]
TRAIN += ["--tracking.log_steps=50"]
CNN, SHARDS, NO_SHARDS = "--config=seeds/cnn", "--train.shards=4", "--train.shards=0"
SAVING = "--train.checkpoint_steps=50"
DDP, DDP_CNN = "DDP, 2 processes, default recipe", "DDP, 2 processes, seeds/cnn"
WHOLE, WHOLE_CNN = "whole batch, 1 process, default recipe", "whole batch, 1 process, seeds/cnn"
NONE, EVERY_50 = "no checkpoint", "a checkpoint every 50 steps"
CASES = [
    Case(DDP, [*TRAIN, NO_SHARDS], processes=2),
    Case("4 shards, 2 processes, default recipe", [*TRAIN, SHARDS], DDP, processes=2),
    Case(DDP_CNN, [*TRAIN, NO_SHARDS, CNN], processes=2),
    Case("4 shards, 2 processes, seeds/cnn", [*TRAIN, SHARDS, CNN], DDP_CNN, processes=2),
    Case(WHOLE, [*TRAIN, NO_SHARDS]),
    Case("4 shards, 1 process, default recipe", [*TRAIN, SHARDS], WHOLE),
    Case(WHOLE_CNN, [*TRAIN, NO_SHARDS, CNN]),
    Case("4 shards, 1 process, seeds/cnn", [*TRAIN, SHARDS, CNN], WHOLE_CNN),
    Case(NONE, TRAIN),
    Case(EVERY_50, [*TRAIN, SAVING], NONE),
    Case("a checkpoint every 10 steps", [*TRAIN, "--train.checkpoint_steps=10"], NONE),
    Case("nonfinite=rollback, a checkpoint every 50 steps", [*TRAIN, SAVING, "--train.nonfinite=rollback"], EVERY_50),
]
PARSER = comparison_parser(__file__, __doc__, steps=200, minimum=101)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    return run_comparison(PARSER, CASES, arguments)


if __name__ == "__main__":
    run_script(main)
