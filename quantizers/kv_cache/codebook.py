"""Vectors of nearly normal coefficients as codes of a fixed codebook and one scale each, in integers.

The codebook is that of S. P. Lloyd, "Least squares quantization in PCM" (1957), and J. Max, "Quantizing for
minimum distortion" (1960), for a normal density. It is relative to the mean magnitude of a vector, which is
``sqrt(2 / pi)`` standard deviations and takes no multiplication; so it is the same for all vectors, a table.

The magnitude of a coefficient w is w, or ``-1 - w`` where w is negative (see `rotation`). Of d coefficients:

    sum     a = sum of the magnitudes, rounded to a small float: the scale S;
    code    of b bits: the sign above b - 1 bits, the number of thresholds, ``floor(T[j] * S / 2**F)``, that
            the magnitude reaches; of a negative coefficient all bits are complemented, so that the codes
            are in the order of the coefficients;
    level   ``2 * floor(C[j] * S / 2**(F + 1)) + 1``, the odd integer nearest to ``C[j] * S / 2**F``, with the
            sign; 0 where S is 0.

T and C are integers: thresholds and levels of the codebook times ``2**F * sqrt(pi / 2) / d``.

Where coefficients of a vector have codes of several widths, all are the highest bits of codes of the *finest*
codebook, so that one search finds them all: of every second threshold of Lloyd's and Max's codebook, that of
one bit less loses less than 1 % (4 bits of 5) to 4 % (2 bits of 5) more than its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.integers import check_integers, check_range

MIN_BITS, MAX_BITS = 1, 6
"""Of a code."""

MAX_VECTOR = 4096
"""Coefficients that share a scale."""

MAX_MAGNITUDE = (1 << 26) - 1
"""Of a coefficient."""

DEFAULT_FRACTION_BITS = 7
"""Bits of a threshold below the mean magnitude: 0.2 % of the distortion of 4 bits."""

DEFAULT_SCALE_BITS = 8

IntegerArray = npt.NDArray[Any]

_NORMAL = NormalDist()
_TOLERANCE = 1e-9
_CHUNK = 1 << 17


@dataclass(frozen=True)
class NormalCodebook:
    """The half at or above zero of the codebook of least squares of the unit normal density.

    Attributes:
        thresholds: between neighbouring levels, ascending; 0, the lowest of all, is left out.
        levels: one more, ascending.
    """

    thresholds: tuple[float, ...]
    levels: tuple[float, ...]

    @property
    def distortion(self) -> float:
        """Mean squared error: one less the mean square of the levels, which are centroids."""
        bounds = (0.0, *self.thresholds, math.inf)
        shares = np.diff([1.0 if math.isinf(t) else _NORMAL.cdf(t) for t in bounds])
        return float(1 - 2 * np.sum(shares * np.square(self.levels)))


@lru_cache(maxsize=MAX_BITS)
def normal_codebook(bits: int) -> NormalCodebook:
    """By Lloyd's method I: thresholds midway between levels, levels at the centroids of their intervals.

    Starts from the point density of P. F. Panter and W. Dite (1951), that of a normal distribution of
    variance 3, and ends where no level moves by 1e-9 any more.

    Raises:
        UsageError: *bits* is not 1 to 6.
    """
    check_range("bits", bits, MIN_BITS, MAX_BITS)
    count = 1 << (bits - 1)
    wide = NormalDist(0, math.sqrt(3))
    levels = np.array([wide.inv_cdf(0.5 + (index + 0.5) / (2 * count)) for index in range(count)])
    moved = math.inf
    while moved > _TOLERANCE:
        thresholds = (levels[1:] + levels[:-1]) / 2
        centroids = _centroids(thresholds)
        moved, levels = float(np.abs(centroids - levels).max()), centroids
    return NormalCodebook(tuple(((levels[1:] + levels[:-1]) / 2).tolist()), tuple(levels.tolist()))


def _centroids(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    density = [_NORMAL.pdf(0.0), *map(_NORMAL.pdf, thresholds), 0.0]
    below = [0.5, *map(_NORMAL.cdf, thresholds), 1.0]
    return np.asarray(-np.diff(density) / np.diff(below))


@lru_cache(maxsize=MAX_BITS**2)
def nested_codebook(bits: int, finest: int) -> NormalCodebook:
    """The thresholds that the first *bits* bits of a code of *finest* bits tell apart, with their centroids.

    Raises:
        UsageError: *bits* is not 1 to *finest*, or that not at most 6.
    """
    check_range("finest", finest, MIN_BITS, MAX_BITS)
    check_range("bits", bits, MIN_BITS, finest)
    own = normal_codebook(finest)
    if bits == finest:
        return own
    step = 1 << (finest - bits)
    thresholds = own.thresholds[step - 1 :: step]
    return NormalCodebook(thresholds, tuple(_centroids(np.array(thresholds)).tolist()))


@dataclass(frozen=True, kw_only=True)
class ScaleFormat:
    """Small floats without sign for sums of magnitudes; their codes are in the order of their values.

    A code is an exponent e above m bits of mantissa f, and stands for ``f * 2**unit`` where e is 0, else
    for ``(2**m + f) * 2**(unit + e - 1)``: a minifloat without sign, infinity or NaN.

    Attributes:
        exponent_bits: 2 to 5.
        mantissa_bits: 1 to 12.
        unit: log2 of the smallest scale above zero, 0 to 32.

    Raises:
        UsageError: an attribute out of range.
    """

    exponent_bits: int = 4
    mantissa_bits: int = 4
    unit: int = 0

    def __post_init__(self) -> None:
        check_range("exponent_bits", self.exponent_bits, 2, 5)
        check_range("mantissa_bits", self.mantissa_bits, 1, 12)
        check_range("unit", self.unit, 0, 32)

    @classmethod
    def covering(cls, largest: int, *, bits: int = DEFAULT_SCALE_BITS, exponent_bits: int = 4) -> ScaleFormat:
        """The format of so many bits with the smallest unit that reaches *largest*.

        Raises:
            UsageError: there is none.
        """
        mantissa_bits = bits - exponent_bits
        for unit in range(33):
            fmt = cls(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, unit=unit)
            if fmt.largest >= largest:
                return fmt
        msg = f"no scale of {bits} bits reaches {largest}; expected at most {fmt.largest}"
        raise UsageError(msg, given=largest, expected=[f"at most {fmt.largest}"])

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.exponent_bits + self.mantissa_bits

    @property
    def largest(self) -> int:
        """Largest scale."""
        return int(self.decode(np.array((1 << self.bits) - 1)))

    def encode(self, sums: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Codes of the nearest scales, ties to the even code; larger sums get the largest one.

        Args:
            sums: integers of at least 0, below 2**62, of any shape.

        Raises:
            UsageError: something else.
        """
        array = np.asarray(sums)
        check_integers("sums", array, 0, (1 << 62) - 1)
        values = np.minimum(array.astype(np.int64), self.largest)
        # The position of the leading one; float64 may round up to it, which the minimum corrects.
        length = np.frexp(values.astype(np.float64))[1].astype(np.int64)
        length -= (values >> np.maximum(length - 1, 0) == 0) & (length > 0)
        exponents = np.maximum(length - self.mantissa_bits - 1, self.unit)
        half = (np.int64(1) << exponents) >> 1
        floor = values >> exponents
        steps = np.where(half > 0, (values + half - 1 + (floor & 1)) >> exponents, floor)
        return np.minimum(((exponents - self.unit) << self.mantissa_bits) + steps, (1 << self.bits) - 1)

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The scales of codes, of their shape.

        Raises:
            UsageError: codes that are not integers from 0 to ``2**bits - 1``.
        """
        significands, shifts = self.parts(codes)
        return significands << shifts

    def parts(self, codes: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Scales as integers of ``mantissa_bits + 1`` bits, and by how many bits these are shifted up.

        Raises:
            UsageError: as :meth:`decode`.
        """
        array = np.asarray(codes)
        check_integers("codes", array, 0, (1 << self.bits) - 1)
        array = array.astype(np.int64)
        exponents, fractions = array >> self.mantissa_bits, array & ((1 << self.mantissa_bits) - 1)
        significands = fractions + (np.minimum(exponents, 1) << self.mantissa_bits)
        return significands, np.maximum(exponents - 1, 0) + self.unit


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Codes of *bits* bits for vectors of *size* coefficients, see the module's description.

    Attributes:
        bits: 1 to 6.
        size: coefficients whose magnitudes the scale is the sum of, 1 to 4096.
        fraction_bits: of the constants, 4 to 12, as those of a vector of one coefficient.
        finest: bits of the codes of which these are the highest bits; by default *bits*.

    Raises:
        UsageError: an attribute out of range.
    """

    bits: int
    size: int
    fraction_bits: int = DEFAULT_FRACTION_BITS
    finest: int | None = None

    def __post_init__(self) -> None:
        check_range("bits", self.bits, MIN_BITS, MAX_BITS)
        check_range("size", self.size, 1, MAX_VECTOR)
        check_range("fraction_bits", self.fraction_bits, 4, 12)
        if self.finest is not None:
            check_range("finest", self.finest, self.bits, MAX_BITS)

    @property
    def shift(self) -> int:
        """F: the constants are in units of ``2**-F`` of the scale."""
        return self.fraction_bits + (self.size - 1).bit_length()

    @cached_property
    def thresholds(self) -> tuple[int, ...]:
        """T: ``2**(bits - 1) - 1`` integers, ascending."""
        return self._constants(self._normal.thresholds)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """C: ``2**(bits - 1)`` integers, ascending."""
        return self._constants(self._normal.levels)

    @property
    def _normal(self) -> NormalCodebook:
        return nested_codebook(self.bits, self.finest or self.bits)

    def _constants(self, values: tuple[float, ...]) -> tuple[int, ...]:
        factor = math.ldexp(math.sqrt(math.pi / 2) / self.size, self.shift)
        return tuple(round(value * factor) for value in values)

    def quantize(self, w: npt.ArrayLike, scales: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Codes of coefficients.

        Args:
            w: integers of magnitude at most :data:`MAX_MAGNITUDE`, shape (..., n); n may differ from *size*.
            scales: of the vectors, as decoded, shape (...).

        Raises:
            UsageError: an argument is of the wrong kind, shape or range.
        """
        coefficients = np.asarray(w)
        check_integers("w", coefficients, -MAX_MAGNITUDE, MAX_MAGNITUDE)
        factors = _checked_scales(scales, coefficients.shape[:-1])
        rows = coefficients.reshape(-1, coefficients.shape[-1])
        out = np.empty(rows.shape, np.uint8)
        limits = factors.reshape(-1, 1) * np.array(self.thresholds, np.int64) >> self.shift
        limits = np.minimum(limits, MAX_MAGNITUDE + 1).astype(np.int32)
        step = max(_CHUNK // max(rows.shape[-1], 1), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step].astype(np.int32)
            sign = part >> 31
            part ^= sign
            codes = out[start : start + step]
            codes[...] = 1 << (self.bits - 1)
            for limit in limits[start : start + step].T:
                codes += part >= limit[:, None]
            codes ^= (sign & ((1 << self.bits) - 1)).astype(np.uint8)
        return out.reshape(coefficients.shape)

    def dequantize(self, codes: npt.ArrayLike, scales: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Coefficients from codes ``(..., n)`` and the scales of the vectors ``(...)``.

        Raises:
            UsageError: an argument is of the wrong kind, shape or range.
        """
        array = np.asarray(codes)
        check_integers("codes", array, 0, (1 << self.bits) - 1)
        factors = _checked_scales(scales, array.shape[:-1]).reshape(-1, 1)
        rows = array.reshape(-1, array.shape[-1])
        out = np.empty(rows.shape, np.int32)
        positive = 2 * (factors * np.array(self.levels, np.int64) >> (self.shift + 1)) + 1
        positive = np.where(factors == 0, 0, positive)
        if positive.size and positive.max() > np.iinfo(np.int32).max:
            msg = f"a scale of {factors.max()} gives coefficients beyond 32 bits"
            raise UsageError(msg, given=factors.max())
        table = np.concatenate([-positive[:, ::-1], positive], axis=1).astype(np.int32)
        step = max(_CHUNK // max(rows.shape[-1], 1), 1)
        for start in range(0, len(rows), step):
            part = table[start : start + step]
            places = np.arange(0, part.size, 1 << self.bits)[:, None] + rows[start : start + step]
            np.take(part, places, out=out[start : start + step], mode="clip")
        return out.reshape(array.shape)


def magnitude_sums(w: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Sums along the last axis of the magnitudes of integers: w, or ``-1 - w`` where w is negative."""
    array = np.asarray(w)
    check_integers("w", array, -MAX_MAGNITUDE - 1, MAX_MAGNITUDE)
    return np.asarray((array ^ (array >> (8 * array.itemsize - 1))).sum(axis=-1, dtype=np.int64))


def _checked_scales(scales: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    array = np.asarray(scales)
    check_integers("scales", array, 0, (1 << 48) - 1)
    if array.shape != shape:
        msg = f"there must be a scale a vector, shape {shape}, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[str(shape)])
    return array.astype(np.int64)
