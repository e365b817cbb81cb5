"""A cost model of data-parallel training: fitted to what was measured here, and asked about up to 4096 workers.

It measures nothing: it reads the files of allreduce.py and step_time.py, by default those in benchmarks/results/.
docs/scaling.md explains the model and has its results.

examples:
  python benchmarks/scaling_model.py                                          of the recorded measurements: seconds
  python benchmarks/scaling_model.py --allreduce allreduce.json --steps step_time.jsonl     of your own
  python benchmarks/scaling_model.py --json benchmarks/results/model.json     for scaling_plots.py
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import add_json, build_parser, run_script, write_json
from common.tables import print_table
from mnist_dist.utils.errors import EXIT_DONE, UserError

RESULTS = Path(__file__).parent / "results"
GRADIENT = 4 * 94_826  # bytes: the default model, fp32
WORKERS = [2**n for n in range(13)]  # 1 to 4096
BATCH = 256  # images: the global one in strong scaling, a worker's in weak scaling
PARSER = build_parser(__file__, __doc__)
PARSER.add_argument(
    "--allreduce", type=Path, metavar="FILE", default=RESULTS / "allreduce.json", help="of allreduce.py --json"
)
PARSER.add_argument(
    "--steps", type=Path, metavar="FILE", default=RESULTS / "step_time.jsonl", help="of step_time.py --json"
)
add_json(PARSER)


class Compute(NamedTuple):
    """Seconds of a step of one worker without any exchange: fixed + per_image * images."""

    fixed: float
    per_image: float


@dataclass(frozen=True)
class Network:
    """What an all-reduce costs, in Hockney's terms: seconds to send a message, and bytes a second."""

    base: float
    """Seconds of a call that do not depend on the workers."""
    alpha: float
    """Seconds of one message from machine to machine."""
    bandwidth: float
    """Bytes a second that a worker sends and adds up."""
    cores: float = math.inf
    """Workers that can run at the same time; more of them take turns."""
    tree: bool = False
    """Whether messages go along a tree over the machines (NCCL) or around the ring of them (gloo)."""
    per_machine: int = 1
    """Workers of one machine, a chain."""
    alpha_inside: float = 0.0
    """Seconds of one message inside a machine."""

    def oversubscription(self, workers: int) -> float:
        """Workers that share a core: the factor on everything that a core does."""
        return max(1.0, workers / self.cores)

    def allreduce(self, workers: int, size: int) -> float:
        """Seconds of one all-reduce of `size` bytes."""
        if workers == 1:
            return 0.0
        inside, machines = min(workers, self.per_machine), max(workers // self.per_machine, 1)
        hops = math.ceil(math.log2(machines)) if self.tree else machines - 1
        latency = 2 * ((inside - 1) * self.alpha_inside + hops * self.alpha)
        traffic = 2 * (workers - 1) / workers * size
        return self.base + self.oversubscription(workers) * (latency + traffic / self.bandwidth)


def least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients that minimise the sum of squared relative errors of rows @ coefficients against the values."""
    import torch

    target = torch.tensor(values, dtype=torch.float64)
    scaled = torch.tensor(rows, dtype=torch.float64) / target[:, None]
    size = scaled.norm(dim=0)  # columns of like size: seconds an image and seconds a byte are far apart
    return (torch.linalg.lstsq(scaled / size, torch.ones_like(target)).solution / size).tolist()


def fit_compute(points: Sequence[tuple[int, float]]) -> Compute:
    """The line through (images, seconds) of a worker that is alone."""
    return Compute(*least_squares([(1.0, images) for images, _ in points], [seconds for _, seconds in points]))


def fit_ring(points: Sequence[tuple[int, int, float]], cores: float) -> Network:
    """The ring through (workers, bytes, seconds) on a machine of that many cores; points of one worker say nothing."""
    unit = Network(base=0.0, alpha=1.0, bandwidth=math.inf, cores=cores)
    rows, values = [], []
    for workers, size, seconds in points:
        if workers > 1:
            traffic = unit.oversubscription(workers) * 2 * (workers - 1) / workers * size
            rows.append((1.0, unit.allreduce(workers, 0), traffic))
            values.append(seconds)
    base, alpha, per_byte = least_squares(rows, values)
    return Network(base, alpha, 1 / per_byte, cores)


def step_seconds(compute: Compute, network: Network, workers: int, batch: float, size: int = GRADIENT) -> float:
    """Seconds of a step of `workers` on a global batch of that many images; nothing overlaps."""
    alone = compute.fixed + compute.per_image * batch / workers
    return network.oversubscription(workers) * alone + network.allreduce(workers, size)


def strong_efficiency(compute: Compute, network: Network, workers: int, batch: float) -> float:
    """Speed-up over one worker, at the same global batch, as a share of `workers`."""
    return step_seconds(compute, network, 1, batch) / (workers * step_seconds(compute, network, workers, batch))


def weak_efficiency(compute: Compute, network: Network, workers: int, batch: float) -> float:
    """Images a second over `workers` times those of one worker, each worker having `batch` images."""
    return step_seconds(compute, network, 1, batch) / step_seconds(compute, network, workers, workers * batch)


WIRE = {"alpha": 20e-6, "bandwidth": 1.18e9}
"""10-gigabit Ethernet: 20 us between two programs (Hurwitz & Feng 2003), 10 Gb/s less the 6 % of frames and headers."""
INFINIBAND = Network(base=14e-6, alpha=8.5e-6, bandwidth=25e9, tree=True, per_machine=8, alpha_inside=1.25e-6)
"""NCCL's own constants for trees of the LL128 protocol (src/graph/tuning.cc); one 200 Gb/s link's bandwidth."""
GPU = Compute(fixed=0.4e-3, per_image=0.15e-6)
"""Assumed, not measured: 80 kernels of 5 us to launch; 7.2 MFLOP an image at 50 TFLOP/s."""


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The points of step_time.py's file: processes, batch, and the median of its runs' seconds."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    points = dict.fromkeys((run["processes"], run["batch"]) for run in runs)
    return [
        {"processes": n, "batch": batch, "seconds": statistics.median(own), "runs": len(own)}
        for n, batch in points
        for own in [[run["seconds"] for run in runs if (run["processes"], run["batch"]) == (n, batch)]]
    ]


def check(points: Sequence[dict[str, Any]], compute: Compute, network: Network) -> list[dict[str, Any]]:
    """Measured steps of several processes beside what the model says of them."""
    found = []
    for point in points:
        if point["processes"] > 1:
            predicted = step_seconds(compute, network, point["processes"], point["batch"])
            error = predicted / point["seconds"] - 1
            found.append({**point, "predicted": predicted, "error": error})
    return found


def main(arguments: Sequence[str]) -> int:
    """Fit the model and print what it says; the exit code.

    Raises:
        UserError: wrong arguments, or a file is not there.
    """
    options = PARSER.parse_args(arguments)
    for path in (options.allreduce, options.steps):
        if not path.is_file():
            raise UserError(f"{path}: no such file; allreduce.py and step_time.py write them with --json")
    measured, steps = json.loads(options.allreduce.read_text()), read_steps(options.steps)
    exchanges, cores = measured["points"], measured["machine"]["cores"]

    compute = fit_compute([(p["batch"], p["seconds"]) for p in steps if p["processes"] == 1])
    # gloo cuts a tensor into two segments a process; smaller ones give too few, and fewer messages than the ring's.
    points = [(p["processes"], p["bytes"], p["seconds"]) for p in exchanges if p["bytes"] >= 4 * 2 * p["processes"]]
    here = fit_ring(points, cores)
    checked = check(steps, compute, here)
    title = f"one worker {1e3 * compute.fixed:.2f} ms + {1e6 * compute.per_image:.1f} us an image; all-reduce "
    title += f"{1e6 * here.base:.0f} us + {1e6 * here.alpha:.0f} us a message, {here.bandwidth / 1e9:.2f} GB/s"
    cells = []
    for p in checked:
        times = [f"{1e3 * p[key]:.2f}" for key in ("seconds", "predicted")]
        cells.append([str(p["processes"]), str(p["batch"]), *times, f"{100 * p['error']:+.0f} %"])
    print_table(title, ("processes", "batch", "measured, ms", "predicted, ms", "error"), cells)

    own_core = Network(here.base, here.alpha, here.bandwidth)  # as here, but with a core for each worker
    # What gloo and the kernel do for a message here they do there too; the wire comes on top.
    ethernet = Network(here.base, here.alpha + WIRE["alpha"], min(here.bandwidth, WIRE["bandwidth"]))
    settings = {
        "gloo on loopback, a core each": (compute, own_core),
        "gloo, 10 GbE, a core each": (compute, ethernet),
        "NCCL, 8 GPUs a machine, InfiniBand": (GPU, INFINIBAND),
    }
    predictions: dict[str, Any] = {}
    for name, (worker, network) in settings.items():
        strong = [strong_efficiency(worker, network, n, BATCH) for n in WORKERS]
        weak = [weak_efficiency(worker, network, n, BATCH) for n in WORKERS]
        predictions[name] = {"strong": strong, "weak": weak}
    for kind in ("strong", "weak"):
        cells = [[str(n), *(f"{100 * p[kind][i]:.1f}" for p in predictions.values())] for i, n in enumerate(WORKERS)]
        print_table(f"{kind} scaling, batch {BATCH}: efficiency in %", ("workers", *predictions), cells)
    fitted = {"compute": compute._asdict(), "allreduce": asdict(here)}
    write_json(options.json, {"fitted": fitted, "check": checked, "workers": WORKERS, "predictions": predictions})
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
