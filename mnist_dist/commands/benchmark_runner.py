"""Who runs against whom in `mnist-dist benchmark`: whole processes, started anew in each round, rounds interleaved.

What else the machine does falls on all alike. A rate leaves the start out; what happens between steps (metrics,
records, checkpoints) is in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_dist.utils.errors import TrainingError

BARE, TEXTBOOK, FASTEST = "bare_loop.py", "textbook_accelerate.py", "mnist_fast.py"


@dataclass(frozen=True)
class Contestant:
    """What is run: Python's arguments for the trainer, or a reference's file and its arguments."""

    name: str
    command: Sequence[str]
    against: str = ""
    """The contestant it is compared with; empty for one that others are compared with."""


def measure(contestants: Sequence[Contestant], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Rates and ratios of each contestant, by name."""
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            rates[contestant.name].append(rate_of(contestant, steps))
    results: dict[str, dict[str, Any]] = {}
    for contestant in contestants:
        own = rates[contestant.name]
        results[contestant.name] = {"steps_per_second": statistics.median(own), "rates": own}
        if contestant.against:
            ratios = [a / b for a, b in zip(own, rates[contestant.against], strict=True)]
            found = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            results[contestant.name] |= {"against": contestant.against, **found}
    return results


def rate_of(contestant: Contestant, steps: int) -> float:
    """Steps per second of one run."""
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as name:
        folder = Path(name)
        if contestant.command[0].endswith(".py"):
            return run_reference(contestant, steps, folder)
        run(contestant, [*contestant.command, f"--train.max_steps={steps}", f"--run.dir={folder}/run"])
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "images_per_second" in row]
        return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["time"] - rows[0]["time"])


def run_reference(contestant: Contestant, steps: int, folder: Path) -> float:
    """Steps per second of one of the loops in benchmarks/references/."""
    from mnist_dist.data.prepare import ensure_files, resolve_root

    script, *options = contestant.command
    if script == TEXTBOOK:
        raw = folder / "MNIST" / "raw"  # as torchvision lays it out
        raw.mkdir(parents=True)
        for name, path in ensure_files(resolve_root(""), "auto", lambda text: None).items():
            (raw / name).symlink_to(path.resolve())
        options = [f"--root={folder}", *options]
    out = run(contestant, [str(references_folder() / script), *options, f"--steps={steps}"])
    return float(json.loads(out.splitlines()[-1])["steps_per_second"])


def run(contestant: Contestant, arguments: list[str]) -> str:
    """What a contestant printed. Raises TrainingError if it failed."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TrainingError(f"benchmark: {contestant.name}: ended with exit code {done.returncode}: {last}")
    return done.stdout


def references_folder() -> Path:
    """The folder of the reference loops: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / "references", package.parent / "benchmarks" / "references"
    return inside if inside.is_dir() else beside
