from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.alignment import Aligned, align
from quantizers.table_lookup.wide_float import WideFloat, wide_float

BF16 = wide_float("bf16")
FORMATS = ["bf16", "fp16", "tf32"]


def random_numbers(fmt: WideFloat, count: int, seed: int, *, spread: float = 8) -> npt.NDArray[np.float64]:
    """Numbers of the format, of exponents that spread over about so many binades, some of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count) * 2.0 ** rng.uniform(-spread, 0, count) * (rng.random(count) > 0.05)
    return np.asarray(fmt.round(x), np.float64)


def aligned_in_integers(
    codes: list[int], fmt: WideFloat, bits: int
) -> tuple[list[int], int]:  # what hardware does, in exact arithmetic
    fields = [code >> fmt.mantissa_bits & ((1 << fmt.exponent_bits) - 1) for code in codes]
    shared = max(1, *fields)
    integers = []
    for code, field in zip(codes, fields, strict=True):
        significand = (code & ((1 << fmt.mantissa_bits) - 1)) | (field > 0) << fmt.mantissa_bits
        exact = Fraction(significand) * Fraction(2) ** (max(field, 1) - shared + bits - 2 - fmt.mantissa_bits)
        magnitude = min(round(exact), (1 << (bits - 1)) - 1)  # round() of a Fraction: ties to even
        integers.append(-magnitude if code >> (fmt.bits - 1) else magnitude)
    return integers, shared - fmt.exponent_bias


def test_worked_example() -> None:
    aligned = align([1.0, -0.75, 1.5, 0.3125, 0.0, 2.0**-9], bits=4, block=3)
    assert aligned.codes.tolist() == [4, -3, 6, 5, 0, 0]
    assert aligned.exponents.tolist() == [0, -2]
    assert aligned.unit_exponents.tolist() == [-2, -4]
    assert aligned.values().tolist() == [1.0, -0.75, 1.5, 0.3125, 0.0, 0.0]


def test_ties_go_to_the_even_integer() -> None:
    """In quarters: 4, 2.5, 3.5, -0.5, -1.5, and 7.5 of a bfloat16, which saturates."""
    assert align([1.0, 0.625, 0.875, -0.125, -0.375], bits=4).codes.tolist() == [4, 2, 4, 0, -2]
    assert align([1.875, -1.875, 1.99, 1.75], bits=4).codes.tolist() == [7, -7, 7, 7]


@pytest.mark.parametrize("bits", [4, 5, 7, 8, 12, 16])
@pytest.mark.parametrize("widths", [(3, 2), (2, 4), (4, 3)])
def test_every_pair_of_small_numbers(widths: tuple[int, int], bits: int) -> None:
    fmt = WideFloat(*widths)
    codes = np.flatnonzero(np.isfinite(fmt.values()))
    pairs = np.stack(np.meshgrid(codes, codes, indexing="ij"), axis=-1).reshape(-1, 2)
    aligned = align(fmt.decode(pairs), bits=bits, fmt=fmt)
    expected = [aligned_in_integers(pair, fmt, bits) for pair in pairs.tolist()]
    assert aligned.codes.tolist() == [integers for integers, _ in expected]
    assert aligned.exponents[:, 0].tolist() == [exponent for _, exponent in expected]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bits", [4, 8, 9, 12, 16])
def test_random_blocks(name: str, bits: int) -> None:
    """Codes of all exponents, and of few, so that shifts of every distance come."""
    fmt = wide_float(name)
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << fmt.bits, (200, 7))
    codes[100:] = fmt.encode(random_numbers(fmt, 700, bits).reshape(100, 7))
    codes[~np.isfinite(fmt.decode(codes))] = 0
    aligned = align(fmt.decode(codes), bits=bits, fmt=fmt)
    expected = [aligned_in_integers(block, fmt, bits) for block in codes.tolist()]
    assert aligned.codes.tolist() == [integers for integers, _ in expected]
    assert aligned.exponents[:, 0].tolist() == [exponent for _, exponent in expected]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_error_bound(name: str, bits: int) -> None:
    fmt = wide_float(name)
    x = random_numbers(fmt, 64 * 500, bits).reshape(500, 64)
    aligned = align(x, bits=bits, fmt=fmt)
    error = np.abs(aligned.values() - x)
    half = 2.0 ** (aligned.exponents + 1 - bits)
    largest = (1 << (bits - 1)) - 1
    saturates = np.abs(x) > largest * 2 * half
    assert (error <= half)[~saturates].all()
    assert (error < 2 * half).all()
    assert error.max() > 0
    assert (np.abs(aligned.codes) == largest)[saturates].all()
    # Saturation needs a mantissa, with its hidden one, that is wider than a magnitude.
    assert saturates.any() == (fmt.mantissa_bits + 1 > bits - 1)


def test_subnormal_numbers_are_exact() -> None:
    """All of bfloat16's, with integers wide enough; the exponent is that of the smallest normal number."""
    x = np.arange(-127, 128) * 2.0**-133
    aligned = align(x, bits=9)
    assert aligned.exponents.tolist() == [-126]
    np.testing.assert_array_equal(aligned.values(), x)
    assert align(x, bits=8).codes.tolist()[-3:] == [62, 63, 64]  # of 62.5, 63 and 63.5
    next_to_normal = align([2.0**-126, 2.0**-133, -(2.0**-127)], bits=10)
    assert next_to_normal.codes.tolist() == [256, 2, -128]


