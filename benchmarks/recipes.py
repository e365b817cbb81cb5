"""Train recipes over several seeds and print what they reach: the results table of the README.

    python benchmarks/recipes.py [--seeds 3] [--folder runs/recipes] [RECIPE ...]

Runs that the folder already holds are not repeated, so the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

TUTORIALS = {
    "seeds/cnn": "-",
    "seeds/convnet": "97.97 %",
    "seeds/basic": "-",
    "seeds/deep_head": "-",
    "seeds/deep_head_fixed": "-",
    "seeds/adam": "-",
}
"""Recipes and the test accuracy that their tutorials report; a dash where they report a curve or nothing."""


def train(recipe: str, seed: int, folder: Path) -> dict[str, object]:
    """The summary of one run, trained now unless it is there."""
    run = folder / f"{recipe}-seed{seed}"
    summary = run / "summary.json"
    if not summary.exists():
        options = [f"--config={recipe}", f"--run.seed={seed}", f"--run.dir={run}", "--tracking.mode=disabled"]
        subprocess.run([sys.executable, "-m", "mnist_dist.train", *options, "--run.quiet=true"], check=True)
    return json.loads(summary.read_text())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", metavar="RECIPE", nargs="*", default=["default", *TUTORIALS])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"), help="default: %(default)s")
    options = parser.parse_args()
    table = Table(title=f"test accuracy over seeds 0 to {options.seeds - 1}")
    for heading in ("recipe", "tutorial", "mean", "least", "most", "test images", "training, s"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    for recipe in options.recipes:
        summaries = [train(recipe, seed, options.folder) for seed in range(options.seeds)]
        accuracies = [100 * float(str(summary["test.accuracy"])) for summary in summaries]
        table.add_row(
            recipe,
            TUTORIALS.get(recipe, "-"),
            f"{statistics.mean(accuracies):.2f} %",
            f"{min(accuracies):.2f} %",
            f"{max(accuracies):.2f} %",
            str(summaries[0]["test.count"]),
            f"{statistics.median(float(str(summary['train.seconds'])) for summary in summaries):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
