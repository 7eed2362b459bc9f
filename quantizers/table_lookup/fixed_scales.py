"""The float16 scales of grouped weights as fixed-point numbers, for datapaths of integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantizers.formats import IntegerFormat
from quantizers.table_lookup.planes import check_integer
from quantizers.table_lookup.weights import GroupedWeights

MIN_BITS, MAX_BITS = 2, 16
"""Of a fixed-point scale. A float16 has 11; beyond these only the smaller scales gain."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FixedScales:
    """Scales that are integer multiples of one power of two.

    Attributes:
        multiples: in [0, 2**bits), int64, shape (rows, blocks).
        exponent: the unit is 2**exponent.
        bits: of a multiple.
    """

    multiples: NDArray[np.int64]
    exponent: int
    bits: int

    @property
    def values(self) -> NDArray[np.float64]:
        """The scales, shape (rows, blocks)."""
        return np.ldexp(self.multiples.astype(np.float64), self.exponent)

    @property
    def error_bound(self) -> float:
        """What a scale is off by at most, half a unit: at most 2**-bits * (1 + 2**-bits) of the largest."""
        return float(np.ldexp(0.5, self.exponent))


def fixed_scales(weights: GroupedWeights, bits: int = 12) -> FixedScales:
    """The nearest fixed-point numbers, ties to even, in the smallest unit in which the largest scale fits.

    A product with these scales is off by at most ``error_bound * sum over blocks of
    |sum over the block of (u - zero) * x|``. A scale of half a unit or less becomes 0.

    Args:
        weights: whose scales they are.
        bits: of a multiple, 2 to 16.

    Raises:
        UsageError: *bits* is out of range.
    """
    check_integer("bits", bits, MIN_BITS, MAX_BITS)
    fmt = IntegerFormat(bits, signed=False)
    largest = float(weights.scale_matrix.max())
    exponent = int(np.frexp(largest)[1]) - bits
    if largest >= np.ldexp(fmt.maximum + 0.5, exponent):
        exponent += 1
    multiples = fmt.encode(np.ldexp(weights.scale_matrix, -exponent))
    return FixedScales(multiples=multiples, exponent=exponent, bits=bits)
