"""Recorded results of recipes: JSON lines in benchmarks/results/recipes, which `mnist-dist repeat --record` writes.

One file for each recipe, NAME.jsonl, with `-` for `/` in the name; one line for each run, of these keys:

    recipe          name of the recipe
    changes         settings that were changed on the command line, by key; {}: the recipe as it is
    config_sha256   `config.digest.config_sha256`: what the settings mean, whatever seed, folder, device and tracker
    seed            run.seed
    split           test or val: the images that accuracy, loss, count and correct are of
    accuracy        fraction of right predictions, after the last step
    loss            mean cross entropy; null if it is not finite
    count, correct  images, and right predictions
    parameters      of the model
    train_seconds   time in training steps: no start, no evaluation, no checkpoint
    epochs, steps   whole epochs, and optimizer steps
    processes       of the run
    threads         of each process
    precision       fp32, bf16 or fp16
    weights_sha256  of the trained weights: the same settings, seed, versions and kind of machine give the same
    train_sha256, test_sha256   of the data: the whole training set, the whole test set
    versions        python, torch, accelerate, mnist_dist
    machine         cpu (its name), cores (physical), memory_gib
    concurrent      runs that shared the machine
    commit          of git, with +changes if files that decide the result were changed; empty if not known
    date            when the run was started, ISO 8601, UTC
    protocol        train.protocol: honest

`ensembles.jsonl` has a line for each ensemble, of the keys of `Ensemble`. A run is recorded once: a line of the same
recipe, config_sha256, precision, seed and split is not added again. Lines of earlier settings stay; `newest_results`
leaves them out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mnist_dist.utils.errors import UserError
from mnist_dist.utils.strict_json import dump_strict, parse_strict, type_error
from mnist_dist.utils.student_t import mean_interval, p_mean_meets

RESULTS = Path("benchmarks/results/recipes")
"""Folder of the files, in the repository."""
ENSEMBLES = "ensembles.jsonl"
Split = Literal["test", "val"]


@dataclass(frozen=True)
class Machine:
    """The machine of a run."""

    cpu: str
    cores: int
    memory_gib: float


@dataclass(frozen=True)
class Result:
    """The result of one run; see above."""

    recipe: str
    changes: dict[str, Any]
    config_sha256: str
    seed: int
    split: Split
    accuracy: float
    loss: float | None
    count: int
    correct: int
    parameters: int
    train_seconds: float
    epochs: int
    steps: int
    processes: int
    threads: int
    precision: str
    weights_sha256: str
    train_sha256: str
    test_sha256: str
    versions: dict[str, str]
    machine: Machine
    concurrent: int
    commit: str
    date: str
    protocol: str

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What a file has one line of. The precision is part of it: train.precision=auto depends on the machine."""
        return self.recipe, self.config_sha256, self.precision, self.seed, self.split


@dataclass(frozen=True)
class Ensemble:
    """The result of averaged probabilities on the test set, in float32: all members count."""

    recipes: list[str]
    """Of each member, as are the three below."""
    seeds: list[int]
    config_sha256: list[str]
    weights_sha256: list[str]
    accuracies: list[float]
    accuracy: float
    loss: float | None
    count: int
    correct: int
    test_sha256: str
    versions: dict[str, str]
    commit: str
    date: str

    @property
    def key(self) -> tuple[str, ...]:
        """What the file has one line of: the members, in any order."""
        return tuple(sorted(self.weights_sha256))


@dataclass(frozen=True)
class Statistics:
    """Accuracies of several seeds, as fractions, and medians of what else the runs have."""

    count: int
    mean: float
    deviation: float | None
    """Standard deviation of the sample; None of one seed, as is the interval."""
    least: float
    most: float
    interval: tuple[float, float] | None
    """95 % confidence interval of the mean, by Student's t distribution."""
    target: float | None
    p: float | None
    """One-sided p that the mean meets the target (`p_mean_meets`); None without a target, or of one seed."""
    train_seconds: float
    """Median."""
    parameters: int


Line = TypeVar("Line", Result, Ensemble)


def results_path(folder: Path, recipe: str) -> Path:
    """The file of a recipe."""
    return folder / f"{recipe.replace('/', '-')}.jsonl"


def read_results(path: Path) -> list[Result]:
    """The lines of a recipe's file, in order; none if there is no file. Raises UserError for a line that is none."""
    return [Result(**row | {"machine": Machine(**row["machine"])}) for row in read_lines(path, Result)]


def read_ensembles(path: Path) -> list[Ensemble]:
    """The lines of ensembles.jsonl, in order; none if there is no file. Raises UserError for a line that is none."""
    return [Ensemble(**row) for row in read_lines(path, Ensemble)]


def read_lines(path: Path, kind: type[Any]) -> list[dict[str, Any]]:
    """The lines of a file as objects with the fields of `kind`. Raises UserError with the number of a wrong line."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = parse_strict(line)
            wrong = type_error(row, kind)
        except ValueError as error:
            wrong = f"it {error}"
        if wrong:
            raise UserError(f"{path}:{number}: is no line of a {kind.__name__.lower()}: {wrong}; remove the line")
        rows.append(row)
    return rows


def add_line(path: Path, line: Line, known: Iterable[Line]) -> bool:
    """Add a line at the end of a file, unless one of the known lines is of the same; whether it was added.

    Raises:
        OSError: it cannot be written.
    """
    if any(line.key == other.key for other in known):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(dump_strict(asdict(line)) + "\n")
    return True


def add_result(folder: Path, result: Result) -> bool:
    """Add a run's line to the file of its recipe, unless it has one; whether it was added. Raises as `add_line`."""
    path = results_path(folder, result.recipe)
    return add_line(path, result, read_results(path))


def seeds_of_other_weights(folder: Path, results: Sequence[Result]) -> list[int]:
    """The seeds whose lines in the files have other weights than these results of the same settings."""
    found = []
    for result in results:
        known = read_results(results_path(folder, result.recipe))
        if any(line.key == result.key and line.weights_sha256 != result.weights_sha256 for line in known):
            found.append(result.seed)
    return found


def newest_results(
    results: Sequence[Result], split: Split = "test", changes: dict[str, Any] | None = None
) -> list[Result]:
    """The results of the settings and the precision that were recorded last, by seed: the recipe as it is now.

    Args:
        changes: settings that were changed on the command line; None: the recipe as it is.
    """
    wanted = json.dumps(changes or {}, sort_keys=True)
    ours = [each for each in results if each.split == split and json.dumps(each.changes, sort_keys=True) == wanted]
    if not ours:
        return []
    newest = max(ours, key=lambda each: each.date)
    settings = newest.config_sha256, newest.precision
    return sorted(
        (each for each in ours if (each.config_sha256, each.precision) == settings), key=lambda each: each.seed
    )


def summarize(results: Sequence[Result], target: float | None = None) -> Statistics:
    """Statistics of at least one result.

    Args:
        target: accuracy that the mean is tested against, as a fraction.
    """
    accuracies = [each.accuracy for each in results]
    return Statistics(
        count=len(accuracies),
        mean=statistics.fmean(accuracies),
        deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        least=min(accuracies),
        most=max(accuracies),
        interval=mean_interval(accuracies),
        target=target,
        p=None if target is None else p_mean_meets(accuracies, target),
        train_seconds=statistics.median(each.train_seconds for each in results),
        parameters=results[0].parameters,
    )
