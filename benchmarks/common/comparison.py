"""Steps per second of the trainer, as ratios to a baseline: another loop, or the trainer with other options.

Every measurement is a whole process, started anew in each round. Its rate leaves the start out; what happens between
steps (metrics, records, checkpoints) is in it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import add_count, add_json, add_only, build_parser, write_json
from common.processes import run_reference, train
from common.rounds import RoundResults, choose, ratios, run_rounds
from common.tables import print_table
from mnist_dist.commands.arguments import Parser
from mnist_dist.data.prepare import ensure_files, resolve_root

BARE_LOOP, TEXTBOOK = "bare_loop.py", "textbook_accelerate.py"
MIN_STEPS = 60  # a row every 20 steps; the first 20, before the first row, warm up

# The task of the reference loops. They evaluate nothing: in the trainer each epoch ends with one small batch.
REFERENCE_TASK = [
    *("--run.device=cpu", "--tracking.log_steps=20", "--data.test_limit=256", "--data.val_size=0"),
    *("--model.name=cnn", "--train.batch_size=256", "--train.epochs=100"),
    *("--optim.name=adam", "--optim.lr=0.001", "--optim.weight_decay=0"),
    *("--optim.schedule=constant", "--optim.warmup=0"),
]
# What the trainer has on against other loops, beside its metrics: an offline tracker and checkpoints.
ALL_ON = [*REFERENCE_TASK, "--tracking.mode=offline", "--train.checkpoint_steps=100", "--train.keep=1"]


@dataclass(frozen=True)
class Case:
    """One thing that is measured: the trainer with some options, or a reference loop."""

    name: str
    options: Sequence[str] = ()
    """Of the trainer, or of the reference loop."""
    baseline: str = ""
    """The case that its rate is divided by; empty for a baseline."""
    reference: str = ""
    """A file in references/; empty: the trainer."""
    processes: int = 1
    """Of the trainer."""


def rate_of(case: Case, steps: int) -> float:
    """Steps per second of one run of `steps` steps.

    Raises:
        TrainingError: the run failed.
    """
    if not case.reference:
        return train([*case.options, f"--train.max_steps={steps}"], processes=case.processes).steps_per_second
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as root:
        options = [*case.options, f"--steps={steps}"]
        if case.reference == TEXTBOOK:
            link_for_torchvision(Path(root))
            options.append(f"--root={root}")
        return float(run_reference(case.reference, options)["steps_per_second"])


def link_for_torchvision(root: Path) -> None:
    """Link the MNIST files where torchvision looks for them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, path in ensure_files(resolve_root(""), "auto", lambda text: None).items():
        (raw / name).symlink_to(path.resolve())


def compare(cases: Sequence[Case], rounds: int, steps: int) -> RoundResults[float]:
    """Steps per second of each case, by round."""
    baselines = {case.name: case.baseline for case in cases}

    def describe(name: str, values: Mapping[str, float]) -> str:
        baseline = baselines[name]
        ratio = f", {values[name] / values[baseline]:.2f} x {baseline}" if baseline else ""
        return f"{values[name]:.1f} steps/s{ratio}"

    measures: dict[str, Callable[[int], float]] = {case.name: partial(measure_round, case, steps) for case in cases}
    return run_rounds(measures, rounds, describe)


def measure_round(case: Case, steps: int, _: int) -> float:
    """The rate of a case, whatever the round."""
    return rate_of(case, steps)


def summarize(cases: Sequence[Case], results: RoundResults[float]) -> dict[str, dict[str, Any]]:
    """By case: the median rate, all rates, and where it has a baseline the median ratio, with minimum and maximum."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        rates = results.of(case.name)
        if not rates:  # it ended in the first round
            continue
        found[case.name] = {"steps_per_second": statistics.median(rates), "rates": rates}
        if case.baseline:
            found[case.name] |= {"baseline": case.baseline, **ratios(rates, results.of(case.baseline))}
    return found


def print_rates(title: str, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of rates and ratios."""
    rows = []
    for name, found in summary.items():
        ratio, spread = "", ""
        if "baseline" in found:
            ratio, spread = f"{found['ratio']:.2f}", f"{found['min']:.2f} to {found['max']:.2f}"
        rows.append([name, f"{found['steps_per_second']:.1f}", ratio, spread, found.get("baseline", "")])
    print_table(title, ("case", "steps/s", "ratio", "range", "baseline"), rows, left=("case", "baseline"))


def with_baselines(cases: Sequence[Case], text: str) -> list[Case]:
    """The cases whose name contains a text, and their baselines.

    Raises:
        UserError: there is none.
    """
    chosen = set(choose([case.name for case in cases], text))
    for case in reversed(cases):  # a baseline comes before the cases that are compared with it
        chosen |= {case.baseline} if case.name in chosen else set()
    return [case for case in cases if case.name in chosen]


def comparison_parser(script: str, doc: str | None, steps: int = 600, minimum: int = MIN_STEPS) -> Parser:
    """The command line of a comparison.

    Args:
        steps: of each run, unless --steps says otherwise; at least `minimum`.
    """
    parser = build_parser(script, doc)
    add_count(parser, "rounds", 5, "rounds, of which medians are taken")
    add_count(parser, "steps", steps, "steps of each run", minimum=minimum)
    add_only(parser)
    add_json(parser)
    return parser


def run_comparison(parser: Parser, cases: Sequence[Case], arguments: Sequence[str]) -> int:
    """Measure as the arguments say, and print a table; the exit code.

    Raises:
        UserError: wrong arguments.
        TrainingError: a run failed.
        Stopped: interrupted.
    """
    options = parser.parse_args(arguments)
    cases = with_baselines(cases, options.only)
    results = compare(cases, options.rounds, options.steps)
    summary = summarize(cases, results)
    print_rates(f"medians of {results.title()}, {options.steps} steps a run", summary)
    write_json(options.json, summary)
    return results.exit_code()
