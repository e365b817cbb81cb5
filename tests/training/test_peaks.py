"""Peak FLOP/s of a device and peak memory of a process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from mnist_dist.distributed import device
from mnist_dist.distributed.device import peak_memory
from mnist_dist.training import profiler
from mnist_dist.training.profiler import measure_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_peak_flops_changes_neither_threads_nor_the_generator(dtype: torch.dtype) -> None:
    threads, rng_state = torch.get_num_threads(), torch.get_rng_state()
    assert 1e8 < measure_peak(CPU, dtype, threads + 1) < 1e16
    assert torch.get_num_threads() == threads
    assert rng_state.equal(torch.get_rng_state())


@pytest.mark.parametrize(("seconds", "expected"), [([0.2, 0.03, 0.04, 0.1], 0.03), ([3.0], 3.0)])
def test_peak_flops_are_those_of_the_fastest_product_of_each_thread(
    seconds: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine there is time for one product only."""
    remaining: dict[int, Iterator[float]] = {}  # by thread
    barrier = threading.Barrier(3, timeout=30)

    def fake_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
        assert (left.dtype, left.shape, right.shape) == (torch.bfloat16, out.shape, out.shape)
        assert torch.get_num_threads() == 1
        barrier.wait()
        return next(remaining.setdefault(threading.get_ident(), iter(seconds)))

    monkeypatch.setattr(profiler, "time_product", fake_product)
    before = torch.get_num_threads()
    assert measure_peak(CPU, torch.bfloat16, 3) == pytest.approx(3 * 2 * profiler.PEAK_SIZES["cpu"] ** 3 / expected)
    assert [list(each) for each in remaining.values()] == [[], [], []]
    assert torch.get_num_threads() == before


def test_peak_memory_is_in_bytes_and_not_below_current_memory() -> None:
    held = torch.ones(1 << 24)
    peak, now = peak_memory(CPU), psutil.Process().memory_info().rss
    assert now * 0.95 <= peak < psutil.virtual_memory().total
    del held
    assert peak_memory(CPU) >= peak * 0.95  # the kernel updates the counter in batches


def test_peak_memory_without_a_line_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in gVisor, and outside of Linux."""
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t12 kB\n")
    for path in (tmp_path / "status", tmp_path / "none"):
        monkeypatch.setattr(device, "PROC_STATUS", path)
        assert 1 << 20 < peak_memory(CPU) < psutil.virtual_memory().total


def test_peak_memory_excludes_that_of_the_parent_process() -> None:
    """On Linux, the peak of getrusage starts with that of the parent, which was forked."""
    held = bytearray(1 << 30)
    held[:: 1 << 12] = b"x" * len(range(0, 1 << 30, 1 << 12))  # resident
    program = (
        "import torch; from mnist_dist.distributed.device import peak_memory; print(peak_memory(torch.device('cpu')))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 1 << 30
