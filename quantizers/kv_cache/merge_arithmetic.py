"""Merging the vectors of two layers into one direction and two magnitudes, in integers.

A. Liu et al., "MiniCache", arXiv 2405.14366, equation 3: with ``u = x / |x|``, ``v = y / |y|`` and the angle
Omega between them, the direction is ``(sin((1-t) Omega) u + sin(t Omega) v) / sin(Omega)``. Here as digit
recurrences of n bits (square roots and quotients, rounded down) and two small tables, so that the hardware
(`hw.kv_cache`) and this module give the same bits.

Both weights are found through ``h = cos(Omega/2) = sqrt((1 + cos Omega) / 2)``: since ``sin(Omega) =
2 h sin(Omega/2)``, the weight of u is ``g(h) / 2h`` with ``g = sin((1-t) Omega) / sin(Omega/2)``, which is
smooth on all of 0..1: at Omega = 0, where equation 3 has no value and its limit is linear interpolation, it
is ``2 (1-t)``. Straight lines between 65 points of g are within 2**-16. As a function of the cosine itself
the weights have a pole at -1, and a table of the same error would have 500 to 1000 entries; CORDIC would need
three adders where the recurrences have one.

Where ``|u + v| = 2h`` is below 1/8 (Omega above 173 degrees) the circle that passes through u and v is not
well defined, and at 180 degrees not at all: there the direction is that of the layer with the larger weight.
So it is where one of the two vectors is zero: the direction is the other one's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST, saturate
from quantizers.kv_cache.integers import check_integers, check_range, divide_half_even

IntegerArray = npt.NDArray[Any]

DIRECTION_FRACTION = 15
"""Fraction bits of a direction's elements, 16-bit integers that saturate."""

DISTANCE_BITS = 16
"""Fraction bits of a distance Omega/pi, an unsigned integer. Since the cosine saturates, equal vectors have
distance 7 and opposite ones 65529; zero vectors count as equal to any."""

NORM_FRACTION = 10
"""Fraction bits of a norm that divides."""

COSINE_FRACTION = 24
"""Fraction bits of the magnitude of the cosine, which saturates below 1."""

SEGMENT_BITS = 6
"""Two to this power are the straight lines between h = 0 and h = 1: as many as a LUT has entries."""

OFFSET_BITS = 12
"""Bits of h that say where on its line it is."""

TABLE_FRACTION = 18
"""Fraction bits of g."""

WEIGHT_FRACTION = 32
"""Fraction bits of the weight of a normalised vector."""

WEIGHT_BITS = 24
"""Bits of a weight, which is not negative; with a sign they fit the wider input of a DSP slice."""

NORMAL_BITS = 26
"""A squared norm below 2**26 is multiplied by 2**8, up to three times, and its vector by 2**4 each time."""

NORMAL_STEPS = 3

ENDPOINT_SEGMENTS = 4
"""Lines of the table, from h = 0, where there is no interpolation: h < 4/64."""

ERROR_BOUND = 2.0**-12
"""Of a direction's element, the length of the direction being 1. Tests hold it on vectors of any length, also
nearly parallel and antiparallel ones: the largest error that was found, of two channels, is 2**-12.6; of 64
channels it is 2**-13.8, and 2**-15, half a unit of the direction, where the angle is not near pi."""

MAX_CHANNELS = 1 << 10


