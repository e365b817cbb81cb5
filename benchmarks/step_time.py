"""Seconds of a training step by batch and number of processes: what scaling_model.py is fitted to and checked on.

The default recipe on the CPU, processes of one thread, gradients averaged by DistributedDataParallel
(`--train.shards=0`). Whole runs of the trainer, rounds interleaved; a step's time is the median over a run's rows,
evaluations left out. A run during which other programs took more than 5 % of the machine is repeated. With --json each
run adds a line to the file when it ends, so the benchmark may be interrupted and go on later. Recorded figures:
docs/scaling.md, benchmarks/results/step_time.jsonl.

examples:
  python benchmarks/step_time.py                                               5 rounds: about 10 minutes, if idle
  python benchmarks/step_time.py --rounds 1 --max_load 1 --only "1 process"    a quick look: about a minute
  python benchmarks/step_time.py --json step_time.jsonl                        for scaling_model.py --steps
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from common.cli import add_count, add_only, build_parser, run_script
from common.idle import add_max_load, measure_when_idle
from common.processes import train
from common.rounds import choose, run_rounds
from common.tables import print_table

ALONE = [(1, batch) for batch in (32, 64, 128, 256, 512, 1024)]
STRONG = [(2, 256), (4, 256), (8, 256)]  # the same global batch on more processes
WEAK = [(2, 512), (4, 1024)]  # 256 images a process
CASES = {
    f"{processes} process{'es' * (processes > 1)}, global batch {batch}": (processes, batch)
    for processes, batch in [*ALONE, *STRONG, *WEAK]
}
IMAGES = 15_000  # of one run, where that is 50 to 200 steps
WARM_UP = 2  # rows of 5 steps
OPTIONS = [
    *("--run.device=cpu", "--run.threads=1", "--tracking.mode=disabled", "--tracking.log_steps=5"),
    *("--data.val_size=0", "--train.precision=no", "--train.shards=0", "--train.epochs=100"),
]
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "rounds", 5, "rounds, of which medians are taken")
add_only(PARSER)
add_max_load(PARSER)
PARSER.add_argument("--json", type=Path, metavar="FILE", help="add a JSON line to FILE for each run")


def step_seconds(processes: int, batch: int) -> float:
    """Seconds of a step of one run: the median over its rows."""
    steps = max(50, min(200, IMAGES // batch))
    options = [*OPTIONS, f"--train.batch_size={batch}", f"--train.max_steps={steps}"]
    run = train(options, processes=processes, environment={"OMP_NUM_THREADS": "1"})
    return batch / statistics.median(row["images_per_second"] for row in run.rows[WARM_UP:])


def measure(processes: int, batch: int, max_load: float, file: Path | None, _: int) -> float:
    """Seconds of a step on an idle machine; also added to the file."""
    seconds = measure_when_idle(partial(step_seconds, processes, batch), max_load)
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"processes": processes, "batch": batch, "seconds": seconds}) + "\n")
    return seconds


def describe(name: str, values: Mapping[str, float]) -> str:
    """What one run found."""
    return f"{1e3 * values[name]:.2f} ms a step"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)
    chosen = {name: CASES[name] for name in choose(list(CASES), options.only)}
    cases = {
        name: partial(measure, processes, batch, options.max_load, options.json)
        for name, (processes, batch) in chosen.items()
    }
    results = run_rounds(cases, options.rounds, describe)
    rows = []
    for name in results.measured():
        processes, batch = CASES[name]
        times = [1e3 * seconds for seconds in results.of(name)]
        spread = f"{min(times):.2f} to {max(times):.2f}"
        rows.append([str(processes), str(batch), f"{statistics.median(times):.2f}", spread])
    print_table(f"medians of {results.title()}", ("processes", "global batch", "ms a step", "range"), rows)
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)
