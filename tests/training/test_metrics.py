"""Counts and Metrics: equal to plain Python, and independent of the order and the split of the images."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnist_dist.training.metrics import MAX_LOSS, MAX_PENDING, Counts, Metrics

CPU = torch.device("cpu")
UNIT = 2**-24  # resolution of a loss


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and losses of `count` images. A third of them has integer logits, of which some are equal."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 10, generator=generator) * 3
    logits[::3] = logits[::3].round()
    labels = torch.randint(10, (count,), generator=generator)
    return logits, labels, F.cross_entropy(logits, labels, reduction="none")


def counts_of(*batches: tuple[Tensor, Tensor, Tensor]) -> Counts:
    counts = Counts(CPU)
    for logits, labels, losses in batches:
        counts.add(logits, labels, losses)
    return counts


def metrics_of(*batches: tuple[Tensor, Tensor, Tensor]) -> Metrics:
    return Metrics.from_counts(counts_of(*batches).tensor.tolist())


# Values


@pytest.mark.parametrize("count", [1, 7, 500])
def test_counts_equal_those_of_plain_python(count: int) -> None:
    logits, labels, losses = batch(count, seed=count)
    metrics = metrics_of((logits, labels, losses))

    confusion = [[0] * 10 for _ in range(10)]
    top2 = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        confusion[label][row.index(max(row))] += 1
        top2 += sum(value > row[label] for value in row) < 2
    assert metrics.confusion == tuple(map(tuple, confusion))
    assert metrics.count == count
    assert metrics.correct == sum(confusion[i][i] for i in range(10))
    assert (metrics.top2_correct, metrics.nonfinite) == (top2, 0)
    assert metrics.accuracy == metrics.correct / count
    assert metrics.top2 == top2 / count
    expected = math.fsum(losses.tolist())
    assert metrics.loss_sum == pytest.approx(expected, abs=count * UNIT)
    assert metrics.loss == pytest.approx(expected / count, abs=UNIT)
    assert metrics.accuracy <= metrics.top2


def test_losses_are_rounded_to_the_nearest_unit() -> None:
    losses = torch.tensor([0.3, 1e-9, 2.0, 0.6 * UNIT, 0.4 * UNIT])
    metrics = metrics_of((torch.zeros(5, 10), torch.zeros(5, dtype=torch.int64), losses))
    units = [round(Fraction(loss) / Fraction(UNIT)) for loss in losses.tolist()]
    assert units[1:] == [0, 2**25, 1, 0]
    assert metrics.loss_sum == sum(units) * UNIT


def test_recall_and_precision_of_each_class() -> None:
    """Classes 3 to 9 have no images and no predictions."""
    labels, predicted = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 0, 2])
    metrics = metrics_of((F.one_hot(predicted, 10).float(), labels, torch.zeros(6)))
    assert metrics.recall()[:3] == [2 / 3, 1.0, 1 / 2]
    assert metrics.precision()[:3] == [2 / 3, 1 / 2, 1.0]
    assert all(map(math.isnan, metrics.recall()[3:] + metrics.precision()[3:]))
    assert metrics.confusion[0][:3] == (2, 1, 0)  # rows are labels


def test_top2_counts_images_with_fewer_than_two_likelier_classes() -> None:
    logits = torch.zeros(4, 10)
    logits[0, [1, 2]] = torch.tensor([2.0, 1.0])  # the label, 1, is first
    logits[1, [2, 1]] = torch.tensor([2.0, 1.0])  # second
    logits[2, [2, 3, 1]] = torch.tensor([3.0, 2.0, 1.0])  # third
    logits[3, [2, 3, 1]] = torch.tensor([3.0, 2.0, 2.0])  # second, equal with class 3
    metrics = metrics_of((logits, torch.ones(4, dtype=torch.int64), torch.zeros(4)))
    assert (metrics.correct, metrics.top2_correct) == (1, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_is_accepted(dtype: torch.dtype) -> None:
    logits, labels, losses = batch(20)
    cast = logits.to(dtype)
    found, expected = metrics_of((cast, labels, losses.to(dtype))), metrics_of((cast.double(), labels, losses))
    assert found.confusion == expected.confusion


# Splits


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(0, 120), seed=st.integers(0, 100))
def test_any_split_in_any_order_gives_the_same_counts(data: st.DataObject, count: int, seed: int) -> None:
    whole = batch(count, seed)
    bounds = sorted(data.draw(st.lists(st.integers(0, count), max_size=5)))
    order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
    batches = [
        (whole[0][rows], whole[1][rows], whole[2][rows])
        for rows in (order[a:b] for a, b in zip([0, *bounds], [*bounds, count], strict=True))
    ]
    expected = counts_of(whole).tensor
    assert counts_of(*batches).tensor.equal(expected)

    merged = Counts(CPU)
    for one in batches:
        merged.merge(counts_of(one))
    assert merged.tensor.equal(expected)
    assert merged.tensor.dtype == torch.int64
    assert merged.tensor.shape == (103,)


def test_counts_continue_from_earlier_ones_and_can_be_cleared() -> None:
    first, second = batch(10, 1), batch(5, 2)
    earlier = torch.tensor(counts_of(first).tensor.tolist())
    counts = Counts(CPU, tensor=earlier)
    counts.add(*second)
    assert counts.tensor.equal(counts_of(first, second).tensor)
    counts.clear()
    assert not counts.tensor.any()


def test_pending_batches_are_bounded_and_dropped_by_clear() -> None:
    batches = [batch(1 + seed % 7, seed) for seed in range(2 * MAX_PENDING + 3)]
    counts = counts_of(*batches)
    assert len(counts.pending) == 3
    assert counts.tensor.equal(sum(counts_of(one).tensor for one in batches))
    counts.add(*batches[0])
    counts.clear()
    assert not counts.tensor.any()


# Extreme values


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_counted_and_makes_only_the_mean_nan(bad: float) -> None:
    logits, labels, losses = batch(6)
    losses[2] = bad
    metrics = metrics_of((logits, labels, losses))
    assert metrics.nonfinite == 1
    assert math.isnan(metrics.loss)
    assert metrics.count == 6
    assert metrics.loss_sum == pytest.approx(math.fsum(losses[losses.isfinite()].tolist()), abs=6 * UNIT)


def test_images_with_logits_that_are_not_finite_are_counted_once_and_nan_is_not_correct() -> None:
    logits, labels = torch.zeros(4, 10), torch.tensor([1, 1, 3, 4])
    logits[0] = math.nan
    logits[1, 0] = math.nan  # all other classes are as likely as the label
    logits[2, 3] = math.inf
    logits[3, 3] = math.inf
    metrics = metrics_of((logits, labels, torch.zeros(4)))
    assert metrics.count == sum(map(sum, metrics.confusion)) == 4
    assert metrics.correct == 1
    assert metrics.top2_correct == 3


def test_huge_losses_are_clamped_and_never_overflow() -> None:
    count = 1 << 12
    logits, labels = torch.zeros(count, 10), torch.zeros(count, dtype=torch.int64)
    metrics = metrics_of((logits, labels, torch.full((count,), 3e38)))
    assert metrics.loss == MAX_LOSS
    # 4096 times this many images, 2**24, still fit into 63 bits.
    assert 0 < counts_of((logits, labels, torch.full((count,), 3e38))).tensor[0].item() * 4096 < 2**63


def test_metrics_without_images_are_nan() -> None:
    metrics = metrics_of((torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64), torch.zeros(0)))
    assert metrics.count == 0
    assert all(map(math.isnan, (metrics.loss, metrics.accuracy, metrics.top2, *metrics.recall())))


def test_the_keys_of_a_row() -> None:
    metrics = metrics_of(batch(50))
    assert metrics.row("val") == {
        "val.loss": metrics.loss,
        "val.accuracy": metrics.accuracy,
        "val.top2": metrics.top2,
        "val.correct": metrics.correct,
        "val.count": 50,
    }
