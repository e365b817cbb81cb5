"""`mnist-dist compare A B`: what differs between two runs, in settings, data, versions, rows and bits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.run_paths import CHECKPOINTS, named_run
from mnist_dist.commands.arguments import Parser
from mnist_dist.tracking.run_record import MISSING, Row, RunRecord, differing_settings, read_record, shown
from mnist_dist.utils.errors import EXIT_DONE
from mnist_dist.utils.files import read_json_or_empty
from mnist_dist.utils.strict_json import dump_strict

NOT_COMPUTED = ("time", "images_per_second", "step_seconds", "flops_per_second", "mfu", "memory.", "epoch.seconds")
"""Beginnings of keys in a row that say how fast it went, not what was computed."""
RESULTS = (
    "test.accuracy",
    "test.loss",
    "val.accuracy",
    "train.steps",
    "model.parameters",
    "world_size",
)


def main(arguments: list[str]) -> int:
    """Run `mnist-dist compare ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or a folder that holds no run.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    one, other = (read_record(named_run(folder)) for folder in (options.one, options.other))
    found = compare(one, other)
    if options.json:
        print(dump_strict(found))
    else:
        print_comparison(found, one, other)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist compare",
        description="Say what differs between two runs: settings, data, versions, rows of metrics and weights, and "
        "from which step on. Times and speeds are not compared.",
        examples=[
            "mnist-dist compare runs/one runs/two",
            "mnist-dist compare runs/one runs/two --json",
            "mnist-dist compare sweeps/lr/3 last",
        ],
    )
    parser.add_argument("one", metavar="A", help="folder of a run; last: the newest run in runs/")
    parser.add_argument("other", metavar="B", help="folder of another run, or last")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def compare(one: RunRecord, other: RunRecord) -> dict[str, Any]:
    """What differs: keys with the pair of values, the first row that differs, and the weights."""
    keys = sorted(one.summary.keys() | other.summary.keys())
    digests = [key for key in keys if key.startswith("data.") and key.endswith("_sha256")]
    return {
        "settings": differing_settings([one, other]),
        "data": pairs(one.summary, other.summary, digests),
        "versions": pairs(one.summary, other.summary, [key for key in keys if key.startswith("versions.")]),
        "results": pairs(one.summary, other.summary, RESULTS),
        "rows": compare_rows(one, other),
        "weights": compare_weights(one, other),
    }


def pairs(one: Row, other: Row, keys: Any) -> dict[str, list[Any]]:
    """The values of the keys that differ."""
    found = {key: [one.get(key, MISSING), other.get(key, MISSING)] for key in keys}
    return {key: values for key, values in found.items() if values[0] != values[1]}


def compare_rows(one: RunRecord, other: RunRecord) -> dict[str, Any]:
    """How many metrics of how many steps both runs logged, and the first of them that differs.

    Keys: `compared`, `equal`, and `first` with step, key and both values, or None.
    """
    mine, theirs = values_by_step(one), values_by_step(other)
    shared = [key for key in mine if key in theirs]
    differing = [key for key in shared if mine[key] != theirs[key]]
    first = None
    if differing:
        step, name = differing[0]
        first = {"step": step, "key": name, "values": [mine[step, name], theirs[step, name]]}
    return {"compared": len(shared), "equal": len(shared) - len(differing), "first": first}


def values_by_step(record: RunRecord) -> dict[tuple[int, str], Any]:
    """What was computed at each step, in the order of the rows."""
    return {
        (row["step"], key): value
        for row in record.rows
        for key, value in row.items()
        if key != "step" and not key.startswith(NOT_COMPUTED)
    }


def compare_weights(one: RunRecord, other: RunRecord) -> dict[str, Any]:
    """Whether the final weights have the same bits, and those of the checkpoints that both have.

    Keys: `final` (True, False, or None if a run has not finished), `same_steps` and `other_steps`.
    """
    digests = [record.summary.get("weights_sha256") for record in (one, other)]
    shared = sorted(set(one.checkpoints) & set(other.checkpoints))
    same = {step: model_digest(one.folder, step) == model_digest(other.folder, step) for step in shared}
    return {
        "final": digests[0] == digests[1] if all(digests) else None,
        "same_steps": [step for step in shared if same[step]],
        "other_steps": [step for step in shared if not same[step]],
    }


def model_digest(folder: Path, step: int) -> str:
    """SHA-256 of a checkpoint's file of weights, as its manifest has it; empty if that cannot be read."""
    manifest = read_json_or_empty(folder / CHECKPOINTS / f"step-{step:08d}" / "manifest.json")
    with suppress(KeyError, TypeError):
        return str(manifest["files"]["model.safetensors"]["sha256"])
    return ""


def print_comparison(found: Mapping[str, Any], one: RunRecord, other: RunRecord) -> None:
    """Print a table of each kind that differs, and a line about rows and one about weights."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for kind in ("settings", "data", "versions", "results"):
        if not found[kind]:
            console.print(f"{kind}: the same" if one.config or kind != "settings" else f"{kind}: not known")
            continue
        table = Table(box=None, pad_edge=False)
        for heading in (kind, one.name, other.name):
            table.add_column(heading, overflow="fold")
        for key, values in found[kind].items():
            table.add_row(key, *map(shown, values))
        console.print(table)
    console.print(describe_rows(found["rows"]), markup=False, soft_wrap=True)
    console.print(describe_weights(found["weights"]), markup=False, soft_wrap=True)


def describe_rows(rows: Mapping[str, Any]) -> str:
    """The comparison of rows in one line."""
    if not rows["compared"]:
        return "rows: no step in common"
    if rows["first"] is None:
        return f"rows: all {rows['compared']} values of the steps in common are equal"
    first = rows["first"]
    return (
        f"rows: {rows['equal']} of {rows['compared']} values are equal; from step {first['step']} on they differ "
        f"({first['key']}: {first['values'][0]} and {first['values'][1]})"
    )


def describe_weights(weights: Mapping[str, Any]) -> str:
    """The comparison of weights in one line."""
    final = {True: "the same bits", False: "not the same bits", None: "not known, since a run has not finished"}
    steps = [f"the same at step {', '.join(map(str, weights['same_steps']))}"] * bool(weights["same_steps"])
    steps += [f"different at step {', '.join(map(str, weights['other_steps']))}"] * bool(weights["other_steps"])
    checkpoints = f"; checkpoints: {', '.join(steps)}" if steps else ""
    return f"weights: {final[weights['final']]}{checkpoints}"
