"""Accumulator widths."""

from __future__ import annotations

from hw.arith._shapes import check_positive
from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat


def largest_magnitude(fmt: ScalarFormat) -> int:
    return max(abs(int(fmt.minimum * 2.0**-fmt.grid.lsb_exponent)), int(fmt.maximum * 2.0**-fmt.grid.lsb_exponent))


def exact_accumulator_bits(weights: ScalarFormat, activations: ScalarFormat, dot_length: int) -> int:
    check_positive("dot_length", dot_length)
    return (dot_length * largest_magnitude(weights) * largest_magnitude(activations)).bit_length() + 1
