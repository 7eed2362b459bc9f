"""Outliers on both sides split off by thresholds that are found offline, as Oaken does it (arXiv 2503.18599).

The elements of a token fall into three groups: *outer* (the largest and the smallest), *inner* (next to the
middle of the distribution) and *middle* (the rest). What is left of the middle and of the outer elements when
the threshold that they are beyond is subtracted has a narrow range; each group is coded on an even grid over
its own range in this token.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Code, Codec, Field, IntegerArray, same_width, signed
from quantizers.kv_cache.fixed_point import HIGHEST, LOWEST, saturate
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.uniform import (
    MAX_BITS,
    MIN_BITS,
    MINIMUM_BITS,
    SPAN_BITS,
    UniformGroups,
    dequantize,
    quantize,
)

_GROUPS = 3


@dataclass(frozen=True)
class Thresholds:
    """Outer elements are below *outer_low* or above *outer_high*, inner ones in inner_low..inner_high.

    Raises:
        UsageError: they are not 16-bit integers in rising order.
    """

    outer_low: int
    inner_low: int
    inner_high: int
    outer_high: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_range(name, value, LOWEST, HIGHEST)
        if list(astuple(self)) != sorted(astuple(self)):
            msg = f"outer_low <= inner_low <= inner_high <= outer_high must hold, not {astuple(self)}"
            raise UsageError(msg, given=astuple(self), expected=["rising thresholds"])

    @classmethod
    def of(cls, samples: IntegerArray, *, outer: float, inner: float) -> Thresholds:
        """Those that make the fractions *outer* and *inner* of *samples* outer and inner elements.

        Half of the outer elements are above, half below; the inner ones are around the median.

        Raises:
            UsageError: fractions below 0, or of more than 1 together.
        """
        if outer < 0 or inner < 0 or outer + inner > 1:
            msg = (
                f"the fractions of outer and inner elements must be from 0 and at most 1 together, "
                f"not {outer} and {inner}"
            )
            raise UsageError(msg, given=f"{outer}, {inner}", expected=["outer + inner <= 1"])
        places = [outer / 2, 0.5 - inner / 2, 0.5 + inner / 2, 1 - outer / 2]
        return cls(*(int(t) for t in np.quantile(samples, places, method="nearest")))


class SplitOutliers(Codec):
    """Each token in a middle group of *bits* bits and outliers of *outlier_bits*, all its channels together.

    Every element has *bits* bits in a dense array. An outlier keeps the low bits of its code there, and has
    in a sparse list its channel, a bit for its group and the high bits of its code. A token stores how many
    outliers it has, and the minimum and the span of each of its three groups.

    Args:
        channels: of a token.
        thresholds: see :class:`Thresholds`.
        bits: of a code of the middle, 2 to 8.
        outlier_bits: of an outlier, from *bits* to 8.
        outliers: mean fraction of outliers, for :attr:`unit_bits`; what a cache holds is counted.
    """

    def __init__(
        self, *, channels: int, thresholds: Thresholds, outliers: float, bits: int = 4, outlier_bits: int = 5
    ) -> None:
        check_range("bits", bits, MIN_BITS, MAX_BITS)
        check_range("outlier_bits", outlier_bits, bits, MAX_BITS)
        self.channels, self.bits, self.outlier_bits = channels, bits, outlier_bits
        self.thresholds, self.outliers = thresholds, outliers
        self._index_bits = max(1, (channels - 1).bit_length())
        self._count_bits = channels.bit_length()

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        rows = x[:, 0].astype(np.int64)
        group = self._group(rows)
        shifted = saturate(rows - self._offset(rows, group))
        parts = [
            quantize(_only(shifted, group == g), self.bits if g == 0 else self.outlier_bits)
            for g in range(_GROUPS)
        ]
        codes = np.choose(group, [part.codes for part in parts]).astype(np.int64)
        outlier = group > 0
        channel = np.broadcast_to(np.arange(self.channels), rows.shape)
        sparse = [
            (channel, self._index_bits),
            (group - 1, 1),
            (codes >> self.bits, self.outlier_bits - self.bits),
        ]
        return (
            same_width(codes, self.bits),
            same_width(outlier.sum(axis=1, keepdims=True), self._count_bits),
            same_width(np.stack([part.minimum for part in parts], axis=1), MINIMUM_BITS),
            same_width(np.stack([part.span for part in parts], axis=1), SPAN_BITS),
            *(Field(np.where(outlier, v, 0), (width,) * self.channels, outlier) for v, width in sparse),
        )

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        dense, _, minima, spans, channel, which, high = code
        stored = np.zeros(dense.values.shape, np.bool_) if channel.present is None else channel.present
        unit = np.nonzero(stored)[0]
        place = channel.values[stored]
        group = np.zeros(dense.values.shape, np.int64)
        codes = dense.values.copy()
        group[unit, place] = which.values[stored] + 1
        codes[unit, place] |= high.values[stored] << self.bits
        shifted = np.zeros_like(codes)
        for g in range(_GROUPS):
            mine = group == g
            bits = self.bits if g == 0 else self.outlier_bits
            minimum = signed(minima.values[:, g], MINIMUM_BITS).astype(np.int16)
            span = spans.values[:, g].astype(np.uint16)
            groups = UniformGroups(np.where(mine, codes, 0).astype(np.uint8), minimum, span)
            shifted = np.where(mine, dequantize(groups, bits), shifted)
        return saturate(self._restored(shifted, group))[:, None]

    @property
    def unit_bits(self) -> float:
        an_outlier = self._index_bits + 1 + self.outlier_bits - self.bits
        of_token = self._count_bits + _GROUPS * (MINIMUM_BITS + SPAN_BITS)
        return self.channels * (self.bits + self.outliers * an_outlier) + of_token

    def _group(self, rows: IntegerArray) -> npt.NDArray[np.int64]:
        """0 middle, 1 outer, 2 inner."""
        t = self.thresholds
        outer = (rows < t.outer_low) | (rows > t.outer_high)
        inner = (rows >= t.inner_low) & (rows <= t.inner_high) & ~outer
        return np.where(outer, 1, np.where(inner, 2, 0))

    def _offset(self, rows: IntegerArray, group: IntegerArray) -> npt.NDArray[np.int64]:
        """What is subtracted from each element: the threshold on its side, so its sign tells the side."""
        t = self.thresholds
        middle = np.where(rows > t.inner_high, t.inner_high, t.inner_low)
        outer = np.where(rows > t.outer_high, t.outer_high, t.outer_low)
        return np.choose(group, [middle, outer, np.zeros_like(rows)])

    def _restored(self, shifted: IntegerArray, group: IntegerArray) -> npt.NDArray[np.int64]:
        t = self.thresholds
        middle = shifted + np.where(shifted > 0, t.inner_high, t.inner_low)
        outer = shifted + np.where(shifted > 0, t.outer_high, t.outer_low)
        return np.choose(group, [middle, outer, shifted])


def _only(rows: IntegerArray, mine: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """*rows* with the elements that are not *mine* replaced by one that is (0 where none is)."""
    first = np.take_along_axis(rows, mine.argmax(axis=1)[:, None], axis=1)
    some = mine.any(axis=1, keepdims=True)
    return np.where(mine, rows, np.where(some, first, 0))
