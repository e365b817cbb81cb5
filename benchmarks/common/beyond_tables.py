"""The part of docs/results.md beyond the test set: corrupted digits, calibration, another data set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from common.corruptions import CORRUPTIONS
from common.markdown import ACCURACY, accuracy_cells, percent, table
from common.recorded import Recorded
from common.robustness_lines import CLEAN, Robustness


def robustness_section(recorded: Recorded, plot: str) -> str:
    """Corrupted test sets, calibration, and another data set."""
    meanings = "".join(f"- **{name}** ({each.unit}): {each.meaning}\n" for name, each in CORRUPTIONS.items())
    text = (
        "Measured, and never tuned on: accuracy on the test set after a corruption of growing size, by `python "
        "benchmarks/robustness.py --record RUN...`. The ideas are those of "
        "[MNIST-C](https://arxiv.org/abs/1906.02337) and, for the width of strokes, of "
        "[Morpho-MNIST](https://arxiv.org/abs/1809.10780); the images are other ones.\n\n"
    )
    text += meanings + plot
    if not recorded.robustness:
        text += "\nNothing is recorded yet.\n"
    for name, corruption in CORRUPTIONS.items() if recorded.robustness else ():
        headings = ("recipe", "seeds", "0", *(f"{size:g} {corruption.unit}" for size in corruption.sizes))
        rows = [
            [
                f"`{recipe}`",
                str(len(lines)),
                *(percent(share) for share in mean_shares(lines, CLEAN) + mean_shares(lines, name)),
            ]
            for recipe, lines in recorded.robustness.items()
        ]
        text += f"\n### {name}\n\n" + table(headings, rows)
    return text + "\n" + calibration_table(recorded) + "\n" + fashion_table(recorded)


def calibration_table(recorded: Recorded) -> str:
    """Expected calibration error of each recipe, on the clean and the most corrupted test sets."""
    text = (
        "### Calibration\n\nThe expected calibration error over 15 bins of confidence "
        "([Guo et al. 2017](https://arxiv.org/abs/1706.04599)), in %: how far the probability of the predicted digit "
        "is from the share of right predictions. Label smoothing makes a network say less than it knows. Clean, and at "
        "severity 3.\n\n"
    )
    rows = []
    for recipe, lines in recorded.robustness.items():
        errors = [mean_errors(lines, CLEAN)[0], *(mean_errors(lines, name)[2] for name in CORRUPTIONS)]
        rows.append([f"`{recipe}`", str(len(lines)), *(f"{100 * error:.2f}" for error in errors)])
    return text + (table(("recipe", "seeds", CLEAN, *CORRUPTIONS), rows) if rows else "Nothing is recorded yet.\n")


def fashion_table(recorded: Recorded) -> str:
    """Recipes on Fashion-MNIST, unchanged."""
    text = (
        "### Fashion-MNIST\n\nThe recipes as they are, on other images: `mnist-dist repeat --config strong "
        "--data.name=fashion --seeds N --record`.\n\n"
    )
    rows = []
    for variant in recorded.fashion.values():
        found = variant.statistics
        rows.append([variant.name, *accuracy_cells(found), f"{found.train_seconds:.1f}"])
    headings = ("recipe", *ACCURACY, "training, s")
    return text + (table(headings, rows) if rows else "Not measured here.\n")


def mean_shares(lines: Sequence[Robustness], name: str) -> list[float]:
    """Mean accuracy over the seeds, by severity."""
    return [
        statistics.fmean(shares)
        for shares in zip(*([right / each.count for right in each.correct[name]] for each in lines), strict=True)
    ]


def mean_errors(lines: Sequence[Robustness], name: str) -> list[float]:
    """Mean calibration error over the seeds, by severity."""
    return [statistics.fmean(errors) for errors in zip(*(each.calibration_error[name] for each in lines), strict=True)]
