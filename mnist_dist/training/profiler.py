"""train.profile: a trace of some steps by torch's profiler, a table of their operators, and peak FLOP/s for the MFU."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.thread_pool import ThreadPool
from mnist_dist.training.metric_logger import MetricLogger
from mnist_dist.utils.files import atomic_write

WARM_UP_STEPS = 10  # not traced: they choose kernels and allocate memory
OPERATORS = 40  # rows of the table
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SECONDS = 0.3  # of matrix products. The fastest one counts: other processes may run meanwhile
SIZES = {"cuda": 8192, "cpu": 512}  # of a square matrix that keeps the device, or one core, busy


def measure_peak_flops(runtime: Runtime) -> float:
    """The rate of matrix products, in FLOP/s, of all ranks at once. Every rank must call it."""
    runtime.all_gather_object(None)  # a barrier: ranks of one machine share it, as in training
    dtype = DTYPES.get(runtime.precision, torch.float32)
    return sum(runtime.all_gather_object(measure_peak(runtime.device, dtype, runtime.threads)))


class StepProfiler:
    """Traces some consecutive steps of this rank, and writes the trace. It is excluded from training time.

    It begins after the first ten steps of this start (after half of the steps, if there are fewer than twenty). It ends
    early at an evaluation, a stop or the run's end, which would drown the steps.

    Args:
        steps: how many to trace; 0: none.
        steps_left: steps that the run has before it.
        profile_dir: where to write to. A rank on a machine without its parent folder writes nothing.
        metric_logger: has the timer, the console and the FLOPs of a step.
    """

    def __init__(self, steps: int, steps_left: int, profile_dir: Path, metric_logger: MetricLogger) -> None:
        self.wanted, self.profile_dir, self.metric_logger = steps, profile_dir, metric_logger
        self.runtime, self.timer = metric_logger.state.runtime, metric_logger.timer
        self.to_skip = min(WARM_UP_STEPS, steps_left // 2)
        self.steps = self.images = 0  # traced
        self.start_seconds = 0.0
        self.trace: profile | None = None
        self.span = record_function("step")

    def before_step(self, images: int) -> None:
        """Call it before each step, with the images of its global batch."""
        if self.steps == self.wanted:
            self.finish()
        elif self.to_skip:
            self.to_skip -= 1
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
            every_thread = torch._C._profiler._ExperimentalConfig(
                profile_all_threads=True
            )  # fixed shards run on threads
            gpu = [ProfilerActivity.CUDA] if self.runtime.device.type == "cuda" else []
            self.trace = profile(activities=[ProfilerActivity.CPU, *gpu], experimental_config=every_thread)
            self.trace.start()
        self.start_seconds = self.timer.seconds

    def finish(self) -> None:
        """End the trace in progress, if any, and write it."""
        trace, self.trace = self.trace, None
        if trace is None:
            return
        self.span.__exit__(None, None, None)
        self.wanted = self.steps  # trace only once
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
            table = trace.key_averages().table(sort_by=by, row_limit=OPERATORS, max_name_column_width=60)
            with atomic_write(self.profile_dir / "operators.txt") as path:
                path.write_text(f"{self.describe(seconds)}\n{table}", encoding="utf-8")
            where = f"{self.profile_dir}/operators.txt, and rank<k>.json for https://ui.perfetto.dev"
            self.metric_logger.console.print(f"profile of {self.steps} step{'s' * (self.steps > 1)}: {where}")

    def describe(self, seconds: float) -> str:
        """The speed of the traced steps, above the table."""
        metric_logger, runtime, step = self.metric_logger, self.runtime, self.metric_logger.state.progress.step
        achieved = metric_logger.state.flops_per_image * self.images / seconds
        return "\n".join(
            [
                f"steps:     {self.steps}, up to step {step}, seen by one process of {runtime.world_size}",
                f"on:        {runtime.device_name}, {runtime.threads} threads each, {runtime.precision}",
                f"step:      {1000 * seconds / self.steps:.3f} ms, being traced, which takes time",
                f"achieved:  {achieved / 1e9:.2f} GFLOP/s by all processes, forward and backward",
                f"peak:      {metric_logger.peak_flops / 1e9:.2f} GFLOP/s by all processes at once, in matrix products",
                f"MFU:       {100 * achieved / metric_logger.peak_flops:.2f} %",
            ]
        )


def export(trace: profile, path: Path) -> None:
    """Write a trace for Chrome's viewers.

    Raises:
        OSError: it could not be written. The profiler's library does not say so.
    """
    try:
        trace.export_chrome_trace(str(path))
    finally:
        path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)  # left behind if the disk is full
    if not (path.is_file() and ends_as_json(path)):
        raise OSError("the profiler failed to; the disk may be full")


def ends_as_json(path: Path) -> bool:
    """Whether a file ends like a JSON object."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 8, 0))
        return file.read().rstrip().endswith(b"}")


def measure_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """The rate of large matrix products, in FLOP/s; a multiply-add counts as two. Takes less than a second.

    Args:
        dtype: of the matrices.
        threads: CPU threads, each of which computes products of its own at the same time. Ignored on other devices.
    """
    size = SIZES.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # leaves the run's random state alone
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))

    def measure(_: int) -> float:
        out, seconds = torch.empty_like(left), [math.inf]
        while sum(seconds[1:]) < SECONDS:
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
    """Seconds of one matrix product."""
    synchronize(left.device)
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    synchronize(left.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
