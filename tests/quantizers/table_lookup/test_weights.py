from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.quantized import TableQuantization
from quantizers.table_lookup.weights import (
    GroupedWeights,
    TableProduct,
    columns_of_block,
    quantize_groups,
    quantize_ternary,
    table_gemv,
)

BLOCKS = [32, 64, 128, "channel", "tensor", 7]


def test_asymmetric_blocks_by_hand() -> None:
    weights = quantize_groups([[0.0, 1.5, 3.0, -1.0, -2.0, 1.0, 5.0]], 2, block=3)
    assert weights.scales.dtype == np.float16
    assert weights.scales.tolist() == [[1.0, 1.0, np.float16(5 / 3)]]
    assert weights.zeros.tolist() == [[0, 2, 0]]
    # 1.5 is halfway between two codes and goes to the even one.
    assert weights.codes.tolist() == [[0, 2, 3, 1, 0, 3, 3]]
    assert weights.dequantized()[0, :6].tolist() == [0, 2, 3, -1, -2, 1]
    assert not weights.symmetric


def test_symmetric_blocks_by_hand() -> None:
    weights = quantize_groups([[1.0, -1.5, 0.5, 0.25]], 2, block=2, symmetric=True)
    assert weights.scales.tolist() == [[1.0, np.float16(1 / 3)]]
    assert weights.zeros.tolist() == [[2, 2]]
    assert weights.codes.tolist() == [[3, 0, 3, 3]]
    assert weights.symmetric


