import numpy as np
import pytest

from hw.float_mac import FloatMultiplyAccumulate
from hw.reference import float_accumulate, multiply_accumulate
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

PAIRS = ["e4m3 e4m3", "e5m2 e5m2", "e2m1 e3m2", "e4m3 int8", "ternary e2m3"]


def dots(pair, count=50, length=100):
    formats = [parse_scalar_format(name) for name in pair.split()]
    rng = np.random.default_rng(5)
    codes = [rng.choice(np.flatnonzero(np.isfinite(fmt.values())), (count, length)) for fmt in formats]
    names = ("weights", "activations")
    return codes, dict(zip(names, formats, strict=True))


def first_exponent(formats):
    return FloatMultiplyAccumulate(**formats, dot_length=1).first_exponent


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("guard_bits", [0, 3, 8])
def test_the_bound(pair, guard_bits):
    """Half a unit for each pair, and one for each time the exponent rose after the first."""
    codes, formats = dots(pair)
    exact = multiply_accumulate(*codes, **formats)
    significands, exponents = float_accumulate(*codes, **formats, guard_bits=guard_bits)
    largest = np.zeros(len(exponents), dtype=np.int64)
    rises = np.zeros(len(exponents), dtype=np.int64)
    for end in range(1, codes[0].shape[1] + 1):
        _, reached = float_accumulate(codes[0][:, :end], codes[1][:, :end], **formats, guard_bits=0)
        rises += (reached > largest) & (end > 1)
        largest = reached
    off = 0
    for s, e, sum_, r in zip(significands, exponents, exact, rises, strict=True):
        unit = 1 << (int(e) - first_exponent(formats))
        error = abs(int(s) * unit - (int(sum_) << guard_bits))
        assert error <= (codes[0].shape[1] / 2 + int(r)) * unit
        off += error
    assert off > 0 or guard_bits > 0


@pytest.mark.parametrize(("pair", "guard_bits"), [("e4m3 e4m3", 28), ("e2m1 e3m2", 8), ("e4m3 int8", 14)])
def test_nothing_is_lost_with_guard_bits_for_all_exponents(pair, guard_bits):
    codes, formats = dots(pair)
    significands, exponents = float_accumulate(*codes, **formats, guard_bits=guard_bits)
    shifts = exponents - first_exponent(formats)
    values = [int(s) << int(k) for s, k in zip(significands, shifts, strict=True)]
    exact = multiply_accumulate(*codes, **formats)
    assert values == [int(total) << guard_bits for total in exact]


def test_rounding_and_truncation():
    """1 * 2**6 and 1: with one guard bit, 1/64 of the larger is a quarter unit and is lost."""
    fmt = parse_scalar_format("e3m0")
    arguments = {"weights": fmt, "activations": fmt}
    # e3m0: code k is 2**(k-1) LSBs, code 0 is zero; exponents count from 1, so a product of codes (k, 1) has k + 1.
    sums = [
        float_accumulate(w, [1, 1], **arguments, guard_bits=1)
        for w in ([7, 1], [7, 6], [7, 5], [7, 4], [1, 7], [5, 7], [15, 4])
    ]
    assert [(int(s), int(e)) for s, e in sums] == [(2, 8), (3, 8), (3, 8), (2, 8), (2, 8), (2, 8), (-2, 8)]


def test_lengths_must_agree():
    fmt = parse_scalar_format("e4m3")
    with pytest.raises(UsageError) as caught:
        float_accumulate([1, 2], [1], weights=fmt, activations=fmt, guard_bits=0)
    assert (
        str(caught.value)
        == "codes must agree in the length of their last axis, not have shapes (2,) and (1,)"
    )
