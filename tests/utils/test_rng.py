"""derive_seed: the same in every version, and different for every purpose."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_dist.utils.rng import derive_seed


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ((0, "order", 0), 7134422430951335918),
        ((0, "split"), 5963735560859606764),
        ((1, "dropout", 10, 3), 1474773771934491573),
    ],
)
def test_seeds_do_not_change_between_versions(arguments: tuple[int, str, int], seed: int) -> None:
    """Otherwise runs of earlier versions could not be repeated or resumed."""
    assert derive_seed(*arguments) == seed


def test_no_two_purposes_share_a_seed() -> None:
    purposes = [
        (seed, purpose, *indices)
        for seed, purpose in product(range(12), ("order", "augment", "dropout", "split"))
        for indices in ((), *((i,) for i in range(12)), *product(range(12), range(12)))
    ]
    assert len({derive_seed(*arguments) for arguments in purposes}) == len(purposes)


@given(seed=st.integers(0, 2**31 - 1), indices=st.lists(st.integers(0, 2**40), max_size=3))
def test_seeds_are_non_negative_int64(seed: int, indices: list[int]) -> None:
    found = derive_seed(seed, "order", *indices)
    assert 0 <= found < 2**63
    assert found == derive_seed(seed, "order", *indices)
