"""The cost model of docs/scaling.md: it finds the constants that made its points, and predicts what they imply. Also
the learning rates of the runs beside it."""

from __future__ import annotations

import math

import pytest

from large_batch import BASE_BATCH, scaled_rate, train_options
from scaling_model import (
    Compute,
    Network,
    fit_compute,
    fit_ring,
    step_seconds,
    strong_efficiency,
    weak_efficiency,
)

LINE = Compute(fixed=2e-3, per_image=3e-5)
RING = Network(base=1e-4, alpha=4e-5, bandwidth=1.5e9, cores=2)
SIZES = [8 * 8**n for n in range(9)]


def test_fits_give_back_the_constants_that_made_the_points() -> None:
    line = fit_compute([(images, LINE.fixed + LINE.per_image * images) for images in (16, 64, 256, 1024)])
    assert line == pytest.approx(LINE, rel=1e-9)
    ring = fit_ring([(n, size, RING.allreduce(n, size)) for n in (1, 2, 4, 8) for size in SIZES], cores=2)
    assert (ring.base, ring.alpha, ring.bandwidth) == pytest.approx((1e-4, 4e-5, 1.5e9), rel=1e-9)
    assert ring.cores == 2


def test_a_ring_takes_2_times_n_minus_1_messages_and_workers_in_excess_of_cores_take_turns() -> None:
    assert RING.allreduce(1, 10**6) == 0
    assert RING.allreduce(2, 1_500_000) == pytest.approx(1e-4 + 2 * 4e-5 + 1e-3)
    # Eight workers on two cores: 14 messages and 14/8 of the bytes, each four times as long.
    assert RING.allreduce(8, 1_500_000) == pytest.approx(1e-4 + 4 * (14 * 4e-5 + 14 / 8 * 1e-3))


def test_a_tree_takes_the_logarithm_of_the_machines_and_a_chain_in_each() -> None:
    tree = Network(base=14.0, alpha=8.0, bandwidth=math.inf, tree=True, per_machine=8, alpha_inside=1.0)
    assert tree.allreduce(4, 0) == 14 + 2 * 3
    assert tree.allreduce(8, 0) == 14 + 2 * 7
    assert tree.allreduce(4096, 0) == 14 + 2 * (7 + 9 * 8)


def test_efficiencies_are_one_without_cost_and_fall_to_what_the_steps_say() -> None:
    free = Network(base=0, alpha=0, bandwidth=math.inf)
    images_only = Compute(fixed=0, per_image=1e-3)
    for workers in (1, 2, 4096):
        assert strong_efficiency(images_only, free, workers, 256) == pytest.approx(1)
        assert weak_efficiency(LINE, free, workers, 256) == pytest.approx(1)
    # Strong scaling keeps the fixed cost on every worker: 3 s alone, 2 s on two.
    assert strong_efficiency(Compute(1, 1), free, 2, 2) == pytest.approx(3 / (2 * 2))
    slow = Network(base=1, alpha=0.5, bandwidth=math.inf)
    assert step_seconds(Compute(1, 1), slow, 2, 2) == pytest.approx(2 + 2)
    assert weak_efficiency(Compute(1, 1), slow, 2, 1) == pytest.approx(2 / 4)


def test_two_cores_halve_what_four_workers_get() -> None:
    crowded = Network(base=0, alpha=0, bandwidth=math.inf, cores=2)
    assert weak_efficiency(LINE, crowded, 2, 256) == pytest.approx(1)
    assert weak_efficiency(LINE, crowded, 4, 256) == pytest.approx(1 / 2)


def test_rules_agree_at_the_base_batch_and_scale_from_there() -> None:
    assert {scaled_rate(0.4, BASE_BATCH, rule) for rule in ("constant", "sqrt", "linear")} == {0.4}
    assert [scaled_rate(0.4, 16 * BASE_BATCH, rule) for rule in ("constant", "sqrt", "linear")] == [0.4, 1.6, 6.4]
    arguments = train_options("sgd", 1.6, 4096, seed=3, epochs=2)
    assert {"--train.shards=64", "--train.batch_size=4096", "--optim.lr=1.6", "--run.seed=3"} <= set(arguments)
