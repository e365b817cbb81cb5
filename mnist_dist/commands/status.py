"""`mnist-dist status RUN`: where a run is, from outside, while it runs and afterwards. Imports no torch."""

from __future__ import annotations

import math
import time
from typing import Any

from mnist_dist.checkpoint.run_paths import named_run
from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.run_status import EXIT_CODES, number, read_run_status, text
from mnist_dist.console.console import Console, open_console
from mnist_dist.console.formatting import describe_evaluation, describe_training, format_duration, format_percent
from mnist_dist.utils.strict_json import dump_strict

STATES = {
    "starting": "it has its folder, and does not train yet",
    "killed": "its process is gone, and wrote nothing about its end; the same command resumes it",
    "silent": "on another machine, no sign of life for longer than its rows take",
    "unfinished": "not running; of a version that wrote no status.json, so how it ended is not known",
}
"""What a state means where its name does not say it."""
PHASES = ("data", "compute", "optimizer", "other")
MAX_RANKS = 8
"""Ranks that are listed, the slowest first; --json has all."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist status ARGUMENTS`; the exit code, which tells the state: see `run_status.EXIT_CODES`.

    Raises:
        UserError: wrong arguments, or no such run.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    status = read_run_status(named_run(options.run))
    if options.json:
        print(dump_strict(status))
    else:
        console = open_console(is_main=True, quiet=False)
        console.header(describe(status))
        print_ranks(status["ranks"], console)
    return EXIT_CODES[status["state"]]


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist status",
        description="Say where a run is, from the files in its folder alone: on this machine or over a shared file "
        "system, while it runs and afterwards. Exit code: 0 starting, running or finished; 3 stopped on request; "
        "1 failed, killed or silent; 2 no such run.",
        examples=[
            "mnist-dist status runs/digits",
            "mnist-dist status last",
            "mnist-dist status last --json",
        ],
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run; last: the newest run in runs/")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def describe(status: dict[str, Any]) -> dict[str, str]:
    """The status as facts to print; what is not known is left out."""
    train, evaluation = status["train"], status["evaluation"]
    facts = {
        "run": status["run"],
        "state": describe_state(status),
        "processes": describe_processes(status),
        "progress": describe_progress(status),
        "time left": describe_time_left(status["seconds_left"]),
        "last row": describe_row(train, lambda: describe_training(train)),
    }
    split = "val" if "val.accuracy" in evaluation else "test"
    facts["evaluation"] = describe_row(evaluation, lambda: describe_evaluation(split, evaluation))
    if status["checkpoint_step"] is not None:
        facts["checkpoint"] = f"step {status['checkpoint_step']}"
    if status["test_accuracy"] is not None and status["state"] == "finished":
        facts["test accuracy"] = format_percent(status["test_accuracy"])
    for straggler in status["stragglers"]:
        facts[f"rank {number(straggler, 'rank')} is behind"] = text(straggler, "text")
    return {name: fact for name, fact in facts.items() if fact}


def describe_state(status: dict[str, Any]) -> str:
    """State, why it ended, and the age of the last thing that the run wrote."""
    why = status["message"] or STATES.get(status["state"], "")
    age = f"; last sign of life {format_duration(status['age_seconds'])} ago" if status["state"] != "finished" else ""
    return f"{status['state']}{f': {why}' if why else ''}{age}"


def describe_processes(status: dict[str, Any]) -> str:
    """How many, and which is the main one; empty if that is not known."""
    count, machines = status["world_size"] or 1, status["machines"] or 1
    main = f"process {status['pid']:.0f} on {status['host']}" if status["pid"] else ""
    if count == 1:
        return main
    where = f"{count:.0f} on {machines:.0f} machine{'s' * (machines > 1)}"
    return f"{where}, the main one is {main}" if main else where


def describe_progress(status: dict[str, Any]) -> str:
    """Step and epoch, and how many there are."""
    step, last, epoch, epochs = (status[key] for key in ("step", "last_step", "epoch", "epochs"))
    total = f" of {last:.0f} ({100 * step / last:.0f} %)" if last else ""
    within = f", epoch {epoch:.0f}{f' of {epochs:.0f}' if epochs else ''}" if epoch else ""
    return f"step {step}{total}{within}"


def describe_time_left(seconds: float | None) -> str:
    """How long, and until when; empty if it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"about {format_duration(seconds)}, until {time.strftime('%H:%M:%S', time.localtime(time.time() + seconds))}"


def describe_row(row: dict[str, Any], describe_metrics: Any) -> str:
    """Step, age and metrics of a row of metrics.jsonl; empty without one."""
    if not row:
        return ""
    age = format_duration(max(time.time() - (number(row, "time") or math.nan), 0.0))
    try:
        metrics = describe_metrics()
    except (KeyError, TypeError, ValueError):  # of another version, or nan, which is null
        metrics = "metrics that are missing or not finite"
    return f"step {number(row, 'step'):.0f}, {age} ago: {metrics}"


def print_ranks(ranks: list[dict[str, Any]], console: Console) -> None:
    """A table of the ranks' own milliseconds of a step, the slowest first; nothing where they are not known."""
    phases = [[number(each, phase) for phase in PHASES] for each in ranks]
    known = {rank: [1000 * each for each in row if each is not None] for rank, row in enumerate(phases)}
    known = {rank: row for rank, row in known.items() if len(row) == len(PHASES)}
    if not known:
        return
    columns = [name.rjust(9) for name in ("data", "compute", "optimizer", "between")]
    console.print(f" rank  own ms a step {' '.join(columns)}  machine")
    slowest = sorted(known, key=lambda rank: -sum(known[rank]))
    for rank in slowest[:MAX_RANKS]:
        cells = " ".join(f"{each:9.1f}" for each in known[rank])
        console.print(f"{rank:>5} {sum(known[rank]):14.1f} {cells}  {text(ranks[rank], 'host')}")
    if len(known) > MAX_RANKS:
        console.print(f"and {len(known) - MAX_RANKS} others, which are quicker; --json has all")
