"""Student's t distribution, against published tables, closed forms and, where it is installed, scipy."""

from __future__ import annotations

import math

import pytest

from mnist_dist.utils.student_t import critical_value, incomplete_beta, mean_interval, p_mean_meets, upper_tail


@pytest.mark.parametrize(
    ("freedom", "tail", "value"),
    [
        (1, 0.025, 12.706204736),
        (2, 0.025, 4.302652730),
        (4, 0.05, 2.131846786),
        (9, 0.025, 2.262157163),
        (29, 0.01, 2.462021360),
        (29, 0.025, 2.045229642),
        (1000, 0.025, 1.962339081),
    ],
)
def test_critical_values_are_those_of_the_tables(freedom: int, tail: float, value: float) -> None:
    assert critical_value(tail, freedom) == pytest.approx(value, rel=1e-9)
    assert upper_tail(value, freedom) == pytest.approx(tail, rel=1e-8)
    assert upper_tail(-value, freedom) == pytest.approx(1 - tail, rel=1e-8)


@pytest.mark.parametrize("t", [-40.0, -2.5, -0.1, 0.0, 0.3, 1.0, 7.0, 300.0])
def test_one_and_two_degrees_of_freedom_have_closed_forms(t: float) -> None:
    assert upper_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-11)  # Cauchy's distribution
    assert upper_tail(t, 2) == pytest.approx(1 / (2 + t * t + t * math.sqrt(2 + t * t)), rel=1e-9)


def test_the_incomplete_beta_function_has_its_known_values() -> None:
    assert (incomplete_beta(2, 3, 0), incomplete_beta(2, 3, 1)) == (0, 1)
    assert incomplete_beta(1, 1, 0.3) == pytest.approx(0.3, rel=1e-14)
    assert incomplete_beta(2, 3, 0.4) == pytest.approx(0.5248, rel=1e-13)
    assert incomplete_beta(0.5, 0.5, 0.5) == pytest.approx(0.5, rel=1e-13)


def test_it_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 3, 7.5, 29, 200):
        for t in (-12.0, -1.3, 0.01, 0.8, 2.0, 9.0):
            assert upper_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-10)
    values = [0.9912, 0.9907, 0.9899, 0.9915, 0.9903]
    theirs = stats.ttest_1samp(values, 0.99, alternative="greater")
    assert p_mean_meets(values, 0.99) == pytest.approx(theirs.pvalue, rel=1e-10)
    interval = theirs.confidence_interval  # one-sided, so the two-sided one is computed below
    assert interval is not None
    low, high = stats.t.interval(0.95, 4, sum(values) / 5, stats.sem(values))
    assert mean_interval(values) == pytest.approx((low, high), rel=1e-12)


def test_an_interval_and_a_p_computed_by_hand() -> None:
    """Values 1 to 5: mean 3, standard error sqrt(0.5), t(0.025, 4) = 2.776445."""
    reach = 2.7764451052 * math.sqrt(0.5)
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - reach, 3 + reach), rel=1e-9)
    assert p_mean_meets([1, 2, 3, 4, 5], 3) == pytest.approx(0.5)
    assert p_mean_meets([1, 2, 3, 4, 5], 3 - 2.131846786 * math.sqrt(0.5)) == pytest.approx(0.05, rel=1e-8)
    assert p_mean_meets([1, 2, 3, 4, 5], 3 + 2.131846786 * math.sqrt(0.5)) == pytest.approx(0.95, rel=1e-8)


def test_values_without_spread_and_single_ones() -> None:
    assert mean_interval([0.99]) is None
    assert p_mean_meets([0.99], 0.5) is None
    assert [p_mean_meets([0.75, 0.75], target) for target in (0.5, 0.75, 0.9)] == [0.0, 0.5, 1.0]
    assert mean_interval([0.75, 0.75]) == (0.75, 0.75)
