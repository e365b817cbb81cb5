"""`mnist-dist benchmark`: the trainer's speed against loops that others would write, as ratios measured in one run.

Every contestant is a whole process, started anew in each round, and rounds are interleaved: what else the machine does
falls on all alike. A rate leaves the start out; what happens between steps (metrics, records, checkpoints) is in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_dist.commands.arguments import Parser
from mnist_dist.errors import EXIT_DONE, TrainingError, UserError

TRAINER = ["-m", "mnist_dist.train", "--run.quiet=true", "--run.device=cpu", "--tracking.log_steps=20"]
TASK = [
    *("--model.name=cnn", "--data.val_size=0", "--train.batch_size=256", "--train.epochs=100"),
    *("--optim.name=adam", "--optim.lr=0.001", "--optim.weight_decay=0"),
    *("--optim.schedule=constant", "--optim.warmup=0"),
]
EVERYTHING_ON = ["--tracking.mode=offline", "--train.checkpoint_steps=100", "--train.keep=1"]
ALL_ON = [*TRAINER, *TASK, *EVERYTHING_ON]
BARE, TEXTBOOK = "bare_loop.py", "textbook_accelerate.py"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ONE_THREAD = ["--run.threads=1", "--tracking.mode=disabled"]


@dataclass(frozen=True)
class Contestant:
    """What is run: Python's arguments for the trainer, or a reference's file and its arguments."""

    name: str
    command: Sequence[str]
    against: str = ""
    """The contestant it is compared with; empty for one that others are compared with."""


KINDS: dict[str, list[Contestant]] = {
    "overhead": [
        Contestant("bare loop, fp32", [BARE]),
        Contestant("trainer, fp32", [*ALL_ON, "--train.precision=no"], "bare loop, fp32"),
        Contestant(
            "trainer without shards, fp32",
            [*ALL_ON, "--train.precision=no", "--train.shards=0"],
            "bare loop, fp32",
        ),
        Contestant("bare loop, bf16", [BARE, "--precision=bf16"]),
        Contestant("trainer, bf16", [*ALL_ON, "--train.precision=bf16"], "bare loop, bf16"),
    ],
    "loader": [
        Contestant("textbook accelerate loop", [TEXTBOOK]),
        Contestant("trainer, fp32", [*ALL_ON, "--train.precision=no"], "textbook accelerate loop"),
        Contestant("trainer, bf16", [*ALL_ON, "--train.precision=bf16"], "textbook accelerate loop"),
    ],
    "scaling": [
        Contestant("1 process of 1 thread", [*TRAINER, *TASK, *ONE_THREAD]),
        Contestant("2 processes of 1 thread", [*TWO, *TRAINER, *TASK, *ONE_THREAD], "1 process of 1 thread"),
        Contestant(
            "2 processes of 1 thread, DistributedDataParallel",
            [*TWO, *TRAINER, *TASK, *ONE_THREAD, "--train.shards=0"],
            "1 process of 1 thread",
        ),
    ],
}


def main(arguments: list[str]) -> int:
    """Run `mnist-dist benchmark ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or the reference loops are not there.
        TrainingError: a contestant failed.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    for name, least in (("rounds", 1), ("steps", 60)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least {least}")
    kinds = list(KINDS) if options.kind == "all" else [options.kind]
    results = {kind: measure(KINDS[kind], options.rounds, options.steps) for kind in kinds}
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        show(results, options.rounds, options.steps)
    return EXIT_DONE


def build_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="mnist-dist benchmark", description="Speed as ratios, measured in one run. On the CPU.")
    parser.add_argument("kind", choices=[*KINDS, "all"], help="against what")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of each contestant in a round (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def measure(contestants: Sequence[Contestant], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Rates and ratios of each contestant, by name."""
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            rates[contestant.name].append(rate_of(contestant, steps))
    results: dict[str, dict[str, Any]] = {}
    for contestant in contestants:
        own = rates[contestant.name]
        results[contestant.name] = {"steps_per_second": statistics.median(own), "rates": own}
        if contestant.against:
            ratios = [a / b for a, b in zip(own, rates[contestant.against], strict=True)]
            found = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            results[contestant.name] |= {"against": contestant.against, **found}
    return results


def rate_of(contestant: Contestant, steps: int) -> float:
    """Steps per second of one run."""
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as name:
        folder = Path(name)
        if contestant.command[0] in (BARE, TEXTBOOK):
            return run_reference(contestant, steps, folder)
        run(contestant, [*contestant.command, f"--train.max_steps={steps}", f"--run.dir={folder}/run"])
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "images_per_second" in row]
        return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["time"] - rows[0]["time"])


def run_reference(contestant: Contestant, steps: int, folder: Path) -> float:
    """Steps per second of one of the loops in benchmarks/references/."""
    from mnist_dist.data.sources import ensure, resolve_root

    script, *options = contestant.command
    if script == TEXTBOOK:
        raw = folder / "MNIST" / "raw"  # as torchvision lays it out
        raw.mkdir(parents=True)
        for name, path in ensure(resolve_root(""), "auto", lambda text: None).items():
            (raw / name).symlink_to(path.resolve())
        options = [f"--root={folder}", *options]
    out = run(contestant, [str(references_folder() / script), *options, f"--steps={steps}"])
    return float(json.loads(out.splitlines()[-1])["steps_per_second"])


def run(contestant: Contestant, arguments: list[str]) -> str:
    """What a contestant printed. Raises TrainingError if it failed."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TrainingError(f"benchmark: {contestant.name}: ended with exit code {done.returncode}: {last}")
    return done.stdout


def references_folder() -> Path:
    """The folder of the reference loops: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / "references", package.parent / "benchmarks" / "references"
    return inside if inside.is_dir() else beside


def show(results: dict[str, dict[str, dict[str, Any]]], rounds: int, steps: int) -> None:
    """A table for each kind."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for kind, contestants in results.items():
        table = Table(title=f"{kind}: medians of {rounds} rounds of {steps} steps", title_justify="left")
        for heading in ("contestant", "steps/s", "ratio", "least to most", "against"):
            table.add_column(heading, justify="left" if heading in ("contestant", "against") else "right")
        for name, found in contestants.items():
            ratio = f"{found['ratio']:.2f}" if "ratio" in found else ""
            spread = f"{found['least']:.2f} to {found['most']:.2f}" if ratio else ""
            table.add_row(name, f"{found['steps_per_second']:.1f}", ratio, spread, found.get("against", ""))
        console.print(table)
