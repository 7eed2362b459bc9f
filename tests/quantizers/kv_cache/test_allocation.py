"""Bits to coefficients."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.allocation import allocate, distortion


def test_the_greedy_choice_is_the_best_of_all() -> None:
    errors = np.array([9.0, 2.5, 2.4, 0.3])
    cost = {
        bits: sum(e * distortion(b) for e, b in zip(errors, bits, strict=True))
        for bits in product(range(5), repeat=4)
        if sum(bits) == 8
    }
    assert tuple(allocate(errors, 8, highest=4)) == min(cost, key=lambda bits: cost[bits])


def test_limits_are_kept_and_nothing_is_left_over() -> None:
    errors = np.exp(np.random.default_rng(0).normal(0, 4, (3, 50)))
    bits = allocate(errors, 400, lowest=1, highest=6)
    assert bits.shape == (3, 50)
    assert (bits.sum(), bits.min(), bits.max()) == (400, 1, 6)
    order = np.argsort(-errors.ravel())
    assert np.all(np.diff(bits.ravel()[order]) <= 0)


def test_equal_coefficients_differ_by_one_bit_at_most() -> None:
    assert allocate(np.ones(5), 12).tolist() == [3, 3, 2, 2, 2]


def test_distortion_falls_by_nearly_four_a_bit() -> None:
    ratios = [distortion(b) / distortion(b + 1) for b in range(8)]
    assert distortion(0) == 1
    assert all(2.7 < ratio < 4.2 for ratio in ratios)


def test_what_cannot_be_given_away_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        allocate(np.ones(4), 40)
    assert str(caught.value) == "total must be an integer from 0 to 32, not 40"
    with pytest.raises(UsageError) as caught:
        allocate(np.array([1.0, -1.0]), 3)
    assert str(caught.value) == "errors must be numbers of at least 0"
