from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.planes import (
    bit_planes,
    codes_of_planes,
    plane_indices,
    plane_of_indices,
    table,
    ternary_indices,
    ternary_table,
    ternary_weights,
)

CODES = np.array([[0, 1, 2, 3, 3], [3, 2, 1, 0, 1]])


def rows_of(text: str) -> list[list[int]]:
    return [[int(digit) for digit in row] for row in text.split()]


def test_planes_are_the_bits_least_significant_first() -> None:
    planes = bit_planes(CODES, 2)
    assert planes.dtype == np.uint8
    assert planes.tolist() == [rows_of("01011 10101"), rows_of("00111 11000")]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_signs_of_the_planes_give_the_weight(bits: int) -> None:
    codes = np.arange(2**bits)[None, :]
    signs = 2.0 * bit_planes(codes, bits) - 1
    alphas = np.array([0.5, 1, 2, 4])[:bits, None, None]
    np.testing.assert_array_equal((alphas * signs).sum(axis=0) - 0.5, codes - 2 ** (bits - 1))
    np.testing.assert_array_equal(codes_of_planes(bit_planes(codes, bits)), codes)


def test_index_takes_its_first_column_as_the_lowest_bit() -> None:
    plane = rows_of("1000011 0100101")
    assert plane_indices(plane, 4).tolist() == [[1, 6], [2, 5]]
    assert plane_indices(plane, 3).tolist() == [[1, 4, 1], [2, 2, 1]]


