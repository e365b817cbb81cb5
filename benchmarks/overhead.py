"""The trainer's overhead: its steps per second against a bare PyTorch loop on the same model, batch and precision.

The trainer keeps metrics, an offline tracker and a checkpoint every 100 steps; the loop (references/bare_loop.py) has
none of it. On the CPU; both use all cores. Recorded figures: docs/performance.md.

examples:
  python benchmarks/overhead.py                           5 rounds of 600 steps: about 8 minutes on two cores
  python benchmarks/overhead.py --rounds 1 --steps 60     a quick look: about 1 minute
  python benchmarks/overhead.py --only bf16               the comparison in bf16 alone
  python benchmarks/overhead.py --json overhead.json      the figures in a file, too
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import run_script
from common.comparison import ALL_ON, BARE_LOOP, Case, comparison_parser, run_comparison

FP32, BF16 = "bare loop, fp32", "bare loop, bf16"
CASES = [
    Case(FP32, reference=BARE_LOOP),
    Case("trainer, fp32", [*ALL_ON, "--train.precision=no"], FP32),
    Case("trainer without shards, fp32", [*ALL_ON, "--train.precision=no", "--train.shards=0"], FP32),
    Case(BF16, ["--precision=bf16"], reference=BARE_LOOP),
    Case("trainer, bf16", [*ALL_ON, "--train.precision=bf16"], BF16),
]
PARSER = comparison_parser(__file__, __doc__)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    return run_comparison(PARSER, CASES, arguments)


if __name__ == "__main__":
    run_script(main)
