"""How wide an accumulator has to be."""

from __future__ import annotations

import numpy as np

from hw._checks import check_positive
from hw.arith.decoder import check_format
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat


def exact_accumulator_bits(weights: ScalarFormat, activations: ScalarFormat, dot_length: int) -> int:
    """The signed width in which no sum of *dot_length* products of any codes overflows.

    ``bit_length(n * max|w| * max|a|) + 1``, the magnitudes from the value tables, in units of the
    least significant bits of the formats.

    Raises:
        UsageError: a format with codes that are not numbers, or *dot_length* not positive.
    """
    check_format("weights", weights)
    check_format("activations", activations)
    check_positive("dot_length", dot_length)
    return (dot_length * largest_magnitude(weights) * largest_magnitude(activations)).bit_length() + 1


def anchor_accumulator_bits(weights: ScalarFormat, activations: ScalarFormat, dot_length: int) -> int:
    """The width rule of arXiv 2311.12359, for comparison; up to two bits above the exact one.

    Integers of ra and rb bits: ``ra + rb + ceil(log2 n) + 1``. Minifloats with ea, eb exponent and
    ma, mb mantissa bits: ``2**ea + ma + 2**eb + mb + ceil(log2 n) - 1``.

    Raises:
        UsageError: *dot_length* is not positive, or the formats are not both integers or both
            minifloats: the study has no rule for those.
    """
    check_positive("dot_length", dot_length)
    growth = (dot_length - 1).bit_length()
    match weights, activations:
        case IntegerFormat(), IntegerFormat():
            return weights.bits + activations.bits + growth + 1
        case MinifloatFormat(), MinifloatFormat():
            return _fixed_point_bits(weights) + _fixed_point_bits(activations) + growth - 1
        case _:
            msg = (
                "the anchor study's width rule needs two integers or two minifloats, "
                f"not {weights} and {activations}"
            )
            raise UsageError(msg, given=f"{weights}, {activations}", expected=["int8, int8", "e4m3, e4m3"])


def largest_magnitude(fmt: ScalarFormat) -> int:
    """The largest magnitude of a finite value, as an integer count of ``2**fmt.grid.lsb_exponent``."""
    largest = max(abs(fmt.minimum), fmt.maximum)
    return int(np.ldexp(largest, -fmt.grid.lsb_exponent))


def fixed_point_range(fmt: ScalarFormat) -> tuple[int, int]:
    """Smallest and largest finite value, as integer counts of ``2**fmt.grid.lsb_exponent``."""
    low, high = (int(np.ldexp(bound, -fmt.grid.lsb_exponent)) for bound in (fmt.minimum, fmt.maximum))
    return low, high


def product_range(weights: ScalarFormat, activations: ScalarFormat) -> tuple[int, int]:
    """Smallest and largest product of two codes, in units of the least significant bits."""
    products = [w * a for w in fixed_point_range(weights) for a in fixed_point_range(activations)]
    return min(products), max(products)


def _fixed_point_bits(fmt: MinifloatFormat) -> int:
    return (1 << fmt.exponent_bits) + fmt.mantissa_bits