def test_extremes() -> None:
    largest = BF16.maximum
    aligned = align([largest, -largest, 2.0**-133], bits=9)
    assert (aligned.codes.tolist(), aligned.exponents.tolist()) == ([255, -255, 0], [127])
    assert aligned.values().tolist() == [largest, -largest, 0.0]


def test_zeros() -> None:
    aligned = align([[0.0, -0.0, 0.0], [0.0, 1.0, 0.0]], bits=8, block=2)
    assert aligned.codes.tolist() == [[0, 0, 0], [0, 64, 0]]
    assert aligned.exponents.tolist() == [[-126, -126], [0, -126]]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_any_length(length: int) -> None:
    """Each block is aligned as it is alone."""
    x = random_numbers(BF16, 3 * length, length).reshape(3, length)
    aligned = align(x, bits=10, block=32)
    assert aligned.codes.shape == x.shape
    assert aligned.exponents.shape == (3, -(-length // 32))
    for row in range(3):
        for index, start in enumerate(range(0, length, 32)):
            alone = align(x[row, start : start + 32], bits=10)
            assert aligned.codes[row, start : start + 32].tolist() == alone.codes.tolist()
            assert aligned.exponents[row, index] == alone.exponents[0]


def test_values_are_first_rounded_to_the_format() -> None:
    x = np.random.default_rng(3).standard_normal(300)
    rounded = x.astype(ml_dtypes.bfloat16)
    first, second = align(x, block=32), align(rounded, block=32)
    assert first.codes.tolist() == second.codes.tolist()
    # 1.998 is 2 in bfloat16, and so shares the exponent 1.
    assert align([1.998]).exponents.tolist() == [1]


def test_integers_are_numbers_too() -> None:
    assert align([3, -200], bits=12).values().tolist() == [3.0, -200.0]


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ([1.0, np.nan], {}, "a block with nan cannot be aligned; it is at position 1"),
        (
            [[1.0, 2.0], [-np.inf, np.nan]],
            {},
            "a block with -inf cannot be aligned; it is at position (1, 0)",
        ),
        (
            [0.0, 0.0, 65520.0],
            {"fmt": "fp16"},
            "65520.0 at position 2 is beyond the largest value of fp16, 65504.0",
        ),
        ([], {}, "values must be a non-empty array of numbers, not float64 of shape (0,)"),
        (1.0, {}, "values must be a non-empty array of numbers, not float64 of shape ()"),
        (["x"], {}, "values must be a non-empty array of numbers, not <U1 of shape (1,)"),
        ([True], {}, "values must be a non-empty array of numbers, not bool of shape (1,)"),
        ([1.0], {"bits": 3}, "bits must be an integer from 4 to 16, not 3"),
        ([1.0], {"bits": 17}, "bits must be an integer from 4 to 16, not 17"),
        ([1.0], {"block": 0}, "block must be an integer from 1 to 2147483647, not 0"),
    ],
)
def test_wrong_arguments(values: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        align(values, **changes)
    assert str(caught.value) == message


def test_values_of_given_codes() -> None:
    codes, exponents = np.array([1, -2, 3]), np.array([0, 4])
    aligned = Aligned(codes=codes, exponents=exponents, bits=8, block=2)
    assert aligned.values().tolist() == [2.0**-6, -(2.0**-5), 3 * 2.0**-2]


def test_torch_is_not_imported() -> None:
    code = "import sys, quantizers.table_lookup.alignment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