def test_ternary_by_hand() -> None:
    # Mean magnitude 1; 0.5 / (1 + 1e-5) rounds to 0 and -3 is clipped.
    weights = quantize_ternary([[0.5, -3.0], [0.25, 0.25]])
    assert weights.scales.tolist() == [[1.0]]
    assert weights.codes.tolist() == [[2, 1], [2, 2]]
    assert weights.dequantized().tolist() == [[0, -1], [0, 0]]
    rows = quantize_ternary([[0.5, -3.0, 1.0], [0.25, 0.25, 0.0]], block=2)
    assert rows.scales.tolist() == [[1.75, 1.0], [0.25, np.finfo(np.float16).smallest_subnormal]]
    assert rows.codes.tolist() == [[2, 1, 3], [3, 3, 2]]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_error_is_at_most_half_a_step_and_what_the_scale_loses(bits: int, block) -> None:
    matrix = np.random.default_rng(bits).standard_normal((6, 200))
    weights = quantize_groups(matrix, bits, block=block)
    columns = columns_of_block(block, 200)
    assert weights.scales.shape == ((1, 1) if block == "tensor" else (6, -(-200 // columns)))
    # The zero point is rounded as well, which moves the ends of the range by up to half a step, and
    # the scale by up to 2**-11 of it over at most 15 steps.
    bound = np.repeat(weights.scale_matrix, columns, axis=1)[:, :200] * (1 + 16 * 2**-11)
    assert (np.abs(weights.dequantized() - matrix) <= bound).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_weights_stay_zero(symmetric: bool) -> None:
    for block in (2, "tensor"):
        assert not quantize_groups(np.zeros((2, 5)), 3, block=block, symmetric=symmetric).dequantized().any()
    assert not quantize_ternary(np.zeros((2, 5))).dequantized().any()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_exact_tables_give_the_product_of_the_dequantized_weights(block, symmetric: bool) -> None:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((5, 157))
    for bits in (1, 2, 3, 4):
        weights = quantize_groups(matrix, bits, block=block, symmetric=symmetric)
        for x in (rng.integers(-128, 128, 157), rng.standard_normal(157)):
            for group in (3, 4, 5):
                product = table_gemv(weights, x, group=group)
                np.testing.assert_array_equal(product.reference, weights.dequantized() @ x)
                assert product.nmse < 1e-28


def test_exact_tables_have_no_error_at_all_where_scales_are_powers_of_two() -> None:
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 16, (9, 4096), dtype=np.uint8)
    zeros = rng.integers(0, 16, (9, 32), dtype=np.uint8)
    scales = np.exp2(rng.integers(-6, 3, (9, 32))).astype(np.float16)
    weights = GroupedWeights(codes=codes, bits=4, scales=scales, zeros=zeros, block=128)
    product = table_gemv(weights, rng.integers(-128, 128, 4096))
    assert product.nmse == product.relative_error == 0.0


@pytest.mark.parametrize("averaging", [False, True])
def test_int8_tables_take_zero_points_into_account(averaging: bool) -> None:
    rng = np.random.default_rng(7)
    weights = quantize_groups(rng.random((50, 512)), 4)
    assert (weights.zeros == 0).all()  # as far from the symmetric 8 as can be
    settings = TableQuantization(activation_group=64, averaging=averaging)
    product = table_gemv(weights, rng.standard_normal(512) + 1.0, tables=settings)
    assert 0 < product.relative_error < (4e-3 if averaging else 1e-3)


def test_ternary_weights_in_one_scale_mode() -> None:
    rng = np.random.default_rng(8)
    weights = quantize_ternary(rng.standard_normal((200, 1024)))
    x = rng.standard_normal(1024)
    assert table_gemv(weights, x).nmse < 1e-28
    nmse = table_gemv(weights, x, tables=TableQuantization(activation_group=None)).nmse
    # Step s = largest sum / 127 in each of 256 tables and two planes: s**2/12 * (1/4 + 1) a table.
    step = np.abs(x).reshape(-1, 4).sum(axis=1).max() / 127
    signal = np.square(weights.codes.astype(float) - 2).mean() * np.square(x).sum()
    assert nmse == pytest.approx(256 * step**2 / 12 * 1.25 / signal, rel=0.5)


def test_t_mac_settings_on_normal_data() -> None:
    """W4 in groups of 32, 4096 x 4096 normal values, int8 tables with activation groups of 32."""
    rng = np.random.default_rng(0)
    weights = quantize_groups(rng.standard_normal((4096, 4096), np.float32), 4, block=32)
    product = table_gemv(weights, rng.standard_normal(4096), tables=TableQuantization(activation_group=32))
    assert product.nmse == pytest.approx(4.1e-5, rel=0.1)
    assert product.relative_error == pytest.approx(6.4e-3, rel=0.05)


def test_error_of_a_product() -> None:
    product = TableProduct(values=np.array([1.0, 2.0]), reference=np.array([1.0, 3.0]))
    assert product.nmse == 0.1
    assert product.relative_error == np.sqrt(0.1)
    assert TableProduct(values=np.zeros(2), reference=np.zeros(2)).nmse == 0.0


SOME = quantize_groups(np.arange(6.0).reshape(2, 3), 2, block=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_groups([[1.0]], 5), "bits must be an integer from 1 to 4, not 5"),
        (lambda: quantize_groups([[1.0]], 4, block=0), "block must be a positive integer, 'channel' or 'tensor', not 0"),
        (lambda: quantize_groups([[1.0]], 4, block="row"), "block must be a positive integer, 'channel' or 'tensor', not 'row'"),
        (lambda: quantize_groups([1.0], 4), "weights must be a non-empty matrix of numbers, not float64 of shape (1,)"),
        (lambda: quantize_ternary([[1.0, np.nan]]), "weights must be finite float32 values; nan at row 0, column 1 is none"),
        (lambda: quantize_ternary([[1e6]]), "the scale 1e+06 at (0, 0) is too large for float16; scale the weights down"),
        (lambda: replace(SOME, codes=SOME.codes + 4), "codes must lie from 0 to 3; 4 at row 0, column 0 does not"),
        (lambda: replace(SOME, block=4), "block must be an integer from 1 to 3, not 4"),
        (lambda: replace(SOME, scales=SOME.scales[:1]), "scales must be float16 of shape (2, 2) or (1, 1), not float16 of shape (1, 2)"),
        (lambda: replace(SOME, scales=-SOME.scales), f"scales must be positive and finite; {-SOME.scales[0, 0]} at (0, 0) is not"),
        (lambda: replace(SOME, zeros=SOME.zeros[:1]), "zeros must have the shape of the scales (2, 2), not (1, 2)"),
        (lambda: replace(SOME, zeros=SOME.zeros + 4), "zeros must lie from 0 to 3; 4 at row 0, column 0 does not"),
        (lambda: replace(SOME, ternary=True), "ternary codes must lie from 1 to 3; 0 at row 0, column 0 does not"),
        (lambda: table_gemv(SOME, [1, 2]), "activations must have shape (3,), one a column of the weights, not (2,)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        call()
