from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from hw.reference import count_thresholds, find_scaling, requantize
from quantizers.errors import UsageError
from quantizers.formats import MinifloatFormat, parse_scalar_format

FORMATS = [
    *("int2", "int2n", "int3", "int4n", "int8", "uint1", "uint4", "ternary"),
    *("e2m1", "ue2m2", "e1m3", "e3m0", "e3m2", "e4m3", "e5m2", "ue3m2", "e2m1b-3", "e2m1b6"),
]


@cache
def nearest_code(x, fmt):
    """The code of the nearest value of the table, ties to the even code, in rational numbers."""
    table = {code: value for code, value in enumerate(fmt.values()) if np.isfinite(value)}
    negative_zero = [code for code, value in table.items() if value == 0 and np.signbit(value)]
    for code in negative_zero:
        del table[code]
    code = min(table, key=lambda code: (abs(Fraction(table[code]) - x), code & 1))
    is_signed_float = isinstance(fmt, MinifloatFormat) and fmt.signed
    return negative_zero[0] if is_signed_float and table[code] == 0 and x < 0 else code


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_against_rational_numbers(name, relu):
    """Every sum of six bits with several multipliers and shifts: all ties, both ends, and beyond."""
    fmt = parse_scalar_format(name)
    cases = np.array([(s, f, e) for s in range(-32, 32) for f in (0, 1, 3, 5) for e in (-2, 0, 1, 4, 9)]).T
    expected = [
        nearest_code(Fraction(max(s, 0) if relu else s) * f / Fraction(2) ** e, fmt)
        for s, f, e in cases.T.tolist()
    ]
    assert requantize(*cases, output=fmt, relu=relu).tolist() == expected


@pytest.mark.parametrize("name", ["int8", "int10", "e4m3", "e5m2", "e2m7"])
def test_wide_sums_are_rounded_once(name):
    """Products of up to 140 bits, an ulp of the product off a tie: float64 would take them for the tie."""
    fmt = parse_scalar_format(name)
    steps = np.unique(np.abs(fmt.values()))
    chosen = np.random.default_rng(7).choice(len(steps) - 1, 20)
    middle = [(Fraction(steps[i]) + Fraction(steps[i + 1])) / 2 for i in chosen]
    cases = [
        (sign * (int(m * 2**90) + nudge), 1 << 20, 110)
        for m in middle
        for nudge in (-1, 0, 1)
        for sign in (-1, 1)
    ]
    sums, factors, shifts = (np.array(column, dtype=object) for column in zip(*cases, strict=True))
    expected = [nearest_code(Fraction(s * f, 2**e), fmt) for s, f, e in cases]
    assert requantize(sums, factors, shifts, output=fmt).tolist() == expected


def test_wide_products_of_int64():
    """2**40 * 2**30 does not fit int64; the codes do not care."""
    int8 = parse_scalar_format("int8")
    sums = np.array([5 << 40, -(5 << 40), (5 << 40) + 1])
    assert requantize(sums, 1 << 30, 71, output=int8).tolist() == [2, 254, 3]


@pytest.mark.parametrize(("shift", "code"), [(10_000, 0), (-10_000, 127)])
def test_shifts_without_end(shift, code):
    assert requantize([1], [1], [shift], output=parse_scalar_format("int8")).tolist() == [code]


def test_channels_broadcast():
    int8 = parse_scalar_format("int8")
    codes = requantize([[10, 20], [30, -40]], [1, 3], [1, 2], output=int8)
    assert codes.tolist() == [[5, 15], [15, 256 - 30]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.5], [1], [0]), "sums must be integers, not float64"),
        (([1], [0.5], [0]), "multipliers must be integers, not float64"),
        (([1], [1], ["a"]), "shifts must be integers, not <U1"),
        (([1], [3, -2], [0]), "multipliers must not be negative, but one is -2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        requantize(*arguments, output=parse_scalar_format("int8"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("multiplier_bits", "shifts"), [(0, range(-3, 12)), (4, range(12)), (8, range(4, 9))]
)
def test_scaling_is_the_nearest_there_is(multiplier_bits, shifts):
    rng = np.random.default_rng(5)
    multipliers = range(1, 1 << multiplier_bits) if multiplier_bits else [1]
    choices = np.array([np.ldexp(f, -s) for s in shifts for f in multipliers])
    ratios = np.exp(rng.uniform(np.log(choices.min()), np.log(choices.max()), 200))
    scaling = find_scaling(ratios, multiplier_bits=multiplier_bits, shifts=shifts)
    got = np.ldexp(scaling.multipliers.astype(float), -scaling.shifts)
    errors = np.abs(got / ratios - 1)
    best = np.abs(choices / ratios[:, None] - 1).min(axis=1)
    assert np.allclose(errors, best, rtol=1e-9, atol=1e-15)
    assert scaling.largest_relative_error == pytest.approx(errors.max(), rel=1e-9)


def test_scaling_error_of_sixteen_bits():
    ratios = np.exp(np.random.default_rng(6).uniform(np.log(2.0**-16), 0, 1000))
    scaling = find_scaling(ratios)
    assert 0 < scaling.largest_relative_error <= 2.0**-16


def test_scaling_of_exact_ratios():
    scaling = find_scaling([0.75, 1.0, 0.0], multiplier_bits=4, shifts=range(8))
    assert scaling.multipliers.tolist() == [3, 1, 0]
    assert scaling.shifts.tolist() == [2, 0, 0]
    assert scaling.largest_relative_error == 0


@pytest.mark.parametrize(
    ("ratio", "bits", "message"),
    [
        (16.0, 4, "ratio 16 is out of reach: expected 0.0078125 to 15"),
        (0.001, 4, "ratio 0.001 is out of reach: expected 0.0078125 to 15"),
        (0.0, 0, "ratio 0 is out of reach: expected 0.0078125 to 1"),
        (-0.5, 4, "ratio -0.5 is out of reach: expected 0.0078125 to 15"),
        (np.nan, 4, "ratio nan is out of reach: expected 0.0078125 to 15"),
    ],
)
def test_ratios_out_of_reach(ratio, bits, message):
    with pytest.raises(UsageError) as caught:
        find_scaling([0.5, ratio], multiplier_bits=bits, shifts=range(8))
    assert str(caught.value) == message


def test_thresholds_are_counted():
    int2 = parse_scalar_format("int2")
    codes = count_thresholds([[-9, 3], [0, 4], [7, 5]], [[-8, 0, 7], [5, 3, 4]], output=int2)
    assert codes.tolist() == [[2, 3], [0, 0], [1, 1]]


@pytest.mark.parametrize("name", ["int3", "uint4", "int4n", "ternary"])
def test_thresholds_can_be_any_rescaling(name):
    """The sums at which the rounded code goes up, as thresholds, give the same codes."""
    fmt = parse_scalar_format(name)
    sums = np.arange(-500, 500)
    codes = fmt.decode(requantize(sums, 37, 9, output=fmt))
    levels = np.arange(fmt.minimum + 1, fmt.maximum + 1)
    thresholds = np.array([[sums[codes >= level].min() for level in levels]])
    assert (
        fmt.decode(count_thresholds(sums[:, None], thresholds, output=fmt))[:, 0].tolist() == codes.tolist()
    )


def test_wrong_number_of_thresholds():
    with pytest.raises(UsageError) as caught:
        count_thresholds([1], [[1, 2]], output=parse_scalar_format("uint2"))
    assert str(caught.value) == "uint2 takes thresholds of shape (channels, 3), not (1, 2)"
