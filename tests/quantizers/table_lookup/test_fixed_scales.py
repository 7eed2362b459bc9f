from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.fixed_scales import FixedScales, fixed_scales
from quantizers.table_lookup.weights import GroupedWeights, quantize_groups, quantize_ternary


def weights_with(scales: list[list[float]]) -> GroupedWeights:
    half = np.array(scales, np.float16)
    shape = half.shape
    return GroupedWeights(
        codes=np.zeros(shape, np.uint8), bits=2, scales=half, zeros=np.zeros(shape, np.uint8), block=1
    )


def test_by_hand() -> None:
    """The largest scale sets the unit, 1/4; ties go to the even multiple."""
    scales = fixed_scales(weights_with([[3.75, 0.375], [0.625, 0.125]]), 4)
    assert (scales.multiples.tolist(), scales.exponent) == ([[15, 2], [2, 0]], -2)
    assert scales.values.tolist() == [[3.75, 0.5], [0.5, 0.0]]
    assert scales.error_bound == 0.125


@pytest.mark.parametrize(
    ("largest", "multiple", "exponent"),
    [(15.0, 15, 0), (15.25, 15, 0), (15.5, 8, 1), (16.0, 8, 1), (1.0, 8, -3)],
)
def test_unit(largest: float, multiple: int, exponent: int) -> None:
    """The smallest in which the largest scale, rounded, has four bits."""
    scales = fixed_scales(weights_with([[largest]]), 4)
    assert (scales.multiples.tolist(), scales.exponent) == ([[multiple]], exponent)


@pytest.mark.parametrize("bits", range(2, 17))
def test_error_is_at_most_the_bound(bits: int) -> None:
    drawn = np.exp(np.random.default_rng(bits).normal(-4, 1.5, (20, 30))).astype(np.float16)
    scales = fixed_scales(weights_with(drawn.tolist()), bits)
    assert scales.multiples.max() < 2**bits
    error = np.abs(scales.values - drawn.astype(np.float64)).max()
    largest = float(drawn.max())
    assert error <= scales.error_bound <= largest * 2.0**-bits * (1 + 2.0**-bits)


def test_rounding_is_that_of_exact_numbers() -> None:
    """Every float16 between the powers of two of one binade and the next: the nearest multiple, ties to even."""
    drawn = np.arange(0x3800, 0x4000, 7, dtype=np.uint16).view(np.float16)
    scales = fixed_scales(weights_with([drawn.tolist()]), 8)
    unit = Fraction(2) ** scales.exponent
    assert scales.multiples[0].tolist() == [round(Fraction(float(scale)) / unit) for scale in drawn]


def test_smallest_scales() -> None:
    tiny = float(np.finfo(np.float16).smallest_subnormal)
    scales = fixed_scales(weights_with([[tiny, tiny * 3]]), 12)
    assert scales.values.tolist() == [[tiny, tiny * 3]]


def test_one_scale_for_the_matrix() -> None:
    weights = quantize_ternary(np.random.default_rng(1).standard_normal((3, 8)))
    scales = fixed_scales(weights)
    assert scales.multiples.shape == (3, 1)
    # A float16 has 11 bits.
    assert scales.values.tolist() == weights.scale_matrix.tolist()


def relative_error(weights: GroupedWeights, scales: FixedScales, vector: np.ndarray) -> float:
    """Of the product with the fixed-point scales, against that with the scales themselves."""
    columns = np.arange(weights.codes.shape[1]) // weights.block
    exact, fixed = weights.scale_matrix[:, columns], scales.values[:, columns]
    reference = weights.dequantized() @ vector
    values = (weights.dequantized() / exact * fixed) @ vector
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


def errors_of_products(matrix: np.ndarray, symmetric: bool) -> dict[int, float]:
    """By bits of the scales, of four-bit weights in blocks of 128."""
    weights = quantize_groups(matrix, 4, block=128, symmetric=symmetric)
    vector = np.random.default_rng(9).integers(-127, 128, matrix.shape[1]).astype(np.float64)
    scales = {bits: fixed_scales(weights, bits) for bits in range(8, 17)}
    smallest = float(weights.scale_matrix.min())
    errors = {bits: relative_error(weights, fixed, vector) for bits, fixed in scales.items()}
    assert all(error <= scales[bits].error_bound / smallest for bits, error in errors.items())
    return errors


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_of_products(symmetric: bool) -> None:
    """Normal weights, whose scales are within a factor of three: with two bits more than a float16 exact."""
    errors = errors_of_products(np.random.default_rng(7).standard_normal((256, 1024)), symmetric)
    assert 2e-3 < errors[8] < 5e-3
    assert 0.4 < errors[9] / errors[8] < 0.62
    assert 1e-4 < errors[11] < 1e-3
    assert errors[13] == errors[16] == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_of_products_of_uneven_rows(symmetric: bool) -> None:
    """Scales of rows over three decades: each bit halves the error."""
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((256, 1024)) * np.exp(rng.normal(0, 1, (256, 1)))
    errors = errors_of_products(matrix, symmetric)
    assert 2e-3 < errors[8] < 2e-2
    for bits in range(8, 14):
        assert 0.3 < errors[bits + 1] / errors[bits] < 0.7
    assert 0 < errors[16] < 5e-5


def test_bound_of_products() -> None:
    rng = np.random.default_rng(8)
    weights = quantize_groups(rng.standard_normal((20, 96)), 3, block=16)
    vector = rng.integers(-127, 128, 96).astype(np.float64)
    scales = fixed_scales(weights, 8)
    steps = weights.dequantized() / np.repeat(weights.scale_matrix, 16, axis=1)
    sums = (steps * vector).reshape(20, 6, 16).sum(axis=2)
    exact = (sums * weights.scale_matrix).sum(axis=1)
    error = np.abs((sums * scales.values).sum(axis=1) - exact)
    bound = scales.error_bound * np.abs(sums).sum(axis=1)
    assert (error <= bound).all()
    assert (error > bound / 100).any()


@pytest.mark.parametrize("bits", [1, 17, 8.0])
def test_wrong_bits(bits: float) -> None:
    with pytest.raises(UsageError) as caught:
        fixed_scales(weights_with([[1.0]]), bits)  # type: ignore[arg-type]
    assert str(caught.value) == f"bits must be an integer from 2 to 16, not {bits!r}"