@pytest.mark.parametrize("group", range(1, 9))
def test_plane_comes_back_from_its_indices(group: int) -> None:
    rng = np.random.default_rng(group)
    for columns in range(1, 20):
        plane = rng.integers(0, 2, (3, columns))
        indices = plane_indices(plane, group)
        assert indices.dtype == np.uint8
        assert indices.shape == (3, -(-columns // group))
        np.testing.assert_array_equal(plane_of_indices(indices, group, columns), plane)


def test_ternary_indices_of_three() -> None:
    weights = [[1, 0, -1, 0, 0, 1], [-1, -1, -1, 0, 0, 0], [-1, 1, 1, 1, 1, 1]]
    indices, signs = ternary_indices(weights)
    assert indices.tolist() == [[8, 1], [13, 0], [5, 13]]
    assert signs.tolist() == [[0, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize("group", range(1, 6))
def test_every_ternary_group_has_its_own_index_and_sign(group: int) -> None:
    weights = np.array(np.meshgrid(*[[-1, 0, 1]] * group)).reshape(group, -1).T
    indices, signs = ternary_indices(weights, group)
    assert len(set(zip(indices[:, 0].tolist(), signs[:, 0].tolist(), strict=True))) == 3**group
    assert indices.max() == (3**group - 1) // 2
    np.testing.assert_array_equal(ternary_weights(indices, signs, group, group), weights)


@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_last_ternary_group_is_filled_with_zero_weights(group: int) -> None:
    weights = np.random.default_rng(0).integers(-1, 2, (4, 7))
    filled = np.pad(weights, [(0, 0), (0, -7 % group)])
    for ours, theirs in zip(ternary_indices(weights, group), ternary_indices(filled, group), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ternary_weights(*ternary_indices(weights, group), 7, group), weights)


def test_table_holds_every_signed_sum() -> None:
    entries = table([1, 10, 100], 2)
    assert entries.dtype == np.int64
    assert entries.tolist() == [[-11, -9, 9, 11], [-100, 100, -100, 100]]


def test_ternary_table_holds_the_sums_of_values_from_zero() -> None:
    assert ternary_table([1, 10, 100]).tolist() == [
        [0, 100, -90, 10, 110, -109, -9, 91, -99, 1, 101, -89, 11, 111]
    ]
    assert ternary_table([3, 5], 1).tolist() == [[0, 3], [0, 5]]


def test_tables_of_many_vectors_are_those_of_each() -> None:
    x = np.random.default_rng(1).integers(-128, 128, (2, 3, 10))
    for function in (table, ternary_table):
        np.testing.assert_array_equal(function(x, 4)[1, 2], function(x[1, 2], 4))


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_upper_half_is_the_mirrored_negated_lower_half(dtype: type) -> None:
    x = (np.random.default_rng(2).standard_normal(50) * 40).astype(dtype)
    for group in range(1, 9):
        entries = table(x, group)
        np.testing.assert_array_equal(entries[:, ::-1], -entries)
        assert entries.dtype == (np.int64 if dtype is np.int8 else np.float64)


def test_extreme_int8_tables_fit_ten_bits() -> None:
    assert table(np.full(4, -128, np.int8), 4).max() == 512
    assert table(np.full(4, 127, np.int8), 4).max() == 508


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bit_planes(CODES, 0), "bits must be an integer from 1 to 4, not 0"),
        (lambda: bit_planes(CODES, 5), "bits must be an integer from 1 to 4, not 5"),
        (lambda: bit_planes(CODES, True), "bits must be an integer from 1 to 4, not True"),
        (lambda: bit_planes(CODES, 1), "codes must lie from 0 to 1; 2 at row 0, column 2 does not"),
        (lambda: bit_planes(-CODES, 2), "codes must lie from 0 to 3; -1 at row 0, column 1 does not"),
        (lambda: bit_planes([1, 2], 2), "codes must be a non-empty integer matrix, not int64 of shape (2,)"),
        (lambda: bit_planes([[1.0]], 2), "codes must be a non-empty integer matrix, not float64 of shape (1, 1)"),
        (lambda: codes_of_planes(CODES), "planes must have shape (1 to 4, rows, columns), not (2, 5)"),
        (lambda: codes_of_planes([CODES]), "plane must lie from 0 to 1; 2 at row 0, column 2 does not"),
        (lambda: plane_indices([[1]], 9), "group must be an integer from 1 to 8, not 9"),
        (lambda: plane_indices([[2]], 4), "plane must lie from 0 to 1; 2 at row 0, column 0 does not"),
        (lambda: plane_of_indices([[4]], 2, 2), "indices must lie from 0 to 3; 4 at row 0, column 0 does not"),
        (lambda: plane_of_indices([[1, 2]], 4, 9), "9 columns in groups of 4 need 3 indices a row, not 2"),
        (lambda: ternary_indices([[0, 2]]), "weights must lie from -1 to 1; 2 at row 0, column 1 does not"),
        (lambda: ternary_indices([[0]], 6), "group must be an integer from 1 to 5, not 6"),
        (lambda: ternary_weights([[14]], [[0]], 3), "indices must lie from 0 to 13; 14 at row 0, column 0 does not"),
        (lambda: ternary_weights([[1]], [[2]], 3), "signs must lie from 0 to 1; 2 at row 0, column 0 does not"),
        (lambda: ternary_weights([[1]], [[1, 1]], 3), "indices and signs must have the same shape, not (1, 1) and (1, 2)"),
        (lambda: ternary_weights([[1]], [[1]], 4), "4 columns in groups of 3 need 2 indices a row, not 1"),
        (lambda: table([0.0, np.nan], 4), "activations must be finite float32 values; nan at position 1 is none"),
        (lambda: table([[0.0], [-np.inf]], 4), "activations must be finite float32 values; -inf at position (1, 0) is none"),
        (lambda: table([0, 2**31], 4), "integer activations must fit 32 bits; 2147483648 at position 1 does not"),
        (lambda: table(["a"], 4), "activations must be a non-empty array of numbers, not <U1 of shape (1,)"),
        (lambda: ternary_table([], 3), "activations must be a non-empty array of numbers, not float64 of shape (0,)"),
        (lambda: table(3, 4), "activations must be a non-empty array of numbers, not int64 of shape ()"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        call()


def test_no_module_of_the_package_needs_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import quantizers.table_lookup.packing, quantizers.table_lookup.quantized"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
