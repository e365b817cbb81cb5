"""Learning rates against written-out formulas, and against torch's schedulers where they agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from mnist_dist.config.sections import OptimConfig
from mnist_dist.optim.lr_schedule import lr_at

Schedule = Literal["constant", "linear", "cosine", "onecycle"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine", "onecycle")
PEAK = 0.4


def rates(schedule: Schedule, total: int, warmup: float = 0.0, final_lr: float = 0.0) -> list[float]:
    config = OptimConfig(lr=PEAK, schedule=schedule, warmup=warmup, final_lr=final_lr)
    return [lr_at(step, total, config) for step in range(total)]


def torch_rates(build: Callable[[SGD], LRScheduler], total: int) -> list[float]:
    """The rate of each of `total` updates under one of torch's schedulers."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = build(optimizer)
    found = []
    for _ in range(total):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


# Against formulas


def test_constant() -> None:
    assert rates("constant", 5) == [PEAK] * 5
    assert rates("constant", 5, warmup=0.4, final_lr=0.1) == pytest.approx([PEAK / 2, PEAK, PEAK, PEAK, PEAK])


def test_linear() -> None:
    assert rates("linear", 5) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert rates("linear", 8, warmup=0.5, final_lr=0.25) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1])


def test_cosine() -> None:
    down = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    assert rates("cosine", 5) == pytest.approx([PEAK * part for part in down])
    expected = [0.2, 0.4, *(0.1 + 0.3 * part for part in down)]
    assert rates("cosine", 7, warmup=2 / 7, final_lr=0.25) == pytest.approx(expected)


def test_onecycle() -> None:
    up = [(1 - math.cos(math.pi * step / 4)) / 2 for step in range(1, 5)]
    down = [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(6)]
    expected = [PEAK * (0.04 + 0.96 * part) for part in up] + [PEAK * (0.1 + 0.9 * part) for part in down]
    assert rates("onecycle", 10, warmup=0.4, final_lr=0.1) == pytest.approx(expected)


# Against torch


@pytest.mark.parametrize("total", [2, 3, 50])
@pytest.mark.parametrize("final_lr", [0.0, 0.3])
def test_cosine_and_linear_fall_as_torchs_do(total: int, final_lr: float) -> None:
    def cosine(optimizer: SGD) -> LRScheduler:
        return CosineAnnealingLR(optimizer, T_max=total - 1, eta_min=PEAK * final_lr)

    def linear(optimizer: SGD) -> LRScheduler:
        return LinearLR(optimizer, start_factor=1.0, end_factor=final_lr, total_iters=total - 1)

    assert rates("cosine", total, final_lr=final_lr) == pytest.approx(torch_rates(cosine, total), abs=1e-9)
    assert rates("linear", total, final_lr=final_lr) == pytest.approx(torch_rates(linear, total), abs=1e-9)


def test_onecycle_rises_one_step_earlier_than_torchs() -> None:
    """Torch's first update has 1/25 of the peak; ours is the one after it, and the peak lasts one step longer."""
    total, warm, lowest = 50, 20, 1 / 25 / 1e4
    theirs = torch_rates(lambda o: OneCycleLR(o, PEAK, total_steps=total, pct_start=(warm + 1) / total), total)
    ours = rates("onecycle", total, warmup=warm / total, final_lr=lowest)
    assert ours[: warm - 1] == pytest.approx(theirs[1:warm], rel=1e-6)
    assert ours[warm - 1] == ours[warm] == pytest.approx(theirs[warm], rel=1e-6)
    assert ours[warm:] == pytest.approx(theirs[warm:], rel=1e-6)


# For all settings

TOTALS, PARTS, SHAPES = st.integers(1, 400), st.floats(0, 0.999), st.sampled_from(SCHEDULES)


@given(schedule=SHAPES, total=TOTALS, warmup=PARTS, final_lr=st.floats(0, 1), peak=st.floats(0, 1e3))
def test_stays_between_0_and_the_peak(
    schedule: Schedule, total: int, warmup: float, final_lr: float, peak: float
) -> None:
    config = OptimConfig(lr=peak, schedule=schedule, warmup=warmup, final_lr=final_lr)
    for step in {0, 1, total // 2, total - 2, total - 1, total, total + 5} - {-1}:
        assert 0 <= lr_at(step, total, config) <= peak * (1 + 1e-12)


@given(schedule=SHAPES, total=TOTALS, warmup=PARTS, final_lr=st.floats(0, 1))
def test_rises_to_the_peak_then_falls_to_the_last_rate(
    schedule: Schedule, total: int, warmup: float, final_lr: float
) -> None:
    found = rates(schedule, total, warmup, final_lr)
    warm = round(warmup * total)
    assert found[:warm] == sorted(found[:warm])
    assert found[warm:] == sorted(found[warm:], reverse=True)
    for peak in found[max(warm - 1, 0) : warm + 1]:
        assert peak == pytest.approx(PEAK)
    if schedule == "constant":
        assert found[warm:] == [PEAK] * (total - warm)
    elif total - warm >= 2:
        assert found[-1] == pytest.approx(PEAK * final_lr, abs=1e-12)


@given(schedule=SHAPES, total=st.integers(50, 400), warmup=st.floats(0.1, 0.8), final_lr=st.floats(0, 1))
def test_no_step_jumps(schedule: Schedule, total: int, warmup: float, final_lr: float) -> None:
    """A cosine is steepest in its middle: pi/2 times as steep as a straight line."""
    found = rates(schedule, total, warmup, final_lr)
    rise, fall = round(warmup * total), total - 1 - round(warmup * total)
    for before, after in pairwise(found):
        assert abs(after - before) <= PEAK * math.pi / 2 / min(rise, fall) * 1.001


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stays_at_the_last_rate_beyond_the_end(schedule: Schedule) -> None:
    """Training does not get there, because skipped updates only delay the schedule."""
    config = OptimConfig(lr=PEAK, schedule=schedule, warmup=0.1, final_lr=0.2)
    assert lr_at(1000, 20, config) == lr_at(19, 20, config)
