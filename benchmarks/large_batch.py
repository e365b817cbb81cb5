"""How large a global batch may grow before a fixed number of epochs no longer reaches the same accuracy.

    python benchmarks/batch_growth.py > growth.json           the table goes to the terminal, JSON to standard output

One process simulates the workers: each has 64 images of a batch, a shard of its own (`train.shards`), so what is
trained is bit for bit what that many processes would train. Where a batch is B times the base batch, its rate is

    constant  that of the base batch
    sqrt      sqrt(B) times that (Krizhevsky 2014, arXiv:1404.5997; for Adam Malladi et al. 2022, arXiv:2205.10287)
    linear    B times that (Goyal et al. 2017, arXiv:1706.02677)

Runs that the folder already holds are not repeated, so the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mnist_dist.train import start

WORKER_BATCH = 64  # images that a simulated worker has of each global batch
BASE_BATCH = 256  # where all rules give the base learning rate
POWERS = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}
BATCHES = [WORKER_BATCH * 2**n for n in range(9)]
RECIPE = [
    *("--data.val_size=0", "--model.name=compact", "--train.precision=bf16", "--optim.label_smoothing=0.1"),
    *("--optim.weight_decay=0", "--optim.schedule=linear", "--optim.warmup=0.2"),
    *("--run.device=cpu", "--run.quiet=true", "--tracking.mode=disabled", "--train.keep=1", "--train.nonfinite=skip"),
]
OPTIMIZERS = {
    "adam": ["--optim.name=adam", "--optim.betas=[0.6, 0.8]"],
    "sgd": ["--optim.name=sgd", "--optim.momentum=0.9", "--optim.nesterov=true"],
}
RATES = (("adam", 0.02), ("sgd", 0.4), ("sgd", 0.1))
"""Learning rates at the base batch: that of configs/speed99; the least that comes within 0.1 points of SGD's best;
and the one that Goyal et al. scale from 256 images."""


def scaled_rate(base: float, batch: int, rule: str) -> float:
    """The learning rate of a batch by one of the rules of POWERS, from the rate of the base batch."""
    return base * (batch / BASE_BATCH) ** POWERS[rule]


def arguments_of(optimizer: str, rate: float, batch: int, seed: int, epochs: int) -> list[str]:
    """The trainer's arguments for one run."""
    workers = [f"--train.batch_size={batch}", f"--train.shards={batch // WORKER_BATCH}", f"--train.epochs={epochs}"]
    return [*RECIPE, *OPTIMIZERS[optimizer], *workers, f"--optim.lr={rate:.6g}", f"--run.seed={seed}"]


def train(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The summary of one run, trained now unless it is there."""
    summary = folder / "summary.json"
    if not summary.exists():
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is for the JSON alone
            start([*arguments, f"--run.dir={folder}", "--run.resume=never"])
    return json.loads(summary.read_text())


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each optimizer and base rate, rule and batch, with the accuracies of all seeds."""
    found = []
    for (optimizer, base), batch, rule in itertools.product(RATES, options.batches, POWERS):
        rate = scaled_rate(base, batch, rule)
        accuracies, steps = [], 0
        for seed in range(options.seeds):  # runs are named by what they do: rules that agree share them
            folder = options.folder / f"{optimizer}-lr{rate:.6g}-batch{batch}-epochs{options.epochs}-seed{seed}"
            summary = train(arguments_of(optimizer, rate, batch, seed, options.epochs), folder)
            accuracies.append(summary["test.accuracy"])
            steps = summary["train.steps"]
        run = {"optimizer": optimizer, "base_lr": base, "rule": rule, "batch": batch, "lr": rate}
        found.append(run | {"workers": batch // WORKER_BATCH, "steps": steps, "accuracies": accuracies})
    return found


def show(found: list[dict[str, Any]]) -> None:
    """A table for each optimizer and base rate: the mean accuracy of each batch and rule, and the seeds' range."""
    for optimizer, base in RATES:
        table = Table(title=f"{optimizer}, lr {base} at {BASE_BATCH}: test accuracy in %", title_justify="left")
        for heading in ("batch", "workers", "steps", *POWERS):
            table.add_column(heading, justify="right")
        runs = [run for run in found if (run["optimizer"], run["base_lr"]) == (optimizer, base)]
        for _, row in itertools.groupby(runs, key=lambda run: run["batch"]):
            cells = []
            for run in (batch := list(row)):
                shares = [100 * accuracy for accuracy in run["accuracies"]]
                cells.append(f"{statistics.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")
            table.add_row(*(str(batch[0][key]) for key in ("batch", "workers", "steps")), *cells)
        Console(stderr=True, highlight=False).print(table)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=1, help="of each run; default: %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help=f"multiples of {WORKER_BATCH}")
    parser.add_argument("--folder", type=Path, default=Path("runs/batch_growth"), help="default: %(default)s")
    options = parser.parse_args()
    if wrong := [batch for batch in options.batches if batch < WORKER_BATCH or batch % WORKER_BATCH]:
        parser.error(f"--batches {wrong[0]}: must be a positive multiple of {WORKER_BATCH}, a worker's share")
    found = sweep(options)
    show(found)
    print(json.dumps({"epochs": options.epochs, "seeds": options.seeds, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
