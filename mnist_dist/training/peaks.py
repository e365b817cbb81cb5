"""What this process can do at most and needs at most: the fastest matrix product, the largest memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from mnist_dist.distributed.thread_pool import Lanes

SECONDS = 0.3  # of products, the fastest of which counts: other processes may be at work meanwhile
STATUS = Path("/proc/self/status")
SIZES = {"cuda": 8192, "cpu": 512}  # of a square matrix: large enough to keep the device, or one core, busy


def measure_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """The rate of large products of two matrices, in FLOP/s, a multiply-add counting two. Takes less than a second.

    Args:
        dtype: of the matrices.
        threads: of the CPU, each of which computes products of its own at the same time; elsewhere ignored.
    """
    size = SIZES.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # the run's own is left alone
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
        with Lanes(count) as lanes:
            return sum(lanes.each(measure, range(count)))
    finally:
        torch.set_num_threads(before)


def time_product(left: Tensor, right: Tensor, out: Tensor) -> float:
    """Seconds that a product takes."""
    wait_for(left.device)
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    wait_for(left.device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most memory, in bytes, that this process has had: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():  # Linux's getrusage would count what the process was forked from, too
        return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
