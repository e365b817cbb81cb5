"""`mnist-dist benchmark`: the trainer's speed against loops that others would write, as ratios measured in one run."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from mnist_dist.commands import benchmark_accuracy as time_to_accuracy
from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.benchmark_runner import BARE, TEXTBOOK, Contestant, measure
from mnist_dist.utils.errors import EXIT_DONE, UserError

TRAINER = ["-m", "mnist_dist.train", "--run.quiet=true", "--run.device=cpu", "--tracking.log_steps=20"]
TASK = [  # the loops that it is compared with evaluate nothing: here, each epoch ends with one small batch
    *("--data.test_limit=256", "--model.name=cnn", "--data.val_size=0", "--train.batch_size=256", "--train.epochs=100"),
    *("--optim.name=adam", "--optim.lr=0.001", "--optim.weight_decay=0"),
    *("--optim.schedule=constant", "--optim.warmup=0"),
]
EVERYTHING_ON = ["--tracking.mode=offline", "--train.checkpoint_steps=100", "--train.keep=1"]
ALL_ON = [*TRAINER, *TASK, *EVERYTHING_ON]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ONE_THREAD = ["--run.threads=1", "--tracking.mode=disabled"]

ACCURACY = "accuracy"

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
        Contestant("trainer, its default precision", ALL_ON, "textbook accelerate loop"),
        Contestant(
            "trainer, its default precision, 2 shards", [*ALL_ON, "--train.shards=2"], "textbook accelerate loop"
        ),
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
    for name, least in (("rounds", 1), ("steps", 60), ("seeds", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least {least}")
    kinds = [*KINDS, ACCURACY] if options.kind == "all" else [options.kind]
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in kinds:
        if kind == ACCURACY:
            results[kind] = time_to_accuracy.measure_accuracy(options.seeds)
        else:
            results[kind] = measure(KINDS[kind], options.rounds, options.steps)
        if not options.json:
            show(kind, results[kind], options)
    if options.json:
        print(json.dumps(results, indent=1))
    return EXIT_DONE


def build_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="mnist-dist benchmark", description="Speed as ratios, measured in one run. On the CPU.")
    parser.add_argument("kind", choices=[*KINDS, ACCURACY, "all"], help="against what")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="of each contestant in a round (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="of accuracy, 0 to N-1 (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def show(kind: str, contestants: dict[str, dict[str, Any]], options: Namespace) -> None:
    """A table of what one kind found."""
    if kind == ACCURACY:
        time_to_accuracy.show_accuracy(contestants, options.seeds)
    else:
        show_rates(f"{kind}: medians of {options.rounds} rounds of {options.steps} steps", contestants)


def show_rates(title: str, contestants: dict[str, dict[str, Any]]) -> None:
    """A table of rates and ratios."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("contestant", "steps/s", "ratio", "least to most", "against"):
        table.add_column(heading, justify="left" if heading in ("contestant", "against") else "right")
    for name, found in contestants.items():
        ratio = f"{found['ratio']:.2f}" if "ratio" in found else ""
        spread = f"{found['least']:.2f} to {found['most']:.2f}" if ratio else ""
        table.add_row(name, f"{found['steps_per_second']:.1f}", ratio, spread, found.get("against", ""))
    Console(highlight=False).print(table)
