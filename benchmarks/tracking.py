"""What all that wandb is given costs: steps per second with it against without, and the time at an epoch's end.

    python benchmarks/tracking.py                     one JSON object

Whole runs of the default recipe, rounds interleaved: `--tracking.mode=offline` with everything at its defaults against
`--tracking.mode=disabled`, and with rows only. `ratio` is of the epochs after the first (in which wandb starts), with
what happens between epochs; `whole` is of all of it. A run during which others took more than 5 % of the machine is
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quiet import machine, when_quiet

from mnist_dist.config.loader import load
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import read_splits
from mnist_dist.data.prepare import ensure_files, resolve_root
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model
from mnist_dist.training.trainer import Trainer
from mnist_dist.training.visualizer import Visualizer

TRAIN = ["-m", "mnist_dist.train", "--run.quiet=true", "--run.device=cpu"]
VARIANTS = {
    "disabled": ["--tracking.mode=disabled"],
    "rows only": ["--tracking.mode=offline", "--tracking.examples=0", "--tracking.histograms=false"],
    "everything": ["--tracking.mode=offline"],
}
EPOCH = 215  # steps of the default recipe


def rates_of(variant: str, epochs: int) -> tuple[float, float]:
    """Steps per second of one run: of its epochs after the first, and of all of it after the first row."""
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as folder:
        options = [*VARIANTS[variant], f"--train.max_steps={epochs * EPOCH}", f"--run.dir={folder}/run"]
        environment = os.environ | {"WANDB_MODE": ""}
        subprocess.run([sys.executable, *TRAIN, *options], check=True, stdout=subprocess.DEVNULL, env=environment)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "images_per_second" in row]
    last, second, first = rows[-1], next(row for row in rows if row["step"] > EPOCH), rows[0]
    return tuple((last["step"] - row["step"]) / (last["time"] - row["time"]) for row in (second, first))  # type: ignore


def compare(rounds: int, epochs: int) -> dict[str, Any]:
    """Rates of each variant, and their ratios to the disabled one's, round by round."""
    rates: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            rates[variant].append(when_quiet(partial(rates_of, variant, epochs)))
    found: dict[str, Any] = {}
    for variant, own in rates.items():
        found[variant] = {"steps_per_second": statistics.median(rate for rate, _ in own)}
        for place, name in enumerate(("ratio", "whole")):
            ratios = [a[place] / b[place] for a, b in zip(own, rates["disabled"], strict=True)]
            found[variant] |= {name: statistics.median(ratios), f"{name}s": [round(ratio, 4) for ratio in ratios]}
    return found


def insights_milliseconds(times: int) -> dict[str, float]:
    """Medians of what an epoch's end takes beside its evaluation, by part, after some steps of the default recipe."""
    config = load(["--run.device=cpu", "--tracking.mode=disabled", "--train.max_steps=20"]).config
    with start_runtime(config, Topology()) as runtime, tempfile.TemporaryDirectory() as folder:
        splits = read_splits(ensure_files(resolve_root(""), "auto", lambda line: None), config.data, config.run.seed)
        torch.manual_seed(config.run.seed)
        trainer = Trainer(config, runtime, runtime.place(create_model(config.model.name)), splits, Console(), "id")
        trainer.train(Path(folder), lambda row: None)
        visualizer = Visualizer(trainer.state, splits, config, lambda *_: None)
        rows: list[list[float]] = []

        def choose() -> None:
            rows[:] = visualizer.predictions.rows(runtime.device).tolist()

        trainer.evaluate("val", visualizer.note)
        with torch.no_grad():
            parts: dict[str, Callable[[], Any]] = {
                "choose examples": choose,
                "describe examples": lambda: visualizer.examples(rows),
                "maps and filters": visualizer.pictures,
                "histograms": visualizer.histograms,
            }
            found = {name: milliseconds(part, times) for name, part in parts.items()}
        return found | {"together": sum(found.values())}


def milliseconds(function: Callable[[], Any], times: int) -> float:
    """The median of several calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s; 0: no runs")
    parser.add_argument("--epochs", type=int, default=3, help="of each run, from 2 on (default: %(default)s)")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "insights_ms": insights_milliseconds(times=20)}
    if options.rounds:
        result |= {"rounds": options.rounds, "epochs": options.epochs, "runs": compare(options.rounds, options.epochs)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
