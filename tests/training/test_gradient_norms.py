"""GradientNorms: mean and maximum, also with norms that are not finite and after a resume."""

from __future__ import annotations

import math

import pytest
import torch

from mnist_dist.checkpoint.state import NormSums
from mnist_dist.training.metrics import GradientNorms


def gradient_norms(*norms: float) -> GradientNorms:
    """GradientNorms of these updates."""
    found = GradientNorms()
    for norm in norms:
        found.add(torch.tensor(norm))
    return found


def test_mean_and_maximum_since_the_last_clear() -> None:
    norms = gradient_norms(0.5, 2.0, 1.25)
    assert norms.row() == {"gradient.norm": 1.25, "gradient.norm_max": 2.0}
    norms.clear()
    norms.add(torch.tensor(0.25))
    assert norms.row() == {"gradient.norm": 0.25, "gradient.norm_max": 0.25}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_makes_its_row_nan_and_no_later_one(bad: float) -> None:
    norms = gradient_norms(0.5, bad, 2.0)
    assert all(math.isnan(value) for value in norms.row().values())
    assert norms.collect() == NormSums(count=3, nonfinite=1, total=2.5, most=2.0)
    norms.clear()
    norms.add(torch.tensor(1.0))
    assert norms.row()["gradient.norm"] == 1.0


def test_without_updates_the_row_is_nan() -> None:
    assert all(math.isnan(value) for value in GradientNorms().row().values())


def test_a_restored_sum_has_the_same_bits_as_an_uninterrupted_one() -> None:
    """The sum of these values has other bits in another order."""
    values = torch.rand(50, dtype=torch.double, generator=torch.Generator().manual_seed(0)).tolist()
    uninterrupted = GradientNorms()
    for value in values:
        uninterrupted.add(torch.tensor(value, dtype=torch.double))
    means = {uninterrupted.row()["gradient.norm"]}
    for stop in range(51):
        resumed = GradientNorms()
        for updates in (values[:stop], values[stop:]):
            resumed.restore(resumed.collect())
            for value in updates:
                resumed.add(torch.tensor(value, dtype=torch.double))
        means.add(resumed.row()["gradient.norm"])
    assert len(means) == 1
