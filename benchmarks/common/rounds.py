"""Interleaved rounds: each round measures every case once, so that whatever else the machine does falls on all alike.

Each measurement is printed when it ends. A benchmark that is interrupted, or of which a run fails, keeps what it has
measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from common.progress import BenchmarkProgress
from mnist_dist.utils.errors import EXIT_DONE, Stopped, TrainingError, UserError

T = TypeVar("T")


@dataclass
class RoundResults(Generic[T]):
    """What a benchmark measured."""

    cases: Sequence[str]
    """Names of the cases, in the order of a round."""
    wanted: int
    """Rounds."""
    unit: str = "round"
    rounds: list[dict[str, T]] = field(default_factory=list)
    """One entry for each round: the value of each case, by name. Of a benchmark that ended early the last may lack
    some."""
    failure: TrainingError | None = None
    """Why it ended early, where a run failed."""

    def measured(self) -> list[str]:
        """Names of the cases that have values: all, unless it ended in the first round."""
        return [name for name in self.cases if self.of(name)]

    def of(self, name: str) -> list[T]:
        """The values of one case, one a round."""
        return [values[name] for values in self.rounds if name in values]

    def complete(self) -> int:
        """How many rounds are complete."""
        return sum(len(values) == len(self.cases) for values in self.rounds)

    def title(self) -> str:
        """How many rounds there are: `5 rounds`, or as `2 of 5 rounds and a part of one` if it ended early."""
        complete, unit = self.complete(), self.unit + "s" * (self.wanted != 1)
        if complete == self.wanted:
            return f"{complete} {unit}"
        return f"{complete} of {self.wanted} {unit}" + " and a part of one" * any(self.rounds[complete:])

    def exit_code(self) -> int:
        """EXIT_DONE if all rounds are complete. Call it once the results are shown.

        Raises:
            TrainingError: a run failed.
            Stopped: the benchmark was interrupted.
        """
        if self.failure is not None:
            raise self.failure
        if self.complete() < self.wanted:
            raise Stopped(f"interrupted; the figures are of {self.title()}")
        return EXIT_DONE


def run_rounds(
    cases: Mapping[str, Callable[[int], T]],
    rounds: int,
    describe: Callable[[str, Mapping[str, T]], str],
    unit: str = "round",
) -> RoundResults[T]:
    """Measure every case once in each round, with progress on standard error.

    Args:
        cases: by name, what is measured; takes the number of the round, from 0.
        describe: takes the name of a case and the values of this round so far, the case's own among them; says what
            was found, in one line.
        unit: `round`, or `seed` where the number of the round is the seed.

    Raises:
        TrainingError: the first run failed.
        Stopped: interrupted in the first run.
    """
    results: RoundResults[T] = RoundResults([*cases], rounds, unit)
    with BenchmarkProgress([*cases] * rounds) as progress:
        try:
            for number in range(rounds):
                where = f"seed {number}" if unit == "seed" else f"{unit} {number + 1}/{rounds}"
                values: dict[str, T] = {}
                results.rounds.append(values)
                for name, measure in cases.items():
                    progress.begin(f"{where}, {name}")
                    try:
                        values[name] = measure(number)
                    except TrainingError as error:
                        raise TrainingError(f"{name}: {error}") from error
                    progress.end(f"{where}, {name}: {describe(name, values)}")
        except TrainingError as error:
            if not results.measured():
                raise
            results.failure = error
        except KeyboardInterrupt:
            if not results.measured():
                raise Stopped("interrupted before anything was measured") from None
    return results


def choose(names: Sequence[str], text: str) -> list[str]:
    """The names that contain a text.

    Raises:
        UserError: there is none.
    """
    chosen = [name for name in names if text in name]
    if not chosen:
        raise UserError(f"--only {text}: no case has this in its name; the cases are: {'; '.join(names)}")
    return chosen


def ratios(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of the ratios of values to those of the baseline in the same round.

    The baseline is measured first: of a benchmark that ended early it may have one value more.
    """
    found = [a / b for a, b in zip(values, baseline, strict=False)]
    return {"ratio": statistics.median(found), "min": min(found), "max": max(found)}
