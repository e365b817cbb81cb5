"""Histograms of tensors: every finite value is counted in one bin, as by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mnist_dist.training.visualizer import BINS, histograms

NAN, INF = math.nan, math.inf
NORMAL = torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Tensor, int]] = {
    "normal": (NORMAL, NORMAL.numel()),
    "channels last": (NORMAL.to(memory_format=torch.channels_last), NORMAL.numel()),
    "bfloat16": (NORMAL.bfloat16(), NORMAL.numel()),
    "tiny float64": (NORMAL.double() * 1e-300, NORMAL.numel()),
    "one value": (torch.tensor(0.5), 1),
    "zeros": (torch.zeros(10), 10),
    "equal and huge": (torch.full((7,), -3e38), 7),
    "zero and the smallest": (torch.tensor([1e-45, 0.0]), 2),
    "neighbouring floats": (torch.tensor([1.0, 1.0 + 2**-23]), 2),
    "largest range": (torch.tensor([-3e38, 3e38, 0.0]), 3),
    "some not finite": (torch.tensor([NAN, 1.0, INF, 2.0, -INF]), 2),
    "none finite": (torch.tensor([NAN, INF, -INF]), 0),
}
"""Tensors, and how many of their values are finite."""


@pytest.mark.parametrize("case", CASES)
def test_each_finite_value_is_counted_once_and_edges_rise(case: str) -> None:
    tensor, finite = CASES[case]
    (found,) = histograms([tensor])
    assert sum(found.counts) == finite
    assert (len(found.counts), len(found.edges)) == (BINS, BINS + 1)
    assert all(type(count) is int and count >= 0 for count in found.counts)
    assert all(math.isfinite(edge) for edge in found.edges)
    assert all(low < high for low, high in zip(found.edges, found.edges[1:], strict=False))
    values = tensor[tensor.isfinite()].double()
    assert found.edges[0] <= values.min().item() <= values.max().item() <= found.edges[-1] if finite else True


def test_counts_are_those_of_numpy() -> None:
    several = [NORMAL, NORMAL.abs(), NORMAL * 1e-20, NORMAL.flatten()[:5]]
    for tensor, found in zip(several, histograms(several), strict=True):
        counts, edges = np.histogram(tensor.double().numpy(), BINS)
        assert found.counts == tuple(counts)
        assert found.edges == pytest.approx(tuple(edges))
    assert histograms([]) == []


def test_equal_values_are_in_the_middle_bin() -> None:
    (found,) = histograms([torch.full((9,), 2.0)])
    assert found.counts[BINS // 2] == 9
    assert (found.edges[0], found.edges[-1]) == (1.0, 3.0)
