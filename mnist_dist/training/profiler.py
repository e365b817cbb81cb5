"""train.profile: a trace of some steps by torch's profiler, a table of their operators, and peak FLOP/s for the MFU."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from mnist_dist.distributed.mixed_precision import AUTOCAST_DTYPES
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.thread_pool import ThreadPool
from mnist_dist.training.metric_logger import MetricLogger
from mnist_dist.utils.files import atomic_write

WARM_UP_STEPS = 10  # steps before the trace, in which kernels are chosen and memory is allocated
TABLE_ROWS = 40  # operators in operators.txt

PEAK_SECONDS = 0.3  # how long products are measured. The fastest counts, since other processes may run meanwhile
PEAK_SIZES = {"cuda": 8192, "cpu": 512}  # rows of the square matrices: large enough to keep a GPU, or one core, busy


class StepProfiler:
    """Traces some consecutive steps of this rank and writes the trace. Training time excludes starting and writing it.

    The trace starts after ten steps, or after half of the steps if fewer than twenty are left. It ends early at an
    evaluation, a stop or the end of the run.

    Args:
        steps: number of steps to trace; 0 traces none.
        steps_left: number of steps until the end of the run.
        profile_dir: directory of the trace. It is created, unless the run directory does not exist on this machine:
            then nothing is written.
        metric_logger: its timer, console, peak FLOP/s and training state are used.
    """

    def __init__(self, steps: int, steps_left: int, profile_dir: Path, metric_logger: MetricLogger) -> None:
        self.steps_to_trace, self.profile_dir, self.metric_logger = steps, profile_dir, metric_logger
        self.runtime, self.timer = metric_logger.state.runtime, metric_logger.timer
        self.steps_to_skip = min(WARM_UP_STEPS, steps_left // 2)
        self.steps = self.images = 0  # traced so far
        self.start_seconds = 0.0
        self.trace: profile | None = None
        self.span = record_function("step")

    def before_step(self, images: int) -> None:
        """Call it before each step.

        Args:
            images: number of images of the step's global batch.
        """
        if self.steps == self.steps_to_trace:
            self.finish()
        elif self.steps_to_skip:
            self.steps_to_skip -= 1
        else:
            self.start() if self.trace is None else self.span.__exit__(None, None, None)
            self.span = record_function("step")
            self.span.__enter__()
            self.steps += 1
            self.images += images

    def start(self) -> None:
        """Start the trace."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's library writes to standard error
        synchronize(self.runtime.device)
        with self.timer.paused():
            # Fixed shards run on threads of their own.
            all_threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
            gpu = [ProfilerActivity.CUDA] if self.runtime.device.type == "cuda" else []
            self.trace = profile(activities=[ProfilerActivity.CPU, *gpu], experimental_config=all_threads)
            self.trace.start()
        self.start_seconds = self.timer.seconds

    def finish(self) -> None:
        """End the trace and write it; does nothing if no trace is running."""
        trace, self.trace = self.trace, None
        if trace is None:
            return
        self.span.__exit__(None, None, None)
        self.steps_to_trace = self.steps  # no second trace
        synchronize(self.runtime.device)
        seconds = self.timer.seconds - self.start_seconds
        with self.timer.paused():
            try:
                trace.stop()
                if self.profile_dir.parent.is_dir():
                    self.write(trace, seconds)
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
                self.metric_logger.console.warn(
                    f"{self.profile_dir}: cannot be written ({reason}); training goes on without it"
                )

    def write(self, trace: profile, seconds: float) -> None:
        """Write this rank's trace and, on the main process, the table of operators."""
        self.profile_dir.mkdir(exist_ok=True)
        with atomic_write(self.profile_dir / f"rank{self.runtime.rank}.json") as path:
            export(trace, path)
        if self.runtime.is_main:
            by = "self_device_time_total" if self.runtime.device.type == "cuda" else "self_cpu_time_total"
            table = trace.key_averages().table(sort_by=by, row_limit=TABLE_ROWS, max_name_column_width=60)
            with atomic_write(self.profile_dir / "operators.txt") as path:
                path.write_text(f"{self.describe(seconds)}\n{table}", encoding="utf-8")
            where = f"{self.profile_dir}/operators.txt, and rank<k>.json for https://ui.perfetto.dev"
            self.metric_logger.console.print(f"profile of {self.steps} step{'s' * (self.steps > 1)}: {where}")

    def describe(self, seconds: float) -> str:
        """Speed of the traced steps, FLOP/s and MFU: the lines above the table."""
        metric_logger, runtime, step = self.metric_logger, self.runtime, self.metric_logger.state.progress.step
        achieved = metric_logger.state.flops_per_image * self.images / seconds
        return "\n".join(
            [
                f"steps:     {self.steps}, up to step {step}, traced on rank 0 of {runtime.world_size}",
                f"device:    {runtime.device_name}, {runtime.threads} threads each, {runtime.precision}",
                f"step:      {1000 * seconds / self.steps:.3f} ms, with the profiler's overhead",
                f"achieved:  {achieved / 1e9:.2f} GFLOP/s by all processes, forward and backward",
                f"peak:      {metric_logger.peak_flops / 1e9:.2f} GFLOP/s by all processes at once, in matrix products",
                f"MFU:       {100 * achieved / metric_logger.peak_flops:.2f} %",
            ]
        )


def export(trace: profile, path: Path) -> None:
    """Write a trace in Chrome's trace format.

    Raises:
        OSError: it cannot be written. torch's `export_chrome_trace` fails silently on a full disk.
    """
    try:
        trace.export_chrome_trace(str(path))
    finally:
        path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)  # torch leaves it behind if the disk is full
    if not (path.is_file() and ends_as_json(path)):
        raise OSError("the profiler failed; the disk may be full")


def ends_as_json(path: Path) -> bool:
    """Whether a file ends like a JSON object."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 8, 0))
        return file.read().rstrip().endswith(b"}")


def measure_peak_flops(runtime: Runtime) -> float:
    """Peak FLOP/s of all ranks together, in matrix products of the run's precision. Every rank must call it."""
    runtime.all_gather_object(None)  # a barrier: ranks of one machine compete for it, as in training
    dtype = AUTOCAST_DTYPES.get(runtime.precision, torch.float32)
    return sum(runtime.all_gather_object(measure_peak(runtime.device, dtype, runtime.threads)))


def measure_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Peak FLOP/s of a device in large matrix products; a multiply-add counts as two. Takes less than a second.

    Args:
        dtype: dtype of the matrices.
        threads: on a CPU, the number of threads that each compute products of their own at the same time.
    """
    size = PEAK_SIZES.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # leaves torch's global generator alone
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))

    def measure(_: int) -> float:
        out, seconds = torch.empty_like(left), [math.inf]
        while sum(seconds[1:]) < PEAK_SECONDS:
            seconds.append(time_product(left, right, out))
        return 2 * size**3 / min(seconds)

    count = threads if device.type == "cpu" else 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPool(count) as thread_pool:
            return sum(thread_pool.map(measure, range(count)))
    finally:
        torch.set_num_threads(before)


def time_product(left: Tensor, right: Tensor, out: Tensor) -> float:
    """Seconds that one matrix product takes."""
    synchronize(left.device)
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    synchronize(left.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
