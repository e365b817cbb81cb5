"""What this process can do at most and needs at most: the fastest matrix product, the largest memory."""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import Tensor

ROUNDS, SECONDS = 20, 0.02  # the best of so many, each about so long: another process may be at work meanwhile
SIZES = {"cuda": 8192}  # of a square matrix: large enough for the device to be busy
SIZE = 1024


def measure_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """The rate of a large product of two matrices, in FLOP/s, a multiply-add counting two. Takes less than a second.

    Args:
        dtype: of the matrices.
        threads: of the CPU that compute one product; elsewhere ignored.
    """
    size = SIZES.get(device.type, SIZE)
    generator = torch.Generator(device).manual_seed(0)  # the run's own is left alone
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        time_products(left, right, out, 1)  # kernels are chosen
        seconds = time_products(left, right, out, 1)
        for _ in range(ROUNDS if seconds < SECONDS else 0):
            products = max(round(SECONDS / seconds), 1)
            seconds = min(seconds, time_products(left, right, out, products) / products)
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 / seconds


def time_products(left: Tensor, right: Tensor, out: Tensor, count: int) -> float:
    """Seconds that so many products take."""
    start = time.perf_counter()
    for _ in range(count):
        torch.mm(left, right, out=out)
    if left.device.type != "cpu":
        torch.accelerator.synchronize(left.device)
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> int:
    """The most memory, in bytes, that this process has had: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
