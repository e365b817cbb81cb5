"""Seconds of a training step by batch and number of processes: what `scaling_model.py` is fitted to and checked on.

    python benchmarks/steps.py >> steps.jsonl         a JSON line a run, at once: it may be stopped, and go on later

The default recipe on processes of one thread, gradients averaged by DistributedDataParallel (`--train.shards=0`). Whole
runs of the trainer, rounds interleaved; a step's time is the median over a run's rows, evaluations left out. A
run during which other programs took more than 5 % of the machine is repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from quiet import when_quiet

ALONE = [(1, batch) for batch in (32, 64, 128, 256, 512, 1024)]
STRONG = [(2, 256), (4, 256), (8, 256)]  # the same global batch on more processes
WEAK = [(2, 512), (4, 1024)]  # 256 images a process
POINTS = [*ALONE, *STRONG, *WEAK]  # processes, global batch
IMAGES = 15_000  # of one run, where that is 50 to 200 steps
OPTIONS = [
    *("--run.device=cpu", "--run.threads=1", "--run.quiet=true", "--tracking.mode=disabled", "--tracking.log_steps=5"),
    *("--data.val_size=0", "--train.precision=no", "--train.shards=0", "--train.epochs=100"),
]


def step_seconds(processes: int, batch: int) -> float:
    """Seconds of a step of one run."""
    steps = max(50, min(200, IMAGES // batch))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as folder:
        options = [*OPTIONS, f"--train.batch_size={batch}", f"--train.max_steps={steps}", f"--run.dir={folder}/run"]
        command = [sys.executable, *launcher, "-m", "mnist_dist.train", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return batch / statistics.median(rates[2:])  # the first steps warm up


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    for _ in range(parser.parse_args().rounds):
        for processes, batch in POINTS:
            seconds = when_quiet(partial(step_seconds, processes, batch))
            print(json.dumps({"processes": processes, "batch": batch, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
