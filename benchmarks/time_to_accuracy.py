"""Time to 99 % of the test set: the recipe speed99 against tuomaso/train_mnist_fast, the fastest elsewhere we know of.

Both train to the end of their schedules with each of the same seeds, one after the other; nothing is chosen on the test
set. Of `speed99` the whole command is timed too, from the shell to the summary, beside what it cannot do without: its
imports, and reading the data. On the CPU. Recorded figures: docs/performance.md.

examples:
  python benchmarks/time_to_accuracy.py                       10 seeds: about 4 minutes on two cores
  python benchmarks/time_to_accuracy.py --seeds 1             a quick look: about half a minute
  python benchmarks/time_to_accuracy.py --json accuracy.json  the figures in a file, too
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common.cli import add_count, add_json, build_parser, run_script, write_json
from common.processes import run_python, run_reference, train
from common.rounds import RoundResults, ratios, run_rounds
from common.tables import print_table

RECIPE, REFERENCE = "speed99", "train_mnist_fast"
ALLOWED = 1.15  # training times that the process may take beside its imports and reading the data
IMPORT_AND_READ = """\
import time, torch, accelerate, mnist_dist.train, mnist_dist.training.trainer, mnist_dist.training.summary
import mnist_dist.console.console
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.prepare import ensure_files, resolve_root
from mnist_dist.data.dataset import read_splits
start = time.perf_counter()
read_splits(ensure_files(resolve_root(''), 'auto', lambda text: None), DataConfig(), 0)
print(time.perf_counter() - start)
"""
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "seeds", 10, "seeds, 0 to N-1")
add_json(PARSER)


def train_reference(seed: int) -> dict[str, float]:
    """Test accuracy (a fraction) and seconds of training of the reference."""
    found = run_reference("mnist_fast.py", ["--seeds=1", f"--first={seed}"])
    return {"accuracy": found["accuracy"], "seconds": found["seconds"]}


def train_recipe(seed: int) -> dict[str, float]:
    """Test accuracy (a fraction) of the recipe and seconds: of training, of the whole process, of the two parts.

    `imports` and `data` are of another process, which only imports what a run imports and reads the data.
    """
    start = time.perf_counter()
    data = float(run_python(["-c", IMPORT_AND_READ]))
    imports = time.perf_counter() - start - data
    run = train(["--config", RECIPE, f"--run.seed={seed}"])
    times = {"seconds": run.summary["train.seconds"], "whole": run.seconds, "imports": imports, "data": data}
    return {"accuracy": run.summary["test.accuracy"], **times}


def describe(name: str, values: Mapping[str, Mapping[str, float]]) -> str:
    """What one training run found."""
    own = values[name]
    ratio = f", {own['seconds'] / values[REFERENCE]['seconds']:.3f} x {REFERENCE}" if name != REFERENCE else ""
    return f"{own['accuracy']:.2%} after {own['seconds']:.2f} s of training{ratio}"


def summarize(results: RoundResults[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """By recipe: mean accuracy, median seconds, all values; of ours also the ratio of training times."""
    found: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name in results.measured():
        runs = results.of(name)
        values[name] = {key: [run[key] for run in runs] for key in runs[0]}
        accuracies = values[name]["accuracy"]
        spread = {"mean": statistics.mean(accuracies), "min": min(accuracies), "max": max(accuracies)}
        seconds = {key: statistics.median(times) for key, times in values[name].items() if key != "accuracy"}
        found[name] = {"accuracy": spread, "seconds": seconds, "all": values[name]}
    if RECIPE not in found:  # it ended with the first run
        return found
    shares = [run["whole"] / (run["imports"] + run["data"] + ALLOWED * run["seconds"]) for run in results.of(RECIPE)]
    found[RECIPE] |= {
        "baseline": REFERENCE,
        **ratios(values[RECIPE]["seconds"], values[REFERENCE]["seconds"]),
        "whole_over_allowed": statistics.median(shares),
    }
    return found


def print_accuracy(title: str, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table, and the time of the whole process in one line."""
    rows = []
    for name, found in summary.items():
        accuracy, ratio, spread = found["accuracy"], "", ""
        if "ratio" in found:
            ratio, spread = f"{found['ratio']:.3f}", f"{found['min']:.3f} to {found['max']:.3f}"
        accuracies = [f"{accuracy['mean']:.2%}", f"{accuracy['min']:.2%} to {accuracy['max']:.2%}"]
        rows.append([name, *accuracies, f"{found['seconds']['seconds']:.2f}", ratio, spread])
    print_table(title, ("recipe", "mean accuracy", "range", "training, s", "ratio", "range"), rows, left=("recipe",))
    if RECIPE not in summary:
        return
    own = summary[RECIPE]
    times = own["seconds"]
    parts = f"imports {times['imports']:.2f}, data {times['data']:.2f}, training {times['seconds']:.2f}"
    share = f"{own['whole_over_allowed']:.2f} of imports + data + {ALLOWED} x training"
    print(f"{RECIPE}, the whole command: {times['whole']:.2f} s, of which {parts}; {share}")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)
    cases = {REFERENCE: train_reference, RECIPE: train_recipe}
    results = run_rounds(cases, options.seeds, describe, unit="seed")
    summary = summarize(results)
    print_accuracy(f"time to 99 % of the test set: {results.title()}", summary)
    write_json(options.json, summary)
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)
