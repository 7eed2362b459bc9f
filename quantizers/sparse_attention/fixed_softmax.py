"""A softmax of integers without a division, for hardware: the sum is divided by in the exponent.

Scores t are fixed-point binary logarithms. With m the largest of them::

    S = sum_j E(m - t_j),   L = m + log2(S),   weight_j = E(L - t_j),   E(x) = 2**-x

which is the softmax in base two. E and log2 are tables with linear interpolation between their entries::

    value(a, r) = table[a] + floor((table[a+1] - table[a]) * r / 2**rest)

where a is the upper *table_bits* of a fraction and r the *rest* below. Everything is an integer operation
with one result; nothing depends on the order of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.sparse_attention.settings import Integers
from quantizers.table_lookup.planes import check_integer

_RANGES = {
    "score_bits": (4, 16),
    "fraction_bits": (2, 12),
    "table_bits": (1, 6),
    "mantissa_bits": (4, 20),
    "weight_bits": (4, 32),
}

LOG_GUARD_BITS = 4
"""Of the logarithm, below its last bit: it is rounded once, to nearest, ties up."""

LOG_REST_BITS = 7
"""Of the sum, between the table of the logarithm and what is dropped."""


@dataclass(frozen=True, kw_only=True)
class FixedSoftmax:
    """Widths of the softmax.

    Attributes:
        score_bits: of a score, signed; 4 to 16.
        fraction_bits: of them below the binary point; 2 to 12, fewer than *score_bits*.
        table_bits: a table has two to this power entries; 1 to 6, at most *fraction_bits*.
        mantissa_bits: of a power of two between 0.5 and 1; 4 to 20, at most *weight_bits*.
        weight_bits: of a weight, below the binary point; what is smaller is dropped. 4 to 32.

    Raises:
        UsageError: a width is out of range.
    """

    score_bits: int = 16
    fraction_bits: int = 8
    table_bits: int = 4
    mantissa_bits: int = 16
    weight_bits: int = 24

    def __post_init__(self) -> None:
        for field in fields(self):
            check_integer(field.name, getattr(self, field.name), *_RANGES[field.name])
        self._check_at_most("fraction_bits", self.fraction_bits, self.score_bits - 1)
        self._check_at_most("table_bits", self.table_bits, self.fraction_bits)
        self._check_at_most("mantissa_bits", self.mantissa_bits, self.weight_bits)

    def _check_at_most(self, name: str, value: int, limit: int) -> None:
        if value > limit:
            msg = f"{name} must be at most {limit} beside the other widths, not {value}"
            raise UsageError(msg, given=value, expected=[str(limit)])

    @property
    def rest_bits(self) -> int:
        """Of a fraction, below the table's."""
        return self.fraction_bits - self.table_bits

    @property
    def score_limit(self) -> float:
        """Scores saturate below this binary logarithm."""
        return float(np.ldexp(1.0, self.score_bits - 1 - self.fraction_bits))

    @cached_property
    def exp_table(self) -> Integers:
        """``round(2**(mantissa_bits - a / 2**table_bits))`` for a = 0 to ``2**table_bits``."""
        places = np.arange((1 << self.table_bits) + 1) / (1 << self.table_bits)
        return np.rint(np.exp2(self.mantissa_bits - places)).astype(np.int64)

    @cached_property
    def log_table(self) -> Integers:
        """``round(2**(fraction_bits + guard) * log2(1 + a / 2**table_bits))``, likewise."""
        places = np.arange((1 << self.table_bits) + 1) / (1 << self.table_bits)
        unit = 1 << (self.fraction_bits + LOG_GUARD_BITS)
        return np.rint(unit * np.log2(1 + places)).astype(np.int64)

    def power(self, x: ArrayLike) -> Integers:
        """``2**-x`` in units of ``2**-weight_bits`` for x >= 0 in units of ``2**-fraction_bits``, rounded
        down once behind the interpolation."""
        distance = np.asarray(x, np.int64)
        fraction = distance & ((1 << self.fraction_bits) - 1)
        mantissa = _interpolated(self.exp_table, fraction, self.rest_bits)
        shift = np.minimum(distance >> self.fraction_bits, self.weight_bits + 1)
        return (mantissa << (self.weight_bits - self.mantissa_bits)) >> shift

    def logarithm(self, total: ArrayLike) -> Integers:
        """``log2(total)`` in units of ``2**-fraction_bits`` for sums, at least 1.0, in units of weights.

        Of the bits below the leading one, the first ``table_bits + LOG_REST_BITS`` count.
        """
        value = np.asarray(total, np.int64)
        exponent = np.frexp(value.astype(np.float64))[1].astype(np.int64) - 1
        # Sums near a power of two that float64 would round up.
        exponent -= (value >> np.minimum(exponent, 62)) == 0
        kept = self.table_bits + LOG_REST_BITS
        padded = (value << kept) >> exponent
        fraction = padded & ((1 << kept) - 1)
        guarded = _interpolated(self.log_table, fraction, LOG_REST_BITS)
        rounded = (guarded + (1 << (LOG_GUARD_BITS - 1))) >> LOG_GUARD_BITS
        return ((exponent - self.weight_bits) << self.fraction_bits) + rounded

    def weights(self, scores: ArrayLike, visible: NDArray[np.bool_]) -> Integers:
        """The softmax, added up over the heads.

        Args:
            scores: integers of *score_bits*, shape (heads, queries, keys).
            visible: bool, shape (queries, keys): which keys count.

        Returns:
            In units of ``2**-weight_bits``, at most 1.0 a head; int64 (queries, keys), zero where a key does
            not count.
        """
        t = np.asarray(scores, np.int64)
        least = -(1 << (self.score_bits - 1))
        largest = np.where(visible, t, least).max(axis=-1, keepdims=True, initial=least)
        total = np.where(visible, self.power(np.maximum(largest - t, 0)), 0).sum(axis=-1, keepdims=True)
        # A query without keys has no sum.
        offset = largest + self.logarithm(np.maximum(total, 1 << self.weight_bits))
        summed: Integers = np.where(visible, self.power(np.maximum(offset - t, 0)), 0).sum(axis=0)
        return summed


def _interpolated(table: Integers, fraction: Integers, rest_bits: int) -> Integers:
    place, rest = fraction >> rest_bits, fraction & ((1 << rest_bits) - 1)
    return table[place] + (((table[place + 1] - table[place]) * rest) >> rest_bits)
