from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.table_lookup.wide_float import WideFloat, wide_float

BF16, FP16 = wide_float("bf16"), wide_float("fp16")


def test_widths() -> None:
    tf32 = wide_float("tf32")
    assert [(f.exponent_bits, f.mantissa_bits, f.bits) for f in (BF16, FP16, tf32)] == [
        (8, 7, 16),
        (5, 10, 16),
        (8, 10, 19),
    ]
    assert [f.name for f in (BF16, FP16, tf32, WideFloat(6, 9))] == ["bf16", "fp16", "tf32", "e6m9ieee"]
    assert WideFloat(8, 7) == BF16
    assert (BF16.maximum, BF16.exponent_bias, BF16.min_exponent) == (255 * 2.0**120, 127, -126)


@pytest.mark.parametrize(("fmt", "dtype"), [(BF16, ml_dtypes.bfloat16), (FP16, np.float16)])
def test_every_code_has_the_value_that_others_give_it(fmt: WideFloat, dtype: type) -> None:
    codes = np.arange(1 << 16)
    with np.errstate(invalid="ignore"):
        expected = codes.astype(np.uint16).view(dtype).astype(np.float64)
    np.testing.assert_array_equal(fmt.decode(codes), expected)
    numbers = codes[~np.isnan(expected)]
    np.testing.assert_array_equal(fmt.encode(expected[numbers], saturate=False), numbers)


@pytest.mark.parametrize(("fmt", "dtype"), [(BF16, ml_dtypes.bfloat16), (FP16, np.float16)])
def test_rounding_is_that_of_others(fmt: WideFloat, dtype: type) -> None:
    """float32 numbers of every magnitude, and the midpoints of neighbours."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    random = bits.view(np.float32)
    random = random[np.isfinite(random)]
    values = fmt.values()
    finite = np.sort(values[np.isfinite(values)])
    midpoints = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    for x in (random, midpoints):
        with np.errstate(over="ignore"):
            expected = x.astype(dtype).astype(np.float64)
        np.testing.assert_array_equal(fmt.round(x, saturate=False), expected)
        np.testing.assert_array_equal(fmt.round(x), np.clip(expected, fmt.minimum, fmt.maximum))


@pytest.mark.parametrize("widths", [(2, 1), (3, 2), (4, 3), (5, 2), (5, 7)])
def test_equals_the_minifloat_of_the_same_widths(widths: tuple[int, int]) -> None:
    fmt = WideFloat(*widths)
    minifloat = parse_scalar_format(f"e{widths[0]}m{widths[1]}ieee")
    assert (fmt.name, fmt.bits, fmt.grid) == (minifloat.name, minifloat.bits, minifloat.grid)
    np.testing.assert_array_equal(fmt.values(), minifloat.values())
    x = np.random.default_rng(2).standard_normal(2000) * np.logspace(-6, 6, 2000)
    x = np.concatenate([x, [np.inf, -np.inf, np.nan]])
    for saturate in (True, False):
        np.testing.assert_array_equal(
            fmt.encode(x, saturate=saturate), minifloat.encode(x, saturate=saturate)
        )


def test_fixed_point_where_there_is_one() -> None:
    assert FP16.fixed_point([1, 0x8001, 0x3C00, 0x7BFF]).tolist() == [1, -1, 1 << 24, 2047 << 29]
    with pytest.raises(UsageError) as caught:
        BF16.fixed_point([0])
    assert str(caught.value) == (
        "a fixed-point value of bf16 has 261 bits beside its sign, and 64 bits do not hold it"
    )


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((9, 7), "exponent_bits must be an integer from 2 to 8, not 9"),
        ((1, 7), "exponent_bits must be an integer from 2 to 8, not 1"),
        ((8, 11), "mantissa_bits must be an integer from 1 to 10, not 11"),
        ((8, True), "mantissa_bits must be an integer from 1 to 10, not True"),
    ],
)
def test_wrong_widths(widths: tuple[int, int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        WideFloat(*widths)
    assert str(caught.value) == message


def test_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        wide_float("bf17")
    assert str(caught.value) == (
        "unknown floating-point format 'bf17' (did you mean 'bf16'?); expected one of: bf16, fp16, tf32"
    )
