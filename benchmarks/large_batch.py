"""How large a global batch may grow before a fixed number of epochs no longer reaches the same accuracy.

One process simulates the workers: each has 64 images of a batch, a shard of its own (`train.shards`), so what is
trained is bit for bit what that many processes would train. Where a batch is B times the base batch, its rate is

    constant  that of the base batch
    sqrt      sqrt(B) times that (Krizhevsky 2014, arXiv:1404.5997; for Adam Malladi et al. 2022, arXiv:2205.10287)
    linear    B times that (Goyal et al. 2017, arXiv:1706.02677)

Runs that the folder already holds are not repeated, so the command can be interrupted and started again. Recorded
figures: docs/scaling.md, benchmarks/results/large_batch.json.

examples:
  python benchmarks/large_batch.py                                  3 seeds: about half an hour on two cores
  python benchmarks/large_batch.py --seeds 1 --batches 16384        a quick look: about a minute
  python benchmarks/large_batch.py --json large_batch.json          for scaling_plots.py, which reads results/
  python benchmarks/large_batch.py --epochs 2 --folder runs/two     two epochs a run, in another folder
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import add_count, add_json, build_parser, run_script, write_json
from common.rounds import RoundResults, run_rounds
from common.tables import print_table
from mnist_dist.__main__ import main as mnist_dist
from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED, TrainingError

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
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "seeds", 3, "seeds, 0 to N-1")
add_count(PARSER, "epochs", 1, "epochs of each run")
PARSER.add_argument(
    "--batches",
    type=int,
    nargs="+",
    default=BATCHES,
    help=f"global batch sizes, multiples of {WORKER_BATCH} (default: {BATCHES[0]} to {BATCHES[-1]})",
)
PARSER.add_argument("--folder", type=Path, default=Path("runs/large_batch"), help="of the runs (default: %(default)s)")
add_json(PARSER)


class Setting(NamedTuple):
    """What is trained with each seed."""

    optimizer: str
    base: float
    """Learning rate at the base batch."""
    rule: str
    """How the rate follows the batch, of POWERS."""
    batch: int
    """Images of a global batch."""

    @property
    def rate(self) -> float:
        """The learning rate of this batch."""
        return scaled_rate(self.base, self.batch, self.rule)

    def __str__(self) -> str:
        return f"{self.optimizer}, lr {self.base} {self.rule}, batch {self.batch}"


def scaled_rate(base: float, batch: int, rule: str) -> float:
    """The learning rate of a batch by one of the rules of POWERS, from the rate of the base batch."""
    return float(base * (batch / BASE_BATCH) ** POWERS[rule])


def train_options(optimizer: str, rate: float, batch: int, seed: int, epochs: int) -> list[str]:
    """The trainer's options for one run."""
    workers = [f"--train.batch_size={batch}", f"--train.shards={batch // WORKER_BATCH}", f"--train.epochs={epochs}"]
    return [*RECIPE, *OPTIMIZERS[optimizer], *workers, f"--optim.lr={rate:.6g}", f"--run.seed={seed}"]


def train_once(setting: Setting, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """The summary of one run, trained now unless the folder has it: settings that agree share their runs.

    It trains in this process, which saves the imports of some hundred runs.

    Raises:
        TrainingError: the run failed.
        KeyboardInterrupt: it was interrupted.
    """
    optimizer, rate, batch = setting.optimizer, setting.rate, setting.batch
    run = folder / f"{optimizer}-lr{rate:.6g}-batch{batch}-epochs{epochs}-seed{seed}"
    path = run / "summary.json"
    if not path.exists():
        options = train_options(optimizer, rate, batch, seed, epochs)
        with contextlib.redirect_stdout(io.StringIO()):  # the run's folder
            code = mnist_dist(["train", *options, f"--run.dir={run}", "--run.resume=never"])
        if code == EXIT_STOPPED:
            raise KeyboardInterrupt
        if code != EXIT_DONE:
            raise TrainingError(f"exit code {code}; the line above says why")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def describe(name: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """What one run found."""
    return f"{values[name]['test.accuracy']:.2%} after {values[name]['train.steps']} steps"


def summarize(settings: Sequence[Setting], results: RoundResults[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each setting, with the accuracies (fractions) of all seeds."""
    found = []
    for setting in settings:
        summaries = results.of(str(setting))
        if not summaries:  # it ended with the first seed
            continue
        run = {"optimizer": setting.optimizer, "base_lr": setting.base, "rule": setting.rule, "batch": setting.batch}
        run |= {"lr": setting.rate, "workers": setting.batch // WORKER_BATCH, "steps": summaries[0]["train.steps"]}
        found.append(run | {"accuracies": [summary["test.accuracy"] for summary in summaries]})
    return found


def print_accuracies(found: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for each optimizer and base rate: mean accuracy of each batch and rule, and the seeds' range."""
    for optimizer, base in RATES:
        runs = [run for run in found if (run["optimizer"], run["base_lr"]) == (optimizer, base)]
        rows = []
        for _, group in itertools.groupby(runs, key=lambda run: run["batch"]):
            batch, cells = list(group), dict.fromkeys(POWERS, "")
            for run in batch:
                shares = [100 * accuracy for accuracy in run["accuracies"]]
                cells[run["rule"]] = f"{statistics.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
            rows.append([*(str(batch[0][key]) for key in ("batch", "workers", "steps")), *cells.values()])
        title = f"{optimizer}, lr {base} at {BASE_BATCH}: test accuracy in %"
        if rows:
            print_table(title, ("batch", "workers", "steps", *POWERS), rows)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)
    if wrong := [batch for batch in options.batches if batch < WORKER_BATCH or batch % WORKER_BATCH]:
        PARSER.error(f"--batches {wrong[0]}: must be a positive multiple of {WORKER_BATCH}, a worker's share")
    settings = [
        Setting(optimizer, base, rule, batch)
        for (optimizer, base), batch, rule in itertools.product(RATES, options.batches, POWERS)
    ]
    cases = {str(setting): partial(train_once, setting, options.folder, options.epochs) for setting in settings}
    results = run_rounds(cases, options.seeds, describe, unit="seed")
    found = summarize(settings, results)
    print_accuracies(found)
    write_json(options.json, {"epochs": options.epochs, "seeds": results.complete(), "runs": found})
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)
