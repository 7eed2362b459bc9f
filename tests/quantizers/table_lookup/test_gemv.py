from __future__ import annotations

import re

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.gemv import (
    PlaneIndices,
    TernaryIndices,
    block_products,
    in_blocks,
    integer_gemv,
    ternary_gemv,
)


def some_shapes(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    return [(1, 1), (1, 3), (5, 4), *((int(m), int(k)) for m, k in rng.integers(1, 70, (count, 2)))]


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_product_is_that_of_integers(bits: int, group: int) -> None:
    rng = np.random.default_rng(10 * bits + group)
    for rows, columns in some_shapes(rng, 6):
        codes = rng.integers(0, 2**bits, (rows, columns))
        x = rng.integers(-128, 128, columns, dtype=np.int8)
        expected = (codes - 2 ** (bits - 1)) @ x.astype(np.int64)
        weights = PlaneIndices.of_codes(codes, bits, group=group, block=int(rng.integers(1, columns + 1)))
        for mirrored in (False, True):
            product = integer_gemv(weights, x, mirrored=mirrored)
            assert product.dtype == np.int64
            np.testing.assert_array_equal(product, expected)


@pytest.mark.parametrize("group", range(1, 6))
def test_ternary_product_is_that_of_integers(group: int) -> None:
    rng = np.random.default_rng(group)
    for rows, columns in some_shapes(rng, 12):
        ternary = rng.integers(-1, 2, (rows, columns))
        x = rng.integers(-128, 128, columns)
        product = ternary_gemv(TernaryIndices.of_weights(ternary, group=group), x)
        np.testing.assert_array_equal(product, ternary @ x)


@pytest.mark.parametrize("value", [-(2**31), 2**31 - 1])
def test_extreme_values_do_not_overflow(value: int) -> None:
    columns = 4096
    x = np.full(columns, value)
    for code in (0, 15):
        weights = PlaneIndices.of_codes(np.full((1, columns), code), 4)
        for mirrored in (False, True):
            assert integer_gemv(weights, x, mirrored=mirrored).tolist() == [(code - 8) * value * columns]
    ternary = TernaryIndices.of_weights(np.full((1, columns), -1))
    assert ternary_gemv(ternary, x).tolist() == [-value * columns]


def test_products_of_blocks() -> None:
    codes = [[3, 0, 1, 2, 3], [0, 1, 2, 3, 0]]
    weights = PlaneIndices.of_codes(codes, 2, group=3, block=2)
    assert (weights.bits, weights.rows, weights.lookups, weights.blocks) == (2, 2, 1, 3)
    # Weights less 2: [[1, -2, -1, 0, 1], [-2, -1, 0, 1, -2]].
    assert block_products(weights, [1, 10, 100, 1000, 7]).tolist() == [[-19, -100, 7], [-12, 1000, -14]]
    halves = block_products(weights, [0.5, 5, 50, 500, 3.5])
    assert halves.dtype == np.float64
    assert halves.tolist() == [[-9.5, -50, 3.5], [-6, 500, -7]]


def test_blocks_are_filled_up_each() -> None:
    assert in_blocks(np.arange(1, 6), 3, 2).tolist() == [1, 2, 3, 0, 4, 5, 0, 0]
    assert in_blocks(np.arange(1, 6), 5, 5).tolist() == [1, 2, 3, 4, 5]


CODES = np.zeros((2, 5), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PlaneIndices.of_codes(CODES, 2, block=6), "block must be an integer from 1 to 5, not 6"),
        (lambda: PlaneIndices.of_codes(CODES, 2, group=0), "group must be an integer from 1 to 8, not 0"),
        (
            lambda: integer_gemv(PlaneIndices.of_codes(CODES, 2), [1, 2, 3]),
            "activations must have shape (5,), one a column of the weights, not (3,)",
        ),
        (
            lambda: integer_gemv(PlaneIndices.of_codes(CODES, 2), np.zeros(5)),
            "activations must be integers for an exact product, not floats",
        ),
        (
            lambda: ternary_gemv(TernaryIndices.of_weights([[1, 0]]), [0.5, np.inf]),
            "activations must be finite float32 values; inf at position 1 is none",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        call()
