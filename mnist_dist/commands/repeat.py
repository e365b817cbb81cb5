"""`mnist-dist repeat --config NAME --seeds N`: a recipe over several seeds, by an honest protocol, as one table."""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.repeat_progress import RepeatProgress
from mnist_dist.commands.repeat_runs import Plan, Repeater, check_results_folder, other_code
from mnist_dist.commands.sweep_runs import lock_folder
from mnist_dist.config.digest import config_sha256, digested
from mnist_dist.config.loader import assemble, load, read_command_line
from mnist_dist.config.schema import Config, flat
from mnist_dist.config.values import COMMAND_LINE
from mnist_dist.config.yaml_files import Setting, list_recipes
from mnist_dist.console.formatting import format_percent
from mnist_dist.distributed.cpu_count import default_threads
from mnist_dist.distributed.topology import Topology
from mnist_dist.tracking.results import (
    RESULTS,
    Result,
    add_result,
    results_path,
    seeds_of_other_weights,
    summarize,
)
from mnist_dist.utils.errors import EXIT_DONE, Stopped, TrainingError, UserError
from mnist_dist.utils.files import expand_home
from mnist_dist.utils.resume_command import typed
from mnist_dist.utils.signals import stop_on_signals
from mnist_dist.utils.stdio import ignore_output_errors
from mnist_dist.utils.strict_json import dump_strict

