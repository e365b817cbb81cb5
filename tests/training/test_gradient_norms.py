"""Norms of gradients: their mean and maximum, through stops and values that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from mnist_dist.checkpoint.state import NormSums
from mnist_dist.training.metrics import GradientNorms


def collected(*norms: float, after: NormSums | None = None) -> GradientNorms:
    found = GradientNorms()
    found.restore(after or NormSums())
    for norm in norms:
        found.add(torch.tensor(norm))
    return found


def test_mean_and_maximum_of_a_window() -> None:
    norms = collected(0.5, 2.0, 1.25)
    assert norms.row() == {"gradient.norm": 1.25, "gradient.norm_max": 2.0}
    norms.clear()
    norms.add(torch.tensor(0.25))
    assert norms.row() == {"gradient.norm": 0.25, "gradient.norm_max": 0.25}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_that_is_not_finite_is_seen_in_its_row_and_in_no_other(bad: float) -> None:
    norms = collected(0.5, bad, 2.0)
    assert all(math.isnan(value) for value in norms.row().values())
    assert norms.collect() == NormSums(count=3, nonfinite=1, total=2.5, most=2.0)
    norms.clear()
    norms.add(torch.tensor(1.0))
    assert norms.row()["gradient.norm"] == 1.0


def test_without_an_update_there_is_no_norm() -> None:
    assert all(math.isnan(value) for value in GradientNorms().row().values())


def test_a_sum_that_went_on_is_the_one_that_was_not_stopped() -> None:
    """To the last bit: these do not add up alike in another order."""
    values = torch.rand(50, dtype=torch.double, generator=torch.Generator().manual_seed(0)).tolist()
    whole = GradientNorms()
    for value in values:
        whole.add(torch.tensor(value, dtype=torch.double))
    rows = {whole.row()["gradient.norm"]}
    for stop in range(51):
        rest = GradientNorms()
        for part in (values[:stop], values[stop:]):
            rest.restore(rest.collect())
            for value in part:
                rest.add(torch.tensor(value, dtype=torch.double))
        rows.add(rest.row()["gradient.norm"])
    assert len(rows) == 1
