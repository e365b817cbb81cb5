"""`mnist-dist ensemble RUN...`: the averaged probabilities of several runs on the test set; all members count."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mnist_dist.checkpoint.run_paths import SUMMARY
from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.repeat_runs import check_results_folder, find_commit
from mnist_dist.config.digest import config_sha256
from mnist_dist.console.formatting import format_percent
from mnist_dist.tracking.results import ENSEMBLES, RESULTS, Ensemble, add_line, read_ensembles
from mnist_dist.utils.errors import EXIT_DONE, UserError
from mnist_dist.utils.files import expand_home, read_json
from mnist_dist.utils.strict_json import dump_strict
from mnist_dist.utils.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_dist.checkpoint.load_model import LoadedModel
    from mnist_dist.training.metrics import Metrics


@dataclass(frozen=True)
class Member:
    """A run of the ensemble, and how good it is alone."""

    run: str
    seed: int
    step: int
    accuracy: float
    correct: int
    weights_sha256: str


def main(arguments: list[str]) -> int:
    """Run `mnist-dist ensemble ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, a run that has not finished or is given twice, runs of different data or classes,
            or no data of theirs; with --record also runs that are not all of their recipe.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    if len(options.runs) < 2:
        raise UserError(f"{' '.join(options.runs)}: is one run; give all members of the ensemble")
    summaries = [read_finished(run) for run in options.runs]
    recipes = [read_recipe(run) for run in options.runs] if options.record else []

    from mnist_dist.checkpoint.load_model import load_model
    from mnist_dist.commands.predictor import read_split
    from mnist_dist.console.console import open_console

    loaded = [load_model(run, model=options.model, trust=options.trust) for run in options.runs]
    check_members(options.runs, loaded, summaries)
    if options.record:
        check_complete(options.runs, loaded)
    images, labels = read_split(loaded[0].config.data, loaded[0].digests, "test", options.root)
    print(f"{len(loaded)} runs, {len(images)} test images: some seconds ...", file=sys.stderr)
    members, metrics = evaluate(options.runs, loaded, images, labels)
    if options.record:
        line = to_line(recipes, members, metrics, loaded)
        path = RESULTS / ENSEMBLES
        is_new = add_line(path, line, read_ensembles(path))
        print(f"{path}: {'one line more' if is_new else 'has this ensemble already'}", file=sys.stderr)
    if options.json:
        found = metrics.row("test") | {"members": [asdict(member) for member in members]} | metrics.details("test")
        print(dump_strict(found))
    else:
        show(members)
        open_console(True, False).summary(metrics.row("test"), metrics.confusion, loaded[0].config.data.class_names)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist ensemble",
        description="Average the class probabilities that several finished runs give on the test set, each with the "
        "weights of its end, in float32. Every run that is given counts.",
        examples=[
            "mnist-dist ensemble runs/one runs/two runs/three",
            "mnist-dist ensemble runs/repeat/strong-1a2b3c4d/seed-? --record",
            "mnist-dist ensemble runs/one runs/two --json",
        ],
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run")
    parser.add_argument(
        "--model",
        metavar="FILE.py:FUNCTION|MODULE:FUNCTION",
        help="for runs whose network is not one of this package: the code to build it with, as in training",
    )
    parser.add_argument(
        "--trust", action="store_true", help="for such runs: build the network by the code that they have or name"
    )
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="folder with the data (default: that of the first run)"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"add a line to {RESULTS / ENSEMBLES}; only of all seeds from 0 on that mnist-dist repeat trained",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def read_finished(run: str) -> dict[str, Any]:
    """The summary of a run. Raises UserError unless the run has finished."""
    try:
        return read_json(expand_home(run) / SUMMARY)
    except (OSError, ValueError):
        raise UserError(f"{run}: is no finished run, with a {SUMMARY}; give the folders of finished runs") from None


def read_recipe(run: str) -> str:
    """The recipe of a run. Raises UserError if `mnist-dist repeat` did not start it, or nothing is recorded here."""
    check_results_folder()
    try:
        return str(read_json(expand_home(run).with_suffix(".json"))["recipe"])
    except (OSError, ValueError, KeyError):
        raise UserError(f"--record: {run} is no run of mnist-dist repeat, whose protocol is known") from None


def check_members(runs: Sequence[str], loaded: Sequence[LoadedModel], summaries: Sequence[dict[str, Any]]) -> None:
    """Raise UserError if a run is given twice, or the runs are not of the same data and classes."""
    weights: dict[str, str] = {}
    for run, model, summary in zip(runs, loaded, summaries, strict=True):
        digest = str(summary.get("weights_sha256"))
        if digest in weights:
            raise UserError(f"{run}: has the same weights as {weights[digest]}, and would count twice; leave one out")
        weights[digest] = run
        first = loaded[0]
        for what, here, there in (
            ("classes", model.config.data.class_names, first.config.data.class_names),
            ("data", model.digests, first.digests),
        ):
            if here != there:
                raise UserError(f"{run}: has other {what} than {runs[0]}; an ensemble is of runs of the same {what}")


def check_complete(runs: Sequence[str], loaded: Sequence[LoadedModel]) -> None:
    """Raise UserError unless the runs are honest, and of each recipe all seeds from 0 to the highest one."""
    seeds: dict[str, list[int]] = {}
    for run, model in zip(runs, loaded, strict=True):
        if model.config.train.protocol != "honest":
            raise UserError(f"--record: {run} was not trained with train.protocol=honest")
        seeds.setdefault(config_sha256(model.config), []).append(model.config.run.seed)
    for found in seeds.values():
        if missing := sorted(set(range(max(found) + 1)) - set(found)):
            raise UserError(
                f"--record: seed {missing[0]} is missing; members may not be chosen, so give all seeds from 0 to "
                f"{max(found)}"
            )


def evaluate(
    runs: Sequence[str], loaded: Sequence[LoadedModel], images: Tensor, labels: Tensor
) -> tuple[list[Member], Metrics]:
    """Each member alone, and the metrics of the averaged probabilities.

    Args:
        images: uint8 (N, 28, 28).
        labels: int64 (N,).
    """
    import torch
    import torch.nn.functional as F

    from mnist_dist.checkpoint.tensors import weights_sha256
    from mnist_dist.commands.predictor import predictor_of_run
    from mnist_dist.training.metrics import Counts, Metrics

    members, total = [], torch.zeros((), dtype=torch.float64)
    for run, model in zip(runs, loaded, strict=True):
        probabilities = predictor_of_run(model).probabilities(images)
        correct = int((probabilities.argmax(1) == labels).sum())
        digest = weights_sha256(model.model)
        members.append(Member(run, model.config.run.seed, model.step, correct / len(labels), correct, digest))
        total = total + probabilities.double()
    mean = total / len(members)
    counts = Counts(torch.device("cpu"), mean.shape[1])
    counts.add(mean, labels, F.nll_loss(mean.log(), labels, reduction="none"))
    return members, Metrics.from_counts(counts.tensor.tolist())


def to_line(
    recipes: Sequence[str], members: Sequence[Member], metrics: Metrics, loaded: Sequence[LoadedModel]
) -> Ensemble:
    """The line to record."""
    return Ensemble(
        recipes=list(recipes),
        seeds=[member.seed for member in members],
        config_sha256=[config_sha256(model.config) for model in loaded],
        weights_sha256=[member.weights_sha256 for member in members],
        accuracies=[member.accuracy for member in members],
        accuracy=metrics.accuracy,
        loss=metrics.loss,
        count=metrics.count,
        correct=metrics.correct,
        test_sha256=loaded[0].digests["test"],
        versions={
            key.removeprefix("versions."): version
            for key, version in versions().items()
            if key.removeprefix("versions.") in ("python", "torch", "accelerate", "mnist_dist")
        },
        commit=find_commit(),
        date=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
    )


def show(members: Sequence[Member]) -> None:
    """Print a table of the members."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(members)} members, each alone, in float32", title_justify="left")
    for heading in ("run", "seed", "step", "right", "accuracy"):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for member in members:
        table.add_row(
            member.run, str(member.seed), str(member.step), str(member.correct), format_percent(member.accuracy)
        )
    Console(highlight=False, markup=False).print(table)
