"""Test accuracy of the shipped recipes over several seeds: the results table of the README.

Runs that the folder already holds are not repeated, so the command can be interrupted and started again.

examples:
  python benchmarks/recipes.py                                   all recipes, seeds 0 to 2: an hour or more
  python benchmarks/recipes.py --seeds 1 speed99                 a quick look: some seconds
  python benchmarks/recipes.py --seeds 10 default seeds/cnn      two recipes, seeds 0 to 9
  python benchmarks/recipes.py --folder /tmp/recipes speed99     runs in another folder
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import add_count, add_json, build_parser, run_script, write_json
from common.processes import run_python
from common.rounds import run_rounds
from common.tables import print_table

TUTORIALS = {
    "seeds/cnn": "-",
    "seeds/convnet": "97.97 %",
    "seeds/basic": "-",
    "seeds/deep_head": "-",
    "seeds/deep_head_fixed": "-",
    "seeds/adam": "-",
}
"""Recipes and the test accuracy that their tutorials report; a dash where they report a curve or nothing."""
PARSER = build_parser(__file__, __doc__)
PARSER.add_argument("recipes", metavar="RECIPE", nargs="*", help=f"default: default {' '.join(TUTORIALS)}")
add_count(PARSER, "seeds", 3, "seeds, 0 to N-1")
PARSER.add_argument("--folder", type=Path, default=Path("runs/recipes"), help="of the runs (default: %(default)s)")
add_json(PARSER)


def train_once(recipe: str, folder: Path, seed: int) -> dict[str, Any]:
    """The summary of one run, trained now unless the folder has it."""
    run = folder / f"{recipe}-seed{seed}"
    path = run / "summary.json"
    if not path.exists():
        options = [f"--config={recipe}", f"--run.seed={seed}", f"--run.dir={run}", "--tracking.mode=disabled"]
        run_python(["-m", "mnist_dist.train", *options, "--run.quiet=true"])
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def describe(name: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """What one run found."""
    return f"{values[name]['test.accuracy']:.2%} after {values[name]['train.seconds']:.1f} s of training"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)
    recipes = options.recipes or ["default", *TUTORIALS]
    cases = {recipe: partial(train_once, recipe, options.folder) for recipe in recipes}
    results = run_rounds(cases, options.seeds, describe, unit="seed")
    found, rows = {}, []
    for recipe in results.measured():
        summaries = results.of(recipe)
        accuracies = [100 * summary["test.accuracy"] for summary in summaries]
        seconds = [summary["train.seconds"] for summary in summaries]
        found[recipe] = {"accuracies": accuracies, "seconds": seconds}
        spread = [f"{value:.2f} %" for value in (statistics.mean(accuracies), min(accuracies), max(accuracies))]
        cells = [str(summaries[0]["test.count"]), f"{statistics.median(seconds):.1f}"]
        rows.append([recipe, TUTORIALS.get(recipe, "-"), *spread, *cells])
    headings = ("recipe", "tutorial", "mean", "min", "max", "test images", "training, s")
    print_table(f"test accuracy: {results.title()}", headings, rows, left=("recipe",))
    write_json(options.json, found)
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)