@dataclass(frozen=True, kw_only=True)
class MergeArithmetic:
    """Widths and tables of one merging unit.

    Attributes:
        channels: elements of a vector, 1 to 1024.
        t: weight of the second vector in the interpolation, 0 to 1.

    Raises:
        UsageError: a value is out of range.
    """

    channels: int
    t: float = 0.6

    def __post_init__(self) -> None:
        check_range("channels", self.channels, 1, MAX_CHANNELS)
        check_interpolation(self.t)

    @property
    def magnitude_bits(self) -> int:
        """Of a stored magnitude: ``|x| < 2**bits``, but for vectors of -32768 only, which saturate.

        At least 17, so that a squared norm has room for what short vectors are multiplied by.
        """
        return max(BITS - 1 + ((self.channels - 1).bit_length() + 1) // 2, NORMAL_BITS // 2 + 4)

    @property
    def digits(self) -> int:
        """Bits of every square root and quotient, the first of which is 0 in a root."""
        return self.magnitude_bits + NORM_FRACTION + 1

    @property
    def square_bits(self) -> int:
        """Of a squared norm and of the magnitude of a dot product, which saturate."""
        return 2 * self.magnitude_bits

    @property
    def ends_at_second(self) -> bool:
        """Whether the direction is the second vector's where there is no interpolation."""
        return self.t >= 0.5

    @cached_property
    def first_table(self) -> Table:
        """g of the first vector: its weight times 2h."""
        return _weight_table(1 - self.t)

    @cached_property
    def second_table(self) -> Table:
        """g of the second vector."""
        return _weight_table(self.t)

    @cached_property
    def arcsine_table(self) -> Table:
        """``2/pi * arcsin(q)``: a distance; up to the line with q = sqrt(1/2)."""
        return Table.of(lambda q: 2 / math.pi * np.arcsin(q), DISTANCE_BITS)


@dataclass(frozen=True, eq=False)
class Table:
    """Straight lines between points at ``0, 1/64, ..., 1``.

    Attributes:
        starts: int64, shape (64,): the value where each line starts.
        slopes: int64, shape (64,): how much it rises on each.
    """

    starts: npt.NDArray[np.int64]
    slopes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, curve: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], fraction: int) -> Table:
        """Lines through points of *curve*, each lifted by half of what it rises above the line's middle."""
        points = np.arange((1 << SEGMENT_BITS) + 1) / (1 << SEGMENT_BITS)
        values = np.ldexp(curve(points), fraction)
        middle = np.ldexp(curve((points[:-1] + points[1:]) / 2), fraction)
        lift = (middle - (values[:-1] + values[1:]) / 2) / 2
        # What is rounded down later is half a unit on average.
        starts = np.maximum(np.rint(values[:-1] + lift + 0.5), 0)
        return cls(starts.astype(np.int64), np.rint(np.diff(values)).astype(np.int64))

    def look_up(self, segment: IntegerArray, offset: IntegerArray) -> npt.NDArray[np.int64]:
        """``starts + slopes * offset / 2**12``, rounded down."""
        return self.starts[segment] + (self.slopes[segment] * offset >> OFFSET_BITS)


class Norm(NamedTuple):
    """A norm for dividing by, and the one that is stored.

    Attributes:
        root: ``|x| * 2**(shift + 10)``, rounded down.
        shift: 0, 4, 8 or 12: what the vector is shifted by.
        magnitude: ``|x|`` to the nearest integer.
    """

    root: IntegerArray
    shift: IntegerArray
    magnitude: IntegerArray


class Weights(NamedTuple):
    """What is needed of two vectors to merge them; each array of shape (...).

    Attributes:
        first: weight of ``x << first_shift``, in units of 2**-32.
        second: weight of ``y << second_shift``.
        first_shift, second_shift: 0, 4, 8 or 12.
        first_magnitude, second_magnitude: ``|x|`` and ``|y|``, to the nearest integer.
        distance: Omega/pi in units of 2**-16.
    """

    first: IntegerArray
    second: IntegerArray
    first_shift: IntegerArray
    second_shift: IntegerArray
    first_magnitude: IntegerArray
    second_magnitude: IntegerArray
    distance: IntegerArray


class Merged(NamedTuple):
    """Two vectors as one direction.

    Attributes:
        direction: 16-bit integers in units of 2**-15, shape (..., channels).
        first_magnitude, second_magnitude: shape (...).
        distance: shape (...), in units of 2**-16.
    """

    direction: IntegerArray
    first_magnitude: IntegerArray
    second_magnitude: IntegerArray
    distance: IntegerArray


def merge(x: npt.ArrayLike, y: npt.ArrayLike, arithmetic: MergeArithmetic) -> Merged:
    """Merges vectors pair by pair; *arithmetic.t* is the weight of *y*.

    Every element of the direction is within :data:`ERROR_BOUND` of that of :func:`slerp` in float64, where
    both take the same side of the end of the interpolation.

    Args:
        x: 16-bit integers, shape (..., channels).
        y: the same shape.
        arithmetic: for vectors of that length.

    Raises:
        UsageError: another shape, or elements that are no 16-bit integers.
    """
    first, second = (_checked(name, v, arithmetic) for name, v in (("x", x), ("y", y)))
    if first.shape != second.shape:
        msg = f"x and y must have one shape, not {first.shape} and {second.shape}"
        raise UsageError(msg, given=second.shape, expected=[str(first.shape)])
    weights = weights_of(*products(first, second), arithmetic)
    total = weights.first[..., None] * (first << weights.first_shift[..., None])
    total = total + weights.second[..., None] * (second << weights.second_shift[..., None])
    direction = divide_half_even(total, 1 << (WEIGHT_FRACTION - DIRECTION_FRACTION))
    return Merged(saturate(direction), weights.first_magnitude, weights.second_magnitude, weights.distance)


