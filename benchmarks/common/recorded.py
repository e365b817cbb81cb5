"""All recorded results, as the page of results needs them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from common.robustness_lines import Robustness, read_robustness
from mnist_dist.commands.repeat import VAL_SIZE
from mnist_dist.config.digest import config_sha256
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrainConfig
from mnist_dist.config.yaml_files import find_recipe, list_recipes
from mnist_dist.tracking.results import (
    ENSEMBLES,
    Ensemble,
    Result,
    Split,
    Statistics,
    newest_results,
    read_ensembles,
    read_results,
    summarize,
)
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.student_t import mean_interval

PROTOCOL = {"train.eval_steps", "data.test_limit"}
"""Settings that do not change what is trained, and that an honest run cannot have as some recipes have them."""


@dataclass(frozen=True)
class Variant:
    """A recipe over its seeds, as it is or with settings changed."""

    recipe: str
    changes: dict[str, Any]
    results: list[Result]
    """By seed, all of the same settings."""
    is_current: bool
    """Whether the recipe of today means these settings."""

    @property
    def statistics(self) -> Statistics:
        """Without a target."""
        return summarize(self.results)

    @property
    def name(self) -> str:
        """The recipe, with a mark if its settings have changed since."""
        return f"`{self.recipe}`" if self.is_current else f"`{self.recipe}` †"

    @property
    def change(self) -> str:
        """The changed settings."""
        return describe_changes(self.changes)


@dataclass(frozen=True)
class Difference:
    """A variant minus its base, over the seeds that both have."""

    seeds: int
    mean: float
    interval: tuple[float, float] | None
    """95 % interval of the mean."""


@dataclass(frozen=True)
class Recorded:
    """What the files hold."""

    records: dict[str, Variant]
    """Recipe to its test results."""
    fashion: dict[str, Variant]
    """Recipe to its test results on Fashion-MNIST, with no other change."""
    bases: dict[str, Variant]
    """Recipe to the validation results that its ablations are compared with: see `base_of`."""
    ablations: dict[str, list[Variant]]
    """Recipe to the validation results of one change each, besides those of the base."""
    ensembles: list[Ensemble]
    robustness: dict[str, list[Robustness]]
    """Recipe to lines of its runs, by seed: those of the recorded settings."""
    searches: list[Path]
    """Logs of searches."""


def read_recorded(folder: Path) -> Recorded:
    """Read benchmarks/results.

    Raises:
        UserError: a file has a line that is no result.
    """
    records: dict[str, Variant] = {}
    fashion: dict[str, Variant] = {}
    bases: dict[str, Variant] = {}
    ablations: dict[str, list[Variant]] = {}
    lines: dict[str, list[Result]] = {}
    for path in sorted([*(folder / "recipes").glob("*.jsonl"), *(folder / "ablations").glob("*.jsonl")]):
        for result in read_results(path) if path.name != ENSEMBLES else ():
            lines.setdefault(result.recipe, []).append(result)
    for recipe in sorted(lines):
        for variant in variants_of(recipe, lines[recipe], "test"):
            if not variant.changes.keys() - PROTOCOL:
                records[recipe] = variant
            elif variant.changes == {"data.name": "fashion"}:
                fashion[recipe] = variant
        tuned = variants_of(recipe, lines[recipe], "val")
        base = base_of(tuned)
        if base is not None and len(tuned) > 1:
            bases[recipe] = base
            ablations[recipe] = [variant for variant in tuned if variant is not base]
    robustness: dict[str, list[Robustness]] = {}
    for path in sorted((folder / "robustness").glob("*.jsonl")):
        for line in read_robustness(path):
            record = records.get(line.recipe)
            if record is None or is_of(line, record):
                robustness.setdefault(line.recipe, []).append(line)
    ensembles = read_ensembles(folder / "recipes" / ENSEMBLES)
    searches = sorted(path for path in (folder / "search").rglob("*") if path.suffix in (".md", ".jsonl"))
    return Recorded(records, fashion, bases, ablations, ensembles, robustness, searches)


def base_of(variants: Sequence[Variant]) -> Variant | None:
    """The recipe as it is, or, where that takes too long, with what all variants change, such as fewer epochs."""
    least = min(variants, key=lambda variant: len(variant.changes), default=None)
    if least is None or not all(least.changes.items() <= variant.changes.items() for variant in variants):
        return None
    return least


def describe_changes(changes: Mapping[str, Any]) -> str:
    """Settings as on the command line."""
    return ", ".join(f"`{key}={shown(value)}`" for key, value in changes.items())


def variants_of(recipe: str, results: Sequence[Result], split: Split) -> list[Variant]:
    """The recipe with each of its recorded changes, in the order in which these were first recorded."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        if result.split == split:
            found.setdefault(json.dumps(result.changes, sort_keys=True), result.changes)
    variants = []
    for changes in found.values():
        newest = newest_results(results, split, changes)
        variants.append(
            Variant(recipe, changes, newest, newest[0].config_sha256 in digests_now(recipe, changes, split))
        )
    return variants


def is_of(line: Robustness, record: Variant) -> bool:
    """Whether a line is of a run with the precision and the settings of a record, whatever those of PROTOCOL."""
    first = record.results[0]
    digests = {first.config_sha256}
    if record.is_current:
        digests |= digests_now(record.recipe, record.changes) | digests_now(record.recipe, {})
    return line.precision == first.precision and line.config_sha256 in digests


def digests_now(recipe: str, changes: Mapping[str, Any], split: Split = "test") -> set[str]:
    """The digests that a shipped recipe of today may have been recorded with; empty if it has no such settings.

    train.precision=auto stands for the precision that it gave too: recipes used to name it.
    """
    try:
        config = Config.from_recipe(recipe, changes)
        if split == "val" and not config.data.val_size:
            config = Config.from_recipe(recipe, {**changes, "data.val_size": VAL_SIZE})
    except UserError:
        return set()
    precisions = get_args(TrainConfig.model_fields["precision"].annotation)
    if config.train.precision != "auto":
        precisions = (config.train.precision,)
    trains = (config.train.model_copy(update={"precision": precision}) for precision in precisions)
    return {config_sha256(config.model_copy(update={"train": train})) for train in trains}


def difference(variant: Variant, base: Variant) -> Difference | None:
    """Paired by seed; None without common seeds."""
    before = {result.seed: result.accuracy for result in base.results}
    pairs = [result.accuracy - before[result.seed] for result in variant.results if result.seed in before]
    return Difference(len(pairs), statistics.fmean(pairs), mean_interval(pairs)) if pairs else None


def describe_recipe(name: str) -> str:
    """The first comment of a recipe's file; empty if there is no such recipe."""
    if name not in list_recipes():
        return ""
    first = find_recipe(name).read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip()


def shown(value: Any) -> str:
    """A value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
