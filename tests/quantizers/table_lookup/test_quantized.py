from __future__ import annotations

import re

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.gemv import PlaneIndices
from quantizers.table_lookup.planes import bit_planes
from quantizers.table_lookup.quantized import TableQuantization, quantize_tables, quantized_gemv

FLOAT = np.float32


def looked_up(codes, bits, qtables, group, columns):
    """The int8 values of every plane, row and group, by plain indexing."""
    planes = bit_planes(np.pad(codes, [(0, 0), (0, -columns % group)]), bits)
    grouped = planes.reshape(bits, codes.shape[0], -1, group)
    indices = (grouped << np.arange(group)).sum(axis=-1)
    return qtables[np.arange(qtables.shape[0]), indices].astype(np.int64)


def averaged(values):
    """The tree of rounding averages, halves first as T-MAC's adders are nested."""
    if len(values) == 1:
        return int(values[0])
    half = len(values) // 2
    return (averaged(values[:half]) + averaged(values[half:]) + 1) >> 1


def product_by_hand(codes, bits, scales, block, x, *, activation_group, chunk, averaging):
    """T-MAC's sums one operation after the other in float32, with tables of 4."""
    rows, columns = codes.shape
    tables = quantize_tables(x, 4, activation_group)
    values = looked_up(codes, bits, tables.codes, 4, columns)
    result = np.zeros(rows, FLOAT)
    for m in range(rows):
        planes = [FLOAT(0)] * bits
        for i in range(bits):
            for start in range(0, values.shape[2], chunk):
                column = 4 * start
                part = values[i, m, start : start + chunk]
                scale = tables.scales[column // activation_group]
                bias = -np.float64(x[column : column + 4 * chunk].sum())
                if averaging:
                    part = np.pad(part, (0, chunk - len(part)))
                    scale = FLOAT(scale * FLOAT(chunk))
                    bias -= np.float64(scale) * (np.log2(chunk) / 4) * (2**bits - 1)
                total = averaged(part) if averaging else part.sum()
                term = FLOAT(FLOAT(total) * scale)
                if i == 0:
                    term = FLOAT(term + FLOAT(bias))
                planes[i] = FLOAT(planes[i] + FLOAT(term * scales[m, column // block]))
        for i in range(bits):
            result[m] = FLOAT(result[m] + FLOAT(FLOAT(2.0 ** (i - 1)) * planes[i]))
    return result


def test_tables_of_int8_by_hand() -> None:
    # The second group's sums of magnitudes, 254 and 127, give a scale of 2: halves round to even.
    x = [1.0, -1.0, 0.5, 0.0, 254.0, 0.0, 0.0, 0.0, 125.0, 1.0, 0.0, 1.0]
    tables = quantize_tables(x, 4, 8)
    np.testing.assert_array_equal(tables.scales, np.array([2, 1], FLOAT))
    np.testing.assert_array_equal(tables.biases, np.array([-254.5, -127], FLOAT))
    assert tables.codes.dtype == np.int8
    assert tables.codes[0].tolist() == [0, 1, -1, 0, 0, 1, -1, 0, 0, 1, -1, 0, 0, 1, -1, 0]
    assert tables.codes[1].tolist() == [-127, 127] * 8
    assert tables.codes[2].tolist() == [-127, 123, -125, 125, -127, 123, -125, 125, -125, 125, -123, 127, -125, 125, -123, 127]  # fmt: skip


def test_codes_are_those_of_reciprocals_in_float32() -> None:
    """The released AVX2 kernels build tables and multiply by 127 / largest in float32."""
    x = np.random.default_rng(1).standard_normal(4096).astype(FLOAT)
    quads = x.reshape(-1, 4)
    signs = (2 * ((np.arange(16) >> np.arange(4)[:, None]) & 1) - 1).astype(FLOAT)
    tables = sum(quads[:, j, None] * signs[j] for j in range(4))
    scales = np.abs(quads).sum(axis=1).reshape(-1, 8).max(axis=1) / FLOAT(127)
    reciprocals = np.repeat(FLOAT(1) / scales, 8)[:, None]
    np.testing.assert_array_equal(quantize_tables(x, 4, 32).codes, np.rint(tables * reciprocals))


def test_zero_activations_have_zero_tables() -> None:
    tables = quantize_tables(np.zeros(9), 4, 4)
    assert not tables.codes.any()
    assert tables.scales.tolist() == [0, 0, 0]


def test_one_scale_for_all() -> None:
    x = np.random.default_rng(0).standard_normal(30)
    tables = quantize_tables(x, 4)
    padded = np.pad(x, (0, 2))
    np.testing.assert_array_equal(
        tables.scales, [FLOAT(np.abs(padded).reshape(-1, 4).sum(axis=1).max() / 127)]
    )


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize(
    ("columns", "block", "activation_group", "lookups", "chunk"),
    [
        (256, 128, 64, 16, 16),
        (256, 64, 32, 16, 8),
        (256, 32, 64, 16, 8),
        (256, 256, 64, 8, 8),
        (145, 64, 64, 16, 16),
    ],
)
def test_product_follows_the_kernels_sums(
    columns, block, activation_group, lookups, chunk, averaging
) -> None:
    rng = np.random.default_rng(columns + block + activation_group)
    x = rng.standard_normal(columns)
    for bits in (1, 2, 3, 4):
        codes = rng.integers(0, 2**bits, (3, columns))
        scales = rng.standard_normal((3, -(-columns // block))).astype(FLOAT)
        weights = PlaneIndices.of_codes(codes, bits, block=block)
        settings = TableQuantization(activation_group=activation_group, lookups=lookups, averaging=averaging)
        by_hand = product_by_hand(
            codes, bits, scales, block, x, activation_group=activation_group, chunk=chunk, averaging=averaging
        )
        np.testing.assert_array_equal(quantized_gemv(weights, scales, x, settings), by_hand)


@pytest.mark.parametrize("columns", [4096, 1030])
def test_one_scale_mode_sums_in_int32(columns: int) -> None:
    rng = np.random.default_rng(columns)
    codes = rng.integers(1, 4, (5, columns))
    x = rng.standard_normal(columns)
    tables = quantize_tables(x, 4)
    sums = looked_up(codes, 2, tables.codes, 4, columns).sum(axis=2)
    bias = FLOAT(-x.sum())
    scale = FLOAT(0.25)
    low = (sums[0].astype(FLOAT) * tables.scales[0] + bias) * scale
    high = sums[1].astype(FLOAT) * tables.scales[0] * scale
    product = quantized_gemv(
        PlaneIndices.of_codes(codes, 2), [[0.25]], x, TableQuantization(activation_group=None)
    )
    np.testing.assert_array_equal(product, FLOAT(0.5) * low + high)


def test_averaging_loses_accuracy_but_no_mean() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (400, 512))
    x = rng.standard_normal(512)
    weights = PlaneIndices.of_codes(codes, 4)
    exact = (codes - 8) @ x
    errors = {}
    for averaging in (False, True):
        settings = TableQuantization(activation_group=64, averaging=averaging)
        errors[averaging] = quantized_gemv(weights, [[1.0]], x, settings) - exact
    # A node is off by 1/4 at random: 16**2 / 16 * (1 + 1/2 + 1/4 + 1/8) a tree against 16 / 12 a sum.
    assert errors[True].var() / errors[False].var() == pytest.approx(22.5, rel=0.3)
    # The correction without which the mean would be 15/2 * log2(16)/4 * sum of 16 scales.
    uncorrected = 7.5 * 16 * quantize_tables(x, 4, 64).scales.sum()
    assert abs(errors[True].mean()) < 0.1 * uncorrected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TableQuantization(lookups=4), "lookups must be 8 or 16, not 4"),
        (
            lambda: TableQuantization(activation_group=0),
            "activation_group must be an integer from 1 to 2147483647, not 0",
        ),
        (lambda: quantize_tables([1, 2], 4, 6), "activation_group must be a multiple of the table group 4, not 6"),
        (lambda: quantize_tables([1e39], 4), "activations must be finite float32 values; 1e+39 at position 0 is none"),
        (lambda: quantize_tables([[1.0]], 4), "activations must be a vector, not an array of shape (1, 1)"),
        (
            lambda: gemv_of(group=3, block=64, activation_group=48),
            "16 lookups of 3 columns do not divide the 64 columns that share a scale; "
            "int8 tables need a table group that does, such as 4 of 32, 64 or 128",
        ),
        (
            lambda: gemv_of(group=4, block=24, activation_group=32),
            "6 lookups of 4 columns do not divide the 32 columns that share a scale; "
            "int8 tables need a table group that does, such as 4 of 32, 64 or 128",
        ),
        (lambda: gemv_of(scales=np.ones((1, 2))), "weight_scales must have shape (2, 2) or (1, 1), not (1, 2)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        call()


def gemv_of(*, group=4, block=64, activation_group=64, scales=((1.0,),)):
    weights = PlaneIndices.of_codes(np.zeros((2, 128), np.uint8), 2, group=group, block=block)
    return quantized_gemv(weights, scales, np.ones(128), TableQuantization(activation_group=activation_group))
