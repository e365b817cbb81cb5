"""`mnist-dist benchmark accuracy`: the time to 99 % of the test set, against the fastest recipe known to us elsewhere.

Both train to the end of their schedules with each of the same seeds, one after the other; nothing is chosen on the test
set. Of our command the whole time is taken too, from the shell to the summary, beside what it cannot do without: the
imports alone, and reading the data.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_dist.commands.benchmark_runner import FASTEST, Contestant, references_folder, run

OURS, THEIRS = "speed99", "train_mnist_fast"
TRAINING = 1.15  # what the rest of the process may take, in training times
IMPORTS = Contestant(
    "imports and data",
    [
        "-c",
        "import time, torch, accelerate, mnist_dist.train, mnist_dist.training.trainer, mnist_dist.training.summary\n"
        "import mnist_dist.console.console\n"
        "from mnist_dist.config.schema import DataConfig\n"
        "from mnist_dist.data.prepare import ensure_files, resolve_root\n"
        "from mnist_dist.data.dataset import read_splits\n"
        "start = time.perf_counter()\n"
        "read_splits(ensure_files(resolve_root(''), 'auto', lambda text: None), DataConfig(), 0)\n"
        "print(time.perf_counter() - start)",
    ],
)


def measure_accuracy(seeds: int) -> dict[str, dict[str, Any]]:
    """Accuracies (fractions) and seconds of each seed, ours and theirs, with medians and ratios."""
    found: dict[str, dict[str, list[float]]] = {THEIRS: {}, OURS: {}}
    for seed in range(seeds):
        note(found[THEIRS], train_theirs(seed))
        note(found[OURS], train_ours(seed))
    results: dict[str, dict[str, Any]] = {name: summarize(values) for name, values in found.items()}
    ours = found[OURS]
    ratios = [a / b for a, b in zip(ours["seconds"], found[THEIRS]["seconds"], strict=True)]
    allowed = [
        imports + data + TRAINING * training
        for imports, data, training in zip(ours["imports"], ours["data"], ours["seconds"], strict=True)
    ]
    results[OURS] |= {
        "against": THEIRS,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "whole_over_allowed": statistics.median(a / b for a, b in zip(ours["whole"], allowed, strict=True)),
    }
    return results


def note(lists: dict[str, list[float]], values: dict[str, float]) -> None:
    """Add one seed's values to the lists."""
    for name, value in values.items():
        lists.setdefault(name, []).append(value)


def summarize(values: dict[str, list[float]]) -> dict[str, Any]:
    """The mean accuracy, the median of each time, and all of them."""
    accuracies = values["accuracy"]
    spread = {"mean": statistics.mean(accuracies), "least": min(accuracies), "most": max(accuracies)}
    seconds = {name: statistics.median(times) for name, times in values.items() if name != "accuracy"}
    return {"accuracy": spread, "seconds": seconds, "all": values}


def train_theirs(seed: int) -> dict[str, float]:
    """Accuracy and seconds of training of the reference."""
    script = str(references_folder() / FASTEST)
    out, _ = timed(lambda: run(Contestant(THEIRS, []), [script, "--seeds=1", f"--first={seed}"]))
    found = json.loads(out.splitlines()[-1])
    return {"accuracy": found["accuracy"], "seconds": found["seconds"]}


def train_ours(seed: int) -> dict[str, float]:
    """Accuracy, seconds of training, of the whole process, and of processes that only import or read the data."""
    out, start = timed(lambda: run(IMPORTS, list(IMPORTS.command)))
    data = float(out)
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as folder:
        options = [f"--run.seed={seed}", f"--run.dir={folder}/run", "--run.quiet=true"]
        arguments = ["-m", "mnist_dist.train", "--config", OURS, *options]
        _, whole = timed(lambda: run(Contestant(OURS, []), arguments))
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    times = {"seconds": summary["train.seconds"], "whole": whole, "imports": start - data, "data": data}
    return {"accuracy": summary["test.accuracy"], **times}


def timed(action: Callable[[], str]) -> tuple[str, float]:
    """What an action gives, and the seconds it took."""
    start = time.perf_counter()
    return action(), time.perf_counter() - start


def show_accuracy(results: dict[str, dict[str, Any]], seeds: int) -> None:
    """A table, and the whole process in one line."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"time to 99 % of the test set: {seeds} seeds", title_justify="left")
    for heading in ("recipe", "mean accuracy", "least to most", "training, s", "ratio", "least to most"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    for name, found in results.items():
        accuracy = found["accuracy"]
        ratio = (f"{found['ratio']:.3f}", f"{found['least']:.3f} to {found['most']:.3f}") if "ratio" in found else ()
        table.add_row(
            name,
            f"{accuracy['mean']:.2%}",
            f"{accuracy['least']:.2%} to {accuracy['most']:.2%}",
            f"{found['seconds']['seconds']:.2f}",
            *ratio,
        )
    console.print(table)
    times = results[OURS]["seconds"]
    parts = f"imports {times['imports']:.2f}, data {times['data']:.2f}, training {times['seconds']:.2f}"
    share = f"{results[OURS]['whole_over_allowed']:.2f} of imports + data + {TRAINING} x training"
    console.print(f"{OURS}, the whole command: {times['whole']:.2f} s, of which {parts}; {share}", soft_wrap=True)