def restore(direction: npt.ArrayLike, magnitude: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``direction * magnitude``, to the nearest 16-bit integer, ties to even, saturating.

    Args:
        direction: 16-bit integers in units of 2**-15, shape (..., channels).
        magnitude: not negative, shape (...).
    """
    product = np.asarray(direction, dtype=np.int64) * np.asarray(magnitude, dtype=np.int64)[..., None]
    return np.asarray(saturate(divide_half_even(product, 1 << DIRECTION_FRACTION)))


def products(x: IntegerArray, y: IntegerArray) -> tuple[IntegerArray, IntegerArray, IntegerArray]:
    """``x.x``, ``y.y`` and ``x.y`` along the last axis, exact: int64, below 2**40."""
    wide_x, wide_y = x.astype(np.int64), y.astype(np.int64)
    return (wide_x**2).sum(axis=-1), (wide_y**2).sum(axis=-1), (wide_x * wide_y).sum(axis=-1)


def weights_of(xx: IntegerArray, yy: IntegerArray, xy: IntegerArray, arithmetic: MergeArithmetic) -> Weights:
    """Weights, magnitudes and distance from the three products of vectors, all in integers.

    Args:
        xx: ``x.x``, shape (...), int64.
        yy: ``y.y``.
        xy: ``x.y``; by the inequality of Cauchy and Schwarz at most the root of the other two's product.
        arithmetic: for vectors of their length.
    """
    digits = arithmetic.digits
    largest = (1 << arithmetic.square_bits) - 1
    first, second = (_norm(np.minimum(square, largest), arithmetic) for square in (xx, yy))
    is_zero = (xx == 0) | (yy == 0)
    dot = np.minimum(np.abs(xy), largest) << (first.shift + second.shift)
    quotient = _quotient(dot << 2 * NORM_FRACTION, first.root)
    cosine = np.minimum(_quotient(quotient << COSINE_FRACTION, second.root), (1 << COSINE_FRACTION) - 1)
    cosine = np.where(is_zero, (1 << COSINE_FRACTION) - 1, cosine)
    is_negative = xy < 0
    half_cosine = _half_root(np.where(is_negative, -cosine, cosine), digits)
    is_end = (_segment(half_cosine, digits) < ENDPOINT_SEGMENTS) | is_zero
    takes_second = np.where(is_zero, xx == 0, arithmetic.ends_at_second)
    weights = [
        _weight(table, half_cosine, norm.root, is_end, takes == is_second, digits)
        for table, norm, takes, is_second in (
            (arithmetic.first_table, first, takes_second, False),
            (arithmetic.second_table, second, takes_second, True),
        )
    ]
    distance = _look_up(arithmetic.arcsine_table, _half_root(-cosine, digits), digits)
    distance = np.where(is_negative, (1 << DISTANCE_BITS) - distance, distance)
    return Weights(
        weights[0],
        weights[1],
        first.shift,
        second.shift,
        first.magnitude,
        second.magnitude,
        np.minimum(distance, (1 << DISTANCE_BITS) - 1),
    )


def slerp(x: npt.ArrayLike, y: npt.ArrayLike, t: float) -> npt.NDArray[np.float64]:
    """The direction of equation 3 in float64, with the definitions at its ends of this module.

    Args:
        x: shape (..., channels).
        y: the same shape.
        t: weight of *y*, 0 to 1.

    Returns:
        Shape of *x*; of length 1, or 0 where both vectors are zero.
    """
    check_interpolation(t)
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    norms = [np.linalg.norm(v, axis=-1, keepdims=True) for v in (first, second)]
    u, v = (w / np.where(norm == 0, 1, norm) for w, norm in zip((first, second), norms, strict=True))
    half = np.linalg.norm(u + v, axis=-1, keepdims=True) / 2
    omega = 2 * np.arctan2(np.linalg.norm(u - v, axis=-1, keepdims=True) / 2, half)
    # Below this the sines and the angles are the same numbers.
    is_tiny = omega < 1e-9
    sine = np.where(is_tiny, 1, np.sin(omega))
    safe = np.where(sine == 0, 1, sine)
    weights = [np.where(is_tiny, part, np.sin(part * omega) / safe) for part in (1 - t, t)]
    curved = weights[0] * u + weights[1] * v
    end = v if t >= 0.5 else u
    direction = np.where(half < ENDPOINT_SEGMENTS / (1 << SEGMENT_BITS), end, curved)
    return np.where(norms[0] == 0, v, np.where(norms[1] == 0, u, direction))


def angle_distance(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Omega/pi in float64, shape (...); 0 where a vector is zero."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    norms = [np.linalg.norm(v, axis=-1, keepdims=True) for v in (first, second)]
    u, v = (w / np.where(n == 0, 1, n) for w, n in zip((first, second), norms, strict=True))
    angle = 2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    is_zero = (norms[0] == 0) | (norms[1] == 0)
    return np.asarray(np.where(is_zero[..., 0], 0.0, angle / math.pi))


def check_interpolation(t: object) -> None:
    """Raises :class:`UsageError` unless *t* is a number from 0 to 1."""
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t <= 1:
        msg = f"t must be from 0 to 1, not {t!r}"
        raise UsageError(msg, given=repr(t), expected=["0..1"])


def _checked(name: str, vectors: npt.ArrayLike, arithmetic: MergeArithmetic) -> npt.NDArray[np.int64]:
    array = np.asarray(vectors)
    if array.ndim == 0 or array.shape[-1] != arithmetic.channels:
        msg = f"{name} must be of shape (..., {arithmetic.channels}), not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[f"(..., {arithmetic.channels})"])
    check_integers(name, array, LOWEST, HIGHEST)
    return array.astype(np.int64)


def _norm(square: IntegerArray, arithmetic: MergeArithmetic) -> Norm:
    shift = np.zeros_like(square)
    for _ in range(NORMAL_STEPS):
        is_small = square < 1 << NORMAL_BITS
        square = np.where(is_small, square << 8, square)
        shift = shift + 4 * is_small
    root = _root(square << 2 * NORM_FRACTION)
    rounded = ((root >> (NORM_FRACTION + shift - 1)) + 1) >> 1
    return Norm(root, shift, np.minimum(rounded, (1 << arithmetic.magnitude_bits) - 1))


def _root(radicand: IntegerArray) -> IntegerArray:
    """Square root of integers below 2**62, rounded down."""
    root = np.sqrt(radicand.astype(np.float64)).astype(np.int64)
    root = root - (root * root > radicand)
    return root + ((root + 1) * (root + 1) <= radicand)


def _quotient(dividend: IntegerArray, divisor: IntegerArray) -> IntegerArray:
    """Rounded down; of a division by zero, the weight of a zero vector, the largest weight."""
    return np.where(divisor == 0, (1 << WEIGHT_BITS) - 1, dividend // np.maximum(divisor, 1))


def _half_root(cosine: IntegerArray, digits: int) -> IntegerArray:
    """``sqrt((1 + cosine) / 2)`` with ``digits - 2`` fraction bits."""
    return _root((cosine + (1 << COSINE_FRACTION)) << (2 * digits - 5 - COSINE_FRACTION))


def _segment(root: IntegerArray, digits: int) -> IntegerArray:
    return root >> (digits - 2 - SEGMENT_BITS)


def _look_up(table: Table, root: IntegerArray, digits: int) -> IntegerArray:
    offset = root >> (digits - 2 - SEGMENT_BITS - OFFSET_BITS) & ((1 << OFFSET_BITS) - 1)
    return table.look_up(_segment(root, digits), offset)


def _weight(
    table: Table,
    half_cosine: IntegerArray,
    root: IntegerArray,
    is_end: IntegerArray,
    is_chosen: IntegerArray,
    digits: int,
) -> IntegerArray:
    """``g / 2h`` in units of ``2**(4 - digits)``, then divided by the norm; 1 or 0 at the ends."""
    g = _look_up(table, half_cosine, digits)
    ratio = _quotient(g << (2 * digits - TABLE_FRACTION - 7), half_cosine)
    ratio = np.where(is_end, np.where(is_chosen, 1 << (digits - 4), 0), ratio)
    return _quotient(ratio << (WEIGHT_FRACTION + NORM_FRACTION + 4 - digits), root)


def _weight_table(part: float) -> Table:
    """``sin(part * Omega) / sin(Omega / 2)`` at Omega = 2 arccos(h)."""

    def curve(h: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        omega = 2 * np.arccos(h)
        sine = np.sin(omega / 2)
        return np.where(h == 1, 2 * part, np.sin(part * omega) / np.where(h == 1, 1, sine))

    return Table.of(curve, TABLE_FRACTION)
