"""What a machine can do at most, and what a process needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest
import torch

from mnist_dist.distributed.device import peak_memory
from mnist_dist.training import profiler
from mnist_dist.training.profiler import measure_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_and_nothing_is_changed(dtype: torch.dtype) -> None:
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    assert 1e8 < measure_peak(CPU, dtype, threads + 1) < 1e16
    assert torch.get_num_threads() == threads
    assert drawn.equal(torch.get_rng_state())


@pytest.mark.parametrize(("seconds", "expected"), [([0.2, 0.03, 0.04, 0.1], 0.03), ([3.0], 3.0)])
def test_the_peak_is_that_of_the_fastest_product_of_each_thread(
    seconds: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among as many as there is time for: on a slow machine one."""
    left_over: dict[int, Iterator[float]] = {}
    together = threading.Barrier(3, timeout=30)

    def pretend(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
        assert (left.dtype, left.shape, right.shape) == (torch.bfloat16, out.shape, out.shape)
        assert torch.get_num_threads() == 1
        together.wait()
        return next(left_over.setdefault(threading.get_ident(), iter(seconds)))

    monkeypatch.setattr(profiler, "time_product", pretend)
    before = torch.get_num_threads()
    assert measure_peak(CPU, torch.bfloat16, 3) == pytest.approx(3 * 2 * profiler.PEAK_SIZES["cpu"] ** 3 / expected)
    assert [list(each) for each in left_over.values()] == [[], [], []]
    assert torch.get_num_threads() == before


def test_memory_is_in_bytes_and_never_less_than_now() -> None:
    held = torch.ones(1 << 24)
    peak, now = peak_memory(CPU), psutil.Process().memory_info().rss
    assert now * 0.95 <= peak < psutil.virtual_memory().total
    del held
    assert peak_memory(CPU) >= peak * 0.95  # the kernel counts in batches


def test_the_memory_of_the_process_that_started_it_is_not_counted() -> None:
    """getrusage's peak, on Linux, starts with that of the process which was forked."""
    held = bytearray(1 << 30)
    held[:: 1 << 12] = b"x" * len(range(0, 1 << 30, 1 << 12))  # resident
    program = (
        "import torch; from mnist_dist.distributed.device import peak_memory; print(peak_memory(torch.device('cpu')))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 1 << 30
