"""What the wandb tracker costs: steps per second with it, offline, as ratios to those without; and each epoch's end.

Whole runs of the default recipe on the CPU, rounds interleaved: without a tracker, with rows of metrics only, and with
the defaults (examples, feature maps, histograms too). `ratio` is of the epochs after the first, in which wandb starts,
with what happens between epochs; `whole run` is of all epochs. `epoch's end` is the time from the last row of the first
epoch, which shows media, to the first row of the second: 35 steps, an evaluation, a checkpoint and what the tracker
adds. A run during which other programs took more than 5 % of the machine is repeated.

examples:
  python benchmarks/tracking_cost.py                                          5 rounds: about 5 minutes, if idle
  python benchmarks/tracking_cost.py --rounds 1 --epochs 2 --max_load 1       a quick look: about a minute
  python benchmarks/tracking_cost.py --json tracking.json                     the figures in a file, too
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from common.cli import add_count, add_json, build_parser, run_script, write_json
from common.idle import add_max_load, machine, measure_when_idle
from common.processes import train
from common.rounds import RoundResults, ratios, run_rounds
from common.tables import print_table

OPTIONS = ["--run.device=cpu"]
BASELINE = "no tracker"
CASES = {
    BASELINE: ["--tracking.mode=disabled"],
    "rows only": ["--tracking.mode=offline", "--tracking.examples=0", "--tracking.histograms=false"],
    "defaults": ["--tracking.mode=offline"],
}
EPOCH = 215  # steps of an epoch of the default recipe
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "rounds", 5, "rounds, of which medians are taken")
add_count(PARSER, "epochs", 3, "epochs of each run", minimum=2)
add_max_load(PARSER)
add_json(PARSER)


class Cost(NamedTuple):
    """What one run took."""

    rate: float
    """Steps per second of the epochs after the first."""
    whole_rate: float
    """Steps per second of the whole run after its first row."""
    epoch_end: float
    """Seconds from the last row of the first epoch to the first row of the second."""


def measure(case: str, epochs: int) -> Cost:
    """Train once."""
    options = [*OPTIONS, *CASES[case], f"--train.max_steps={epochs * EPOCH}"]
    rows = train(options, environment={"WANDB_MODE": ""}).rows
    second = next(place for place, row in enumerate(rows) if row["step"] > EPOCH)
    return Cost(
        rate_between(rows[second], rows[-1]),
        rate_between(rows[0], rows[-1]),
        rows[second]["time"] - rows[second - 1]["time"],
    )


def rate_between(first: Mapping[str, float], last: Mapping[str, float]) -> float:
    """Steps per second between two rows."""
    return (last["step"] - first["step"]) / (last["time"] - first["time"])


def describe(name: str, values: Mapping[str, Cost]) -> str:
    """What one run found."""
    ratio = f", {values[name].rate / values[BASELINE].rate:.3f} x {BASELINE}" if name != BASELINE else ""
    return f"{values[name].rate:.1f} steps/s{ratio}, epoch's end {values[name].epoch_end:.2f} s"


def summarize(results: RoundResults[Cost]) -> dict[str, dict[str, Any]]:
    """By case: medians of rates, of ratios to the baseline and of the epoch's end, and all values."""
    found: dict[str, dict[str, Any]] = {}
    baseline = results.of(BASELINE)
    for case in results.measured():
        own = results.of(case)
        found[case] = {
            "steps_per_second": statistics.median(cost.rate for cost in own),
            **ratios([cost.rate for cost in own], [cost.rate for cost in baseline]),
            "whole": ratios([cost.whole_rate for cost in own], [cost.whole_rate for cost in baseline]),
            "epoch_end_seconds": statistics.median(cost.epoch_end for cost in own),
            "all": [cost._asdict() for cost in own],
        }
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)

    def measure_round(case: str, _: int) -> Cost:
        return measure_when_idle(partial(measure, case, options.epochs), options.max_load)

    results = run_rounds({case: partial(measure_round, case) for case in CASES}, options.rounds, describe)
    summary = summarize(results)
    rows = [
        [
            case,
            f"{found['steps_per_second']:.1f}",
            f"{found['ratio']:.3f}",
            f"{found['min']:.3f} to {found['max']:.3f}",
            f"{found['whole']['ratio']:.3f}",
            f"{found['epoch_end_seconds']:.2f}",
        ]
        for case, found in summary.items()
    ]
    headings = ("tracker", "steps/s", "ratio", "range", "whole run", "epoch's end, s")
    print_table(f"medians of {results.title()}, {options.epochs} epochs a run", headings, rows, left=("tracker",))
    write_json(options.json, {"machine": machine(), "epochs": options.epochs, "runs": summary})
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)
