"""Recorded robustness: JSON lines in benchmarks/results/robustness, one file a recipe, one line a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from mnist_dist.tracking.results import read_lines, results_path
from mnist_dist.utils.files import atomic_write
from mnist_dist.utils.strict_json import dump_strict

CLEAN = "clean"
"""The test set as it is, beside the names of the corruptions."""


@dataclass(frozen=True)
class Robustness:
    """What one run gives on the test set, as it is and corrupted."""

    recipe: str
    config_sha256: str
    seed: int
    weights_sha256: str
    test_sha256: str
    precision: str
    count: int
    """Images."""
    sizes: dict[str, list[float]]
    """Of each corruption, by severity; of `clean` [0]."""
    correct: dict[str, list[int]]
    """Right predictions, in the same order."""
    calibration_error: dict[str, list[float]]
    """Expected calibration error over 15 bins, as a fraction."""
    versions: dict[str, str]
    commit: str
    date: str


def read_robustness(path: Path) -> list[Robustness]:
    """The lines of a file; none if there is no file. Raises UserError for a line that is none."""
    return [Robustness(**row) for row in read_lines(path, Robustness)]


def record_robustness(folder: Path, line: Robustness) -> None:
    """Put a run's line into the file of its recipe, in place of an earlier one of the same settings and seed.

    Raises:
        OSError: it cannot be written.
        UserError: the file has a line that is none.
    """
    path = results_path(folder, line.recipe)
    known = [each for each in read_robustness(path) if key(each) != key(line)]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [dump_strict(asdict(each)) for each in sorted([*known, line], key=key)]
    with atomic_write(path) as target:
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def key(line: Robustness) -> tuple[str, str, int]:
    """What a file has one line of."""
    return line.config_sha256, line.precision, line.seed
