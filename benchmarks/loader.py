"""The trainer against the accelerate loop of the tutorials: torchvision's dataset, a DataLoader, `prepare` on all.

The tutorials' loop (references/textbook_accelerate.py) transforms each image in Python; the trainer gathers batches
from a tensor in memory, and keeps metrics, an offline tracker and checkpoints besides. On the CPU; both use all cores.
Recorded figures: docs/performance.md.

examples:
  python benchmarks/loader.py                             5 rounds of 600 steps: about 6 minutes on two cores
  python benchmarks/loader.py --rounds 1 --steps 60       a quick look: about 1 minute
  python benchmarks/loader.py --only fp32                 the comparison in fp32 alone
  python benchmarks/loader.py --json loader.json          the figures in a file, too
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import run_script
from common.comparison import ALL_ON, TEXTBOOK, Case, comparison_parser, run_comparison

BASELINE = "textbook accelerate loop"
CASES = [
    Case(BASELINE, reference=TEXTBOOK),
    Case("trainer, fp32", [*ALL_ON, "--train.precision=no"], BASELINE),
    Case("trainer, its default precision", ALL_ON, BASELINE),
    Case("trainer, its default precision, 2 shards", [*ALL_ON, "--train.shards=2"], BASELINE),
]
PARSER = comparison_parser(__file__, __doc__)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    return run_comparison(PARSER, CASES, arguments)


if __name__ == "__main__":
    run_script(main)
