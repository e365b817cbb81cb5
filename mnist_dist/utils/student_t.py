"""Student's t distribution: intervals and tests of a mean. Exact to about 12 digits, and without scipy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

TINY = 1e-300
"""In place of 0 in a denominator."""


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), of x from 0 to 1 and positive a and b."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction would converge slowly
        return 1 - incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / (a * beta_fraction(a, b, x))


def beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction 1 + d1/(1 + d2/(1 + ...)) of the incomplete beta function, by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for n in range(1, 1000):
        m = n // 2
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + term * d) or TINY)
        c = (1 + term / c) or TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def upper_tail(t: float, freedom: float) -> float:
    """The probability that a t-distributed value with so many degrees of freedom is at least `t`."""
    tail = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return tail if t >= 0 else 1 - tail


def critical_value(tail: float, freedom: float) -> float:
    """The t above which a value lies with the probability `tail`, which is above 0 and below 0.5."""
    low, high = 0.0, 1.0
    while upper_tail(high, freedom) > tail:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if upper_tail(middle, freedom) > tail else (low, middle)
    return high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """The interval that holds the mean of the population with this confidence; None of fewer than two values."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = critical_value((1 - confidence) / 2, len(values) - 1) * error
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


def p_mean_meets(values: Sequence[float], target: float) -> float | None:
    """One-sided p of the one-sample t test: how likely so high a mean is if the population's is not above the target.

    None of fewer than two values. Of equal values it is 0 above the target, 0.5 at it, and 1 below.
    """
    if len(values) < 2:
        return None
    difference = statistics.fmean(values) - target
    error = statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return 0.5 if difference == 0 else float(difference < 0)
    return upper_tail(difference / error, len(values) - 1)
