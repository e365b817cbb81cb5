"""Strong scaling from one process to two on one machine: the same global batch of 256 images, one thread a process.

Two processes exchange gradients through shared memory (fixed shards, the default on CPUs) or over gloo
(DistributedDataParallel). 2.0 would be perfect. Recorded figures: docs/performance.md.

examples:
  python benchmarks/scaling.py                            5 rounds of 600 steps: about 5 minutes on two cores
  python benchmarks/scaling.py --rounds 1 --steps 60      a quick look: about 1 minute
  python benchmarks/scaling.py --precision no             the same in fp32
  python benchmarks/scaling.py --json scaling.json        the figures in a file, too
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import run_script
from common.comparison import REFERENCE_TASK, Case, comparison_parser, run_comparison

PRECISIONS = ("auto", "no", "bf16")
PARSER = comparison_parser(__file__, __doc__)
PARSER.add_argument(
    "--precision", choices=PRECISIONS, default="auto", help="the trainer's train.precision (default: %(default)s)"
)


def cases_of(precision: str) -> list[Case]:
    """The cases in one precision."""
    task = [*REFERENCE_TASK, "--run.threads=1", "--tracking.mode=disabled", f"--train.precision={precision}"]
    baseline = "1 process"
    return [
        Case(baseline, task),
        Case("2 processes", task, baseline, processes=2),
        Case("2 processes, DistributedDataParallel", [*task, "--train.shards=0"], baseline, processes=2),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    return run_comparison(PARSER, cases_of(PARSER.parse_args(arguments).precision), arguments)


if __name__ == "__main__":
    run_script(main)
