"""Which ranks are behind the others, from the times of their rows."""

from __future__ import annotations

import random
from statistics import median

import pytest

from mnist_dist.training.stragglers import ROWS, StragglerDetector, Times, ratios_to_others


def times(*seconds: float) -> list[Times]:
    """Times of some ranks, spent in the forward and backward pass."""
    return [{"data": 0.001, "compute": each - 0.003, "optimizer": 0.001, "other": 0.001} for each in seconds]


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 16])
def test_a_ratio_is_to_the_median_of_the_other_ranks(ranks: int) -> None:
    chance = random.Random(ranks)
    seconds = [float(chance.randint(1, 6)) for _ in range(ranks)]
    expected = [each / median(seconds[:rank] + seconds[rank + 1 :]) for rank, each in enumerate(seconds)]
    assert ratios_to_others(seconds) == pytest.approx(expected)


def test_no_time_is_no_ratio() -> None:
    assert ratios_to_others([0.0, 1.0, 0.0]) == [0.0, 1.0, 0.0]


def test_one_spell_is_told_once_and_its_end_once() -> None:
    detector = StragglerDetector(["a", "b"])
    told = []
    slow, even = times(0.1, 0.16), times(0.1, 0.14)
    rows = [slow, slow, even, slow, slow, slow, slow, even, slow, even, even, even, even, slow]
    for number, row in enumerate(rows):
        began, ended = detector.update(row, 50)
        told += [(number, each.rank, each.host) for each in began] + [(number, rank) for rank in ended]
    assert told == [(5, 1, "b"), (11, 1)]


@pytest.mark.parametrize("seconds", [(0.1, 0.1), (0.1, 0.15), (0.1, 0.1, 0.1, 0.1), (0.1, 0.12, 0.14, 0.1)])
def test_no_false_alarm(seconds: tuple[float, ...]) -> None:
    detector = StragglerDetector(["a"] * len(seconds))
    assert all(detector.update(times(*seconds), 50) == ([], []) for _ in range(10))


def test_a_row_of_a_few_short_steps_says_nothing() -> None:
    """Noise of some milliseconds is not worth a warning; over many steps the same ratio is."""
    detector = StragglerDetector(["a", "b"])
    assert all(detector.update(times(0.004, 0.012), 3) == ([], []) for _ in range(10))
    found = [detector.update(times(0.004, 0.012), 50)[0] for _ in range(ROWS)]
    assert [straggler.rank for straggler in found[-1]] == [1]


def test_a_quick_rank_does_not_make_stragglers_of_the_others() -> None:
    detector = StragglerDetector(["a"] * 4)
    assert all(detector.update(times(0.02, 0.1, 0.1, 0.1), 50) == ([], []) for _ in range(10))


def test_half_of_the_ranks_may_be_behind() -> None:
    detector = StragglerDetector(["a", "a", "b", "b"])
    for _ in range(ROWS):
        began, _ended = detector.update(times(0.1, 0.1, 0.2, 0.3), 50)
    assert [(each.rank, each.host) for each in began] == [(3, "b"), (2, "b")]


def test_the_description_has_rank_machine_times_and_phase() -> None:
    detector = StragglerDetector(["a", "b", "c"])
    rows = times(0.1, 0.1, 0.1)
    rows[2]["data"] += 0.15
    for _ in range(ROWS):
        began, _ended = detector.update(rows, 50)
    assert began[0].describe() == (
        "rank 2 on c holds up the others: its own work takes 250.0 ms a step, 2.5 times the median of theirs (over 1.5 "
        "in 3 rows); it spends longer on gathering the batch: 151.0 ms against 1.0 ms"
    )
