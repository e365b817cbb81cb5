"""Speed on a GPU: images per second, share of the matrix-product peak, and the time to 99 and 99.5 % of the test set.

    python benchmarks/gpu.py [--seeds 30] [--rounds 5]

Whole processes of the trainer on one GPU, data resident on it, bf16, rounds interleaved. Needs a GPU, and says so
elsewhere. `training` excludes compilation, which happens before the first step; `process` is the whole command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mnist_dist.commands.benchmark_runner import Contestant, run
from mnist_dist.training.profiler import measure_peak

COMPILE = ("no", "default", "reduce-overhead")
MODELS, BATCHES = ("cnn", "unshuffle", "compact"), (256, 1024, 4096)
TARGETS = {"speed99": 0.99, "strong": 0.995}
SPEED = ["--train.precision=bf16", "--train.shards=0", "--data.val_size=0", "--train.epochs=200", "--optim.lr=0.001"]
STEPS = 600


def train(arguments: list[str]) -> dict[str, Any]:
    """The summary of one run, with the seconds of its process, and the rate between its first and last row."""
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as folder:
        options = ["--run.quiet=true", "--tracking.mode=disabled", f"--run.dir={folder}/run"]
        start = time.perf_counter()
        run(Contestant(" ".join(arguments), []), ["-m", "mnist_dist.train", *arguments, *options])
        seconds = time.perf_counter() - start
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        rows = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return summary | {"process": seconds, "rate": statistics.median(rates[1:] or rates)}


def measure_rates(rounds: int, peak: float) -> Table:
    """Images per second of each model, batch and way to compile, and what share of the peak that is."""
    cases = [(model, batch, mode) for model in MODELS for batch in BATCHES for mode in COMPILE]
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for model, batch, mode in cases:
            task = [f"--model.name={model}", f"--train.batch_size={batch}", f"--train.compile={mode}"]
            found[model, batch, mode].append(train([*SPEED, *task, f"--train.max_steps={STEPS}"]))
    table = Table(title=f"peak {peak / 1e12:.1f} TFLOP/s (bf16 matrix product); medians of {rounds}")
    for heading in ("model", "batch", "compile", "images/s", "TFLOP/s", "MFU", "process, s"):
        table.add_column(heading)
    for (model, batch, mode), runs in found.items():
        rate = statistics.median(one["rate"] for one in runs)
        flops = rate * statistics.median(one["train.flops_per_second"] / one["train.images_per_second"] for one in runs)
        process = statistics.median(one["process"] for one in runs)
        cells = (f"{rate:,.0f}", f"{flops / 1e12:.2f}", f"{flops / peak:.2%}", f"{process:.1f}")
        table.add_row(model, str(batch), mode, *cells)
    return table


def measure_times(seeds: int) -> Table:
    """Accuracy and seconds of the recipes that aim at 99 and 99.5 %, with and without compilation."""
    table = Table(title=f"{seeds} seeds each, at the last step")
    for heading in ("recipe", "target", "compile", "mean", "least", "most", "training, s", "process, s"):
        table.add_column(heading)
    for recipe, target in TARGETS.items():
        for mode in COMPILE:
            task = ["--config", recipe, "--train.shards=0", f"--train.compile={mode}"]
            runs = [train([*task, f"--run.seed={seed}"]) for seed in range(seeds)]
            accuracies = [one["test.accuracy"] for one in runs]
            spread = (statistics.mean(accuracies), min(accuracies), max(accuracies))
            times = (statistics.median(one[name] for one in runs) for name in ("train.seconds", "process"))
            cells = (*(f"{value:.2%}" for value in spread), *(f"{value:.2f}" for value in times))
            table.add_row(recipe, f"{target:.1%}", mode, *cells)
    return table


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: needs a GPU that torch can use, and there is none")
    console = Console()
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    peak = measure_peak(torch.device("cuda"), torch.bfloat16, threads=1)
    console.print(measure_times(options.seeds))
    console.print(measure_rates(options.rounds, peak))


if __name__ == "__main__":
    main()
