"""What a run costs as its work grows: more data, and larger batches. Rates should stay flat, memory grow by the data.

    python benchmarks/growth.py [--rounds 3]

Whole processes of the trainer with the net of seeds/cnn, Adam, one after the other, rounds interleaved. The larger sets
are MNIST's training images 4 and 16 times over. Rates are between the first and the last row of metrics; memory is the
largest that the process had resident, most of which is torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mnist_dist.commands.benchmark import TASK, TRAINER
from mnist_dist.commands.benchmark_runner import Contestant, run
from mnist_dist.data.idx import read_pair, write_idx
from mnist_dist.data.prepare import ensure_files, resolve_root

ALONE = [*TRAINER, *TASK, "--tracking.mode=disabled", "--data.source=local"]
FACTORS = (1, 4, 16)
BATCHES = tuple(32 * 4**power for power in range(5))  # 32 to 8192
IMAGES = 60_000  # of each run, about
LEAST_STEPS, ROWS = 24, 8


def write_copies(folder: Path, factor: int) -> None:
    """MNIST with its training images `factor` times over, as raw IDX files."""
    folder.mkdir()
    files = ensure_files(resolve_root(""), "auto", lambda text: None)
    for part, times in (("train", factor), ("t10k", 1)):
        names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        for name, tensor in zip(names, read_pair(files[names[0]], files[names[1]]), strict=True):
            write_idx(folder / name, tensor.repeat(times, *[1] * (tensor.ndim - 1)))


def measure(data: Path, batch_size: int) -> tuple[float, float]:
    """Images per second, and mebibytes of memory at most."""
    steps = max(IMAGES // batch_size, LEAST_STEPS)
    every = max(steps // ROWS, 1)
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as folder:
        options = [f"--data.root={data}", f"--train.batch_size={batch_size}", f"--train.max_steps={steps}"]
        options += [f"--tracking.log_steps={every}", f"--run.dir={folder}/run"]
        run(Contestant(f"batch {batch_size}", []), [*ALONE, *options])
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    rows = [row for row in map(json.loads, lines) if "images_per_second" in row]
    rate = (rows[-1]["step"] - rows[0]["step"]) * batch_size / (rows[-1]["time"] - rows[0]["time"])
    return rate, summary["memory.peak_bytes"] / 2**20


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as name:
        folders = {factor: Path(name) / str(factor) for factor in FACTORS}
        for factor, folder in folders.items():
            write_copies(folder, factor)
        cases = [(factor, 256) for factor in FACTORS] + [(1, batch) for batch in BATCHES]
        found: dict[tuple[int, int], list[tuple[float, float]]] = {case: [] for case in cases}
        for _ in range(options.rounds):
            for factor, batch in found:
                found[factor, batch].append(measure(folders[factor], batch))
    table = Table(title=f"medians of {options.rounds} rounds", title_justify="left")
    for heading in ("training images", "batch", "images/s", "ms a step", "us an image", "memory, MiB"):
        table.add_column(heading, justify="right")
    for (factor, batch), values in found.items():
        rate, memory = (statistics.median(column) for column in zip(*values, strict=True))
        cells = (f"{rate:,.0f}", f"{1e3 * batch / rate:.1f}", f"{1e6 / rate:.1f}", f"{memory:,.0f}")
        table.add_row(f"{60_000 * factor:,}", str(batch), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
