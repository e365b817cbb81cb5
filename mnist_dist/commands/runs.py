"""`mnist-dist runs [FOLDER]`: a table of the runs in a folder, with what differs from the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.run_paths import RUNS, named_run
from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.nearest_recipe import nearest_recipe
from mnist_dist.commands.run_status import read_run_status
from mnist_dist.tracking.run_record import RUN_FILES, RunRecord, differing_settings, is_run, read_record, shown
from mnist_dist.utils.errors import EXIT_DONE, UserError
from mnist_dist.utils.strict_json import dump_strict

Line = dict[str, Any]

SORT_KEYS: dict[str, tuple[str, bool]] = {
    "name": ("run", False),
    "time": ("started", False),
    "accuracy": ("accuracy", True),
    "seconds": ("seconds", False),
    "step": ("step", True),
}
"""What `--sort` takes: the column, and whether the largest value comes first."""
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run", str),
    "recipe": ("recipe", str),
    "state": ("state", str),
    "step": ("step", "{:,}".format),
    "accuracy": ("accuracy", "{:.2%}".format),
    "seconds": ("seconds", "{:.1f}".format),
    "processes": ("ranks", str),
}
"""Columns of the table: the key, the heading, and how a value is shown."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist runs ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or no run in the folder.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    records = find_records(named_run(options.folder))
    first_by_time = sorted(records, key=started)
    differing = differing_settings(first_by_time)
    lines = [describe_run(record, differing, number) for number, record in enumerate(first_by_time)]
    key, largest_first = SORT_KEYS[options.sort]
    known = [line for line in lines if line[key] is not None]
    unknown = [line for line in lines if line[key] is None]
    lines = sorted(known, key=lambda line: line[key], reverse=largest_first) + unknown
    if options.json:
        print(dump_strict(lines))
    else:
        print_table(lines)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist runs",
        description="List the runs in a folder: recipe, state, step, accuracy on the test set (on the validation set "
        "until the run has finished), seconds of training, processes, and the settings that differ from those of the "
        "oldest run.",
        examples=["mnist-dist runs", "mnist-dist runs sweeps/lr --sort accuracy", "mnist-dist runs --json"],
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        default=str(RUNS),
        help="folder of the runs, or one run; last: the newest run in runs/ (default: %(default)s)",
    )
    parser.add_argument(
        "--sort", choices=tuple(SORT_KEYS), default="time", help="order (default: %(default)s, the oldest first)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    return parser


def find_records(folder: Path) -> list[RunRecord]:
    """The records of all runs in a folder, or in the folders below it; of the folder itself if that is a run.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give a folder that holds runs")
    if is_run(folder):
        return [read_record(folder)]
    found = sorted({path.parent for name in RUN_FILES for path in below(folder, name)})
    if not found:
        raise UserError(f"{folder}: holds no run; give a folder that holds runs")
    return [read_record(path) for path in found]


def below(folder: Path, name: str) -> list[Path]:
    """Files of a name one or two folders below a folder."""
    return [*folder.glob(f"*/{name}"), *folder.glob(f"*/*/{name}")]


def started(record: RunRecord) -> float:
    """When the run logged its first row, in seconds since 1970; infinite before it has one."""
    return min((row["time"] for row in record.rows if "time" in row), default=float("inf"))


def describe_run(record: RunRecord, differing: dict[str, list[Any]], number: int) -> Line:
    """The line of a run.

    Args:
        differing: as from `differing_settings`.
        number: of the run in these lists; the first is what the others are compared with.
    """
    changed = {key: values[number] for key, values in differing.items() if number and values[number] != values[0]}
    accuracy = record.last("test.accuracy") if record.summary else record.last("val.accuracy")
    times = record.training_seconds()
    status = read_run_status(record.folder)
    when = started(record)
    return {
        "run": str(record.folder),
        "recipe": nearest_recipe(record.config),
        "state": status["state"],
        "step": record.step,
        "accuracy": accuracy,
        "seconds": record.summary.get("train.seconds", max(times.values())),
        "processes": status["world_size"],
        "started": None if when == float("inf") else when,
        "differs": changed,
    }


def print_table(lines: Sequence[Line]) -> None:
    """Print the table; what differs stands in a line of its own below each run that differs."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for key, (heading, _) in COLUMNS.items():
        is_text = key in ("run", "recipe", "state")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for line in lines:
        cells = ["-" if line[key] is None else to_text(line[key]) for key, (_, to_text) in COLUMNS.items()]
        table.add_row(*cells)
    console.print(table)
    for line in lines:
        if line["differs"]:
            changes = ", ".join(f"{key}={shown(value)}" for key, value in line["differs"].items())
            console.print(f"{line['run']}: {changes}", markup=False)
