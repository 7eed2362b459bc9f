import numpy as np
import pytest

from hw.reference import anchor_accumulator_bits, exact_accumulator_bits, multiply_accumulate
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format


def exact_sums(w, a, weights, activations):
    """Row by row in Python integers."""
    return [
        sum(
            int(x) * int(y) for x, y in zip(weights.fixed_point(ws), activations.fixed_point(xs), strict=True)
        )
        for ws, xs in zip(w, a, strict=True)
    ]


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("int8", "int8"),
        ("int4", "uint8"),
        ("e4m3", "e4m3"),
        ("e2m1", "int8"),
        ("e5m2", "e5m2"),
        ("e5m2", "ue5m3"),
    ],
)
def test_sums_are_exact(weights, activations):
    weights, activations = parse_scalar_format(weights), parse_scalar_format(activations)
    rng = np.random.default_rng(3)
    w = rng.integers(0, 1 << weights.bits, (20, 300))
    a = rng.integers(0, 1 << activations.bits, (20, 300))
    sums = multiply_accumulate(w, a, weights=weights, activations=activations)
    assert sums.shape == (20,)
    assert sums.tolist() == exact_sums(w, a, weights, activations)


@pytest.mark.parametrize("name", ["int8", "e4m3", "e5m2"])
def test_extreme_sums_are_exact(name):
    """All largest and all most negative codes: where a 64-bit sum would overflow for e5m2."""
    fmt = parse_scalar_format(name)
    values = fmt.values()
    codes = np.array([[values.argmax()], [values.argmin()]]).repeat(4608, axis=1)
    largest, smallest = (int(v) for v in fmt.fixed_point([values.argmax(), values.argmin()]))
    sums = multiply_accumulate(codes, codes[:1], weights=fmt, activations=fmt)
    assert sums.tolist() == [4608 * largest * largest, 4608 * smallest * largest]


def test_result_type():
    int8, e5m2 = parse_scalar_format("int8"), parse_scalar_format("e5m2")
    assert multiply_accumulate([1], [1], weights=int8, activations=int8).dtype == np.int64
    assert multiply_accumulate([1], [1], weights=e5m2, activations=e5m2).dtype == object


@pytest.mark.parametrize(("bits", "expected"), [(8, 100 * 100 % 256), (14, 10000 - 16384), (15, 10000)])
def test_sums_wrap_at_the_accumulator_width(bits, expected):
    int8 = parse_scalar_format("int8")
    got = multiply_accumulate([100], [100], weights=int8, activations=int8, accumulator_bits=bits)
    assert int(got) == expected


def test_wide_sums_wrap():
    e5m2 = parse_scalar_format("e5m2")
    largest = int(e5m2.values().argmax())
    got = multiply_accumulate([largest], [largest], weights=e5m2, activations=e5m2, accumulator_bits=62)
    assert int(got) == 49 * 2**60 % 2**62 - 2**62 * (49 * 2**60 % 2**62 >= 2**61)


@pytest.mark.parametrize(
    ("w", "a", "message"),
    [
        ([1, 2], [1], "codes must agree in the length of their last axis, not have shapes (2,) and (1,)"),
        (1, 1, "codes must agree in the length of their last axis, not have shapes () and ()"),
        ([256], [1], "code 256 is outside int8: expected 0 to 255"),
    ],
)
def test_wrong_codes(w, a, message):
    int8 = parse_scalar_format("int8")
    with pytest.raises(UsageError) as caught:
        multiply_accumulate(w, a, weights=int8, activations=int8)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "exact", "anchor"), [("int8", 28, 30), ("e4m3", 49, 50), ("e5m2", 79, 80), ("e2m1", 21, 22)]
)
def test_accumulator_widths_of_the_anchor_study(name, exact, anchor):
    fmt = parse_scalar_format(name)
    assert exact_accumulator_bits(fmt, fmt, 4608) == exact
    assert anchor_accumulator_bits(fmt, fmt, 4608) == anchor


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("int3", "int3"),
        ("int8", "uint8"),
        ("e3m2", "e2m1"),
        ("e4m3", "uint8"),
        ("ternary", "int8"),
        ("e4m3b11", "int4"),
    ],
)
@pytest.mark.parametrize("dot_length", [1, 2, 5, 64, 4608])
def test_exact_width_holds_every_sum_and_is_tight(weights, activations, dot_length):
    weights, activations = parse_scalar_format(weights), parse_scalar_format(activations)
    w, a = (np.nan_to_num(f.values()) * 2.0**-f.grid.lsb_exponent for f in (weights, activations))
    products = np.outer(w, a)
    bits = exact_accumulator_bits(weights, activations, dot_length)
    largest = int(np.abs(products).max()) * dot_length
    assert -(1 << (bits - 1)) <= int(products.min()) * dot_length
    assert int(products.max()) * dot_length < 1 << (bits - 1)
    assert largest >= 1 << (bits - 2)


def test_width_errors():
    int8, e4m3, fn = (parse_scalar_format(name) for name in ("int8", "e4m3", "e4m3fn"))
    with pytest.raises(UsageError, match=r"^dot_length must be a positive integer, not 0$"):
        exact_accumulator_bits(int8, int8, 0)
    with pytest.raises(UsageError, match=r"^weights has codes for NaN or infinity, .*: e4m3fn$"):
        exact_accumulator_bits(fn, int8, 8)
    with pytest.raises(UsageError) as caught:
        anchor_accumulator_bits(int8, e4m3, 8)
    assert str(caught.value) == (
        "the anchor study's width rule needs two integers or two minifloats, not int8 and e4m3"
    )