TUNING_SEED = 1000
"""The first seed for tuning; results are of smaller ones."""
VAL_SIZE = 5000
"""Images that are held out for tuning if the recipe holds out none."""
OWN = ("run.seed", "run.dir", "run.resume", "run.quiet", "run.as_processes", "train.protocol", "tracking.mode")
"""Settings that this command gives each run."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist repeat ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments or settings, settings by which the test set would choose, or a folder of other runs.
        Stopped: on request; the same command goes on.
        TrainingError: a seed failed; the others are in the table.
        SystemExit: 0, after printing the help.
    """
    options, rest = build_parser().parse_known_args(arguments)
    plan = make_plan(options, rest)
    stop = threading.Event()
    ignore_output_errors("the runs go on without it")
    with lock_folder(plan.folder, "--out", "mnist-dist repeat"), stop_on_signals(stop.set):
        with RepeatProgress(plan) as progress:
            repeater = Repeater(plan, stop, progress.update)
            repeater.run_all()
        results = [repeater.results[seed] for seed in plan.seeds if seed in repeater.results]
        if options.record:
            added = sum(add_result(RESULTS, result) for result in results)
            print(f"recorded: {added} new lines in {RESULTS}", file=sys.stderr)
            if other := seeds_of_other_weights(RESULTS, results):
                path = results_path(RESULTS, plan.name)
                line = f"recorded before with other weights: seed {', '.join(map(str, other))}"
                print(f"{line}; these lines stay; to record the new runs, remove them from {path}", file=sys.stderr)
    if stop.is_set() and len(results) < len(plan.seeds):
        raise Stopped(f"{len(results)} of {len(plan.seeds)} seeds are done; to go on: {own_command(arguments)}")
    if results:
        show(plan, results, repeater.failed, options)
    if repeater.failed:
        first, why = next(iter(repeater.failed.items()))
        raise TrainingError(
            f"{len(repeater.failed)} of {len(plan.seeds)} seeds failed: {', '.join(map(str, repeater.failed))}; "
            f"seed {first}: {why}; see {plan.run_folder(first).with_suffix('.log')}"
        )
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command. The arguments that it does not know are settings of training."""
    parser = Parser(
        prog="mnist-dist repeat",
        usage="%(prog)s --config NAME|PATH --seeds N [options]\n       [--section.key=VALUE]...",
        description="Train a recipe with several seeds, each in a process of its own, with train.protocol=honest: the "
        "test set is evaluated once, after the last step, and every seed counts. The same command goes on after a "
        "stop. Tune with --split val, which takes other seeds and never reads the test accuracy.",
        examples=[
            "mnist-dist repeat --config speed99 --seeds 30 --target 0.99",
            "mnist-dist repeat --config strong --seeds 8 --processes 2 --record",
            "mnist-dist repeat --config strong --seeds 5 --split val --optim.lr=0.01",
            "mnist-dist repeat --config seeds/cnn --seeds 10 --run.threads=1 --processes 2 --json",
        ],
    )
    parser.add_argument("--config", metavar="NAME|PATH", required=True, help="a recipe, or a YAML file")
    parser.add_argument("--seeds", metavar="N", type=int, required=True, help="number of seeds, one after the other")
    parser.add_argument(
        "--first-seed",
        metavar="SEED",
        type=int,
        help=f"(default: 0; with --split val {TUNING_SEED}, and results are of smaller seeds only)",
    )
    parser.add_argument(
        "--split",
        choices=("test", "val"),
        default="test",
        help=f"test: results. val: tuning, on images that are held out by each seed, {VAL_SIZE} if the recipe holds "
        "out none (default: %(default)s)",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="runs at once, which share the cores; the weights are the same, the seconds are not (default: 1)",
    )
    parser.add_argument("--target", metavar="FRACTION", type=float, help="test whether the mean is above, as 0.99")
    parser.add_argument(
        "--out", metavar="FOLDER", help="of the runs (default: runs/repeat/<recipe>-<digest of its settings>)"
    )
    parser.add_argument("--record", action="store_true", help=f"add a line for each run to {RESULTS}/<recipe>.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def make_plan(options: argparse.Namespace, rest: Sequence[str]) -> Plan:
    """Check everything that can be checked before the first run.

    Args:
        rest: arguments that are settings.

    Raises:
        UserError: the first thing that is wrong.
    """
    first = options.first_seed if options.first_seed is not None else TUNING_SEED * (options.split == "val")
    seeds = range(first, first + options.seeds)
    check_numbers(options, seeds)
    _, given, _ = read_command_line(rest)
    for setting in given:
        if setting.key in OWN:
            raise UserError(f"--{setting.key}: mnist-dist repeat gives each run its own; leave it out")
    settings = list(rest)
    plain = assemble([options.config], [])
    if options.split == "val" and not assemble([options.config], given).data.val_size:
        if any(setting.key == "data.val_size" for setting in given):
            raise UserError("--split val: data.val_size=0 holds out no images; leave it out, or give a number")
        held_out = Setting("data.val_size", str(VAL_SIZE), COMMAND_LINE)
        plain = assemble([options.config], [held_out])
        settings.append(f"--{held_out.key}={held_out.value}")
    honest = [f"--config={options.config}", *settings, f"--run.seed={first}", "--train.protocol=honest"]
    config = load(honest).config
    name = options.config.replace("/", "-") if options.config in list_recipes() else Path(options.config).stem
    default_folder = Path("runs", "repeat", f"{name}-{config_sha256(config)[:8]}")
    if options.record:
        check_recordable(options.config)
    return Plan(
        recipe=options.config,
        settings=tuple(settings),
        changes=find_changes(plain, config),
        config=config,
        seeds=seeds,
        split=options.split,
        processes=options.processes,
        threads=find_threads(config, options.processes),
        folder=expand_home(options.out, "--out ") if options.out else default_folder,
    )


def check_numbers(options: argparse.Namespace, seeds: range) -> None:
    """Raise UserError for a number that is too small, and for seeds that are not for this split."""
    for name in ("seeds", "processes"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.target is not None and not 0 < options.target < 1:
        raise UserError(f"--target {options.target:g}: must be a fraction between 0 and 1, as 0.99")
    named = f"seeds {seeds[0]} to {seeds[-1]}"
    if options.split == "val" and seeds[0] < TUNING_SEED:
        raise UserError(f"{named}: --split val is for tuning, with --first-seed {TUNING_SEED} or above")
    if options.split == "test" and (seeds[0] < 0 or seeds[-1] >= TUNING_SEED):
        raise UserError(
            f"{named}: results are of seeds from 0 to {TUNING_SEED - 1}; those from {TUNING_SEED} on are for tuning, "
            "with --split val"
        )


def check_recordable(recipe: str) -> None:
    """Raise UserError unless results of this recipe can be recorded here."""
    if recipe not in list_recipes():
        raise UserError(f"--record: {recipe} is no shipped recipe; put it into configs/, or leave --record out")
    check_results_folder()


def find_changes(plain: Config, config: Config) -> dict[str, Any]:
    """The settings that differ from those of the recipe and decide the result."""
    before, now = digested(plain), digested(config)
    return {key: flat(config).get(key) for key in sorted(before | now) if before.get(key) != now.get(key)}


def find_threads(config: Config, processes: int) -> int:
    """Threads of each run.

    Raises:
        UserError: the runs would have fewer threads than one alone has, and their weights would be others.
    """
    if config.run.threads:
        return config.run.threads
    alone = default_threads(Topology())
    threads = max(alone // processes, 1)
    if threads != alone and not config.shards(1, on_cpu=True):
        raise UserError(
            f"--processes {processes}: this recipe has no fixed shards (train.shards), so its weights depend on the "
            "number of threads; give --run.threads=1, or --processes 1"
        )
    return threads


def own_command(arguments: Sequence[str]) -> str:
    """The command that was given, quoted for the shell."""
    command = list(sys.orig_argv)
    if command[len(command) - len(arguments) :] == list(arguments) and "mnist_dist" in " ".join(command):
        command = typed(command)
    else:
        command = ["mnist-dist", "repeat", *arguments]
    return shlex.join(command)


def show(plan: Plan, results: Sequence[Result], failed: dict[int, str], options: argparse.Namespace) -> None:
    """Print the statistics as a table, or all of it as JSON."""
    found = summarize(results, options.target)
    facts = {"recipe": plan.name, "changes": plan.changes, "config_sha256": config_sha256(plan.config)}
    if options.json:
        missing = [{"seed": seed, "error": why} for seed, why in failed.items()]
        print(
            dump_strict(
                facts
                | {"split": plan.split, **asdict(found), "missing": missing}
                | {"results": [asdict(result) for result in results]}
            )
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{plan.name}: {plan.split} accuracy after the last step", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right", overflow="fold")
    table.show_header = False
    seeds = f"{found.count}, from {plan.seeds[0]} to {plan.seeds[-1]}"
    rows = {"changed": " ".join(f"{key}={value}" for key, value in plan.changes.items())} if plan.changes else {}
    rows |= {"seeds": seeds, "mean": format_percent(found.mean)}
    if failed:
        rows["missing"] = f"{len(failed)}: seed {', '.join(map(str, failed))}"
    if found.deviation is not None and found.interval is not None:
        rows["standard deviation"] = format_percent(found.deviation)
        rows["95 % interval of the mean"] = " to ".join(map(format_percent, found.interval))
    rows |= {"least": format_percent(found.least), "most": format_percent(found.most)}
    if found.p is not None and found.target is not None:
        rows[f"p that the mean is above {format_percent(found.target)}"] = f"{found.p:.2g}"
    rows |= {"training, median": f"{found.train_seconds:.2f} s", "parameters": f"{found.parameters:,}"}
    rows["images"] = f"{results[0].count:,}"
    for name, text in rows.items():
        table.add_row(name, text)
    Console(highlight=False, markup=False).print(table)
    if old := other_code(plan, [result.seed for result in results]):
        print(f"trained by other code of mnist_dist than now: seed {', '.join(map(str, old))}; --out starts anew")
