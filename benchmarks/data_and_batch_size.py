"""Images per second and memory as the data set or the batch grows: rates should stay flat, memory grow by the data.

Whole processes of the trainer on the CPU, with the model of seeds/cnn and Adam. The larger sets are MNIST's training
images 4 and 16 times over. Memory is the largest that the process had resident, most of which is torch. Recorded
figures: docs/performance.md.

examples:
  python benchmarks/data_and_batch_size.py                                    3 rounds: about 4 minutes on two cores
  python benchmarks/data_and_batch_size.py --rounds 1 --images 5000 --only "batch 32"      a quick look: half a minute
  python benchmarks/data_and_batch_size.py --only "60,000 images"             the batch sizes alone
  python benchmarks/data_and_batch_size.py --json sizes.json                  the figures in a file, too
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from common.cli import add_count, add_json, add_only, build_parser, run_script, write_json
from common.comparison import REFERENCE_TASK
from common.processes import train
from common.rounds import choose, run_rounds
from common.tables import print_table
from mnist_dist.data.idx import read_pair, write_idx
from mnist_dist.data.prepare import ensure_files, resolve_root

TASK = [*REFERENCE_TASK, "--tracking.mode=disabled", "--data.source=local"]
MNIST_IMAGES = 60_000
FACTORS = (1, 4, 16)
BATCHES = tuple(32 * 4**power for power in range(5))  # 32 to 8192
MIN_STEPS, ROWS = 24, 8  # of a run: steps at least, and rows of metrics
CASES = {
    f"{MNIST_IMAGES * factor:,} images, batch {batch}": (factor, batch)
    for factor, batch in [*((factor, 256) for factor in FACTORS), *((1, batch) for batch in BATCHES)]
}
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "rounds", 3, "rounds, of which medians are taken")
add_count(PARSER, "images", MNIST_IMAGES, f"images that a run trains on, about; {MIN_STEPS} batches at least")
add_only(PARSER)
add_json(PARSER)


def write_copies(folder: Path, factor: int) -> None:
    """Write MNIST with its training images `factor` times over, as raw IDX files."""
    folder.mkdir()
    files = ensure_files(resolve_root(""), "auto", lambda text: None)
    for part, times in (("train", factor), ("t10k", 1)):
        names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        for name, tensor in zip(names, read_pair(files[names[0]], files[names[1]]), strict=True):
            write_idx(folder / name, tensor.repeat(times, *[1] * (tensor.ndim - 1)))


def measure(data: Path, batch_size: int, images: int, _: int) -> tuple[float, float]:
    """Images per second, and the largest resident memory in MiB."""
    steps = max(images // batch_size, MIN_STEPS)
    options = [f"--data.root={data}", f"--train.batch_size={batch_size}", f"--train.max_steps={steps}"]
    run = train([*TASK, *options, f"--tracking.log_steps={steps // ROWS}"])
    return run.steps_per_second * batch_size, run.summary["memory.peak_bytes"] / 2**20


def describe(name: str, values: Mapping[str, tuple[float, float]]) -> str:
    """What one run found."""
    rate, memory = values[name]
    return f"{rate:,.0f} images/s, {memory:,.0f} MiB"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)
    chosen = {name: CASES[name] for name in choose(list(CASES), options.only)}
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as temporary:
        folders = {factor: Path(temporary) / str(factor) for factor, _ in chosen.values()}
        for factor, folder in folders.items():
            write_copies(folder, factor)
        cases = {
            name: partial(measure, folders[factor], batch, options.images) for name, (factor, batch) in chosen.items()
        }
        results = run_rounds(cases, options.rounds, describe)
    found, rows = [], []
    for name in results.measured():
        factor, batch = CASES[name]
        rate, memory = (statistics.median(column) for column in zip(*results.of(name), strict=True))
        found.append({"images": MNIST_IMAGES * factor, "batch": batch, "images_per_second": rate, "memory_mib": memory})
        cells = [f"{rate:,.0f}", f"{1e3 * batch / rate:.1f}", f"{1e6 / rate:.1f}", f"{memory:,.0f}"]
        rows.append([f"{MNIST_IMAGES * factor:,}", str(batch), *cells])
    headings = ("training images", "batch", "images/s", "ms a step", "us an image", "memory, MiB")
    print_table(f"medians of {results.title()}", headings, rows)
    write_json(options.json, found)
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)
