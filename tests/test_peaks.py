"""What a machine can do at most, and what a process needed."""

from __future__ import annotations

import psutil
import pytest
import torch

from mnist_dist import peaks
from mnist_dist.peaks import measure_peak, peak_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_and_nothing_is_changed(dtype: torch.dtype) -> None:
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    assert 1e8 < measure_peak(CPU, dtype, threads + 1) < 1e16
    assert torch.get_num_threads() == threads
    assert drawn.equal(torch.get_rng_state())


@pytest.mark.parametrize("seconds", [0.001, 3.0])
def test_the_peak_is_that_of_the_fastest_round(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine on which one product takes longer than a round is to."""
    rounds: list[int] = []

    def pretend(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, count: int) -> float:
        assert (left.dtype, left.shape, torch.get_num_threads()) == (torch.bfloat16, out.shape, 3)
        rounds.append(count)
        return seconds * count * (0.5 if len(rounds) == 4 else 1)

    monkeypatch.setattr(peaks, "time_products", pretend)
    before = torch.get_num_threads()
    found = measure_peak(CPU, torch.bfloat16, 3)
    assert found == pytest.approx(2 * peaks.SIZE**3 / (0.0005 if seconds < 1 else 3))
    assert sum(rounds) * seconds < 10
    assert torch.get_num_threads() == before


def test_memory_is_in_bytes_and_never_less_than_now() -> None:
    held = torch.ones(1 << 24)
    peak, now = peak_memory(CPU), psutil.Process().memory_info().rss
    assert now * 0.95 <= peak < psutil.virtual_memory().total
    del held
    assert peak_memory(CPU) >= peak
