"""Integer-exact models of requantization, and the multipliers and shifts that stand for real scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hw.reference.mac import Sums
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat

_INT64_BITS = 63
# A float64 holds 53 bits; the lowest of those kept says whether anything below it was set.
_KEPT_BITS = 52
# So far that every number becomes zero, or beyond every format.
_LARGEST_SHIFT = 512


def requantize(
    sums: npt.ArrayLike,
    multipliers: npt.ArrayLike,
    shifts: npt.ArrayLike,
    *,
    output: ScalarFormat,
    relu: bool = False,
) -> npt.NDArray[np.int64]:
    """``round(sum * multiplier / 2**shift)``: what :class:`hw.arith.requantizer.Requantizer` gives.

    Rounded once, from the exact product, to nearest, ties to the even code, saturating.

    Args:
        sums: integers of any size, any shape.
        multipliers: non-negative integers, broadcast against *sums*.
        shifts: integers, likewise.
        output: format of the codes.
        relu: negative sums become zero.

    Returns:
        Codes, of the broadcast shape.

    Raises:
        UsageError: an argument holds something else than integers, or a negative multiplier.
    """
    numbers = _integers("sums", sums)
    factors = _integers("multipliers", multipliers)
    exponents = _integers("shifts", shifts)
    if factors.size and factors.min() < 0:
        msg = f"multipliers must not be negative, but one is {factors.min()}"
        raise UsageError(msg, given=factors.min(), expected=["0, 1, 2, ..."])
    if relu:
        numbers = np.maximum(numbers, 0)
    if _largest(numbers).bit_length() + _largest(factors).bit_length() > _INT64_BITS:
        numbers = numbers.astype(object)
    kept, dropped = _leading_bits(np.asarray(numbers * factors))
    exponents = np.clip(exponents, -_LARGEST_SHIFT, _LARGEST_SHIFT).astype(np.int64)
    return output.encode(np.ldexp(kept, dropped - exponents))


def count_thresholds(
    sums: npt.ArrayLike, thresholds: npt.ArrayLike, *, output: ScalarFormat
) -> npt.NDArray[np.int64]:
    """The codes that :class:`hw.arith.requantizer.Thresholds` gives.

    The smallest value of the format plus the number of thresholds that are at most the sum.

    Args:
        sums: integers, shape ``(..., channels)``.
        thresholds: integers, shape ``(channels, n)``, in any order.
        output: an integer format of n + 1 values.

    Returns:
        Codes, of the shape of *sums*.

    Raises:
        UsageError: an argument holds something else than integers, or n is not that of the format.
    """
    numbers, limits = _integers("sums", sums), _integers("thresholds", thresholds)
    count = int(output.maximum - output.minimum)
    if limits.ndim != 2 or limits.shape[-1] != count:
        msg = f"{output} takes thresholds of shape (channels, {count}), not {limits.shape}"
        raise UsageError(msg, given=limits.shape, expected=[f"(channels, {count})"])
    return output.encode((numbers[..., None] >= limits).sum(axis=-1) + output.minimum)


@dataclass(frozen=True)
class Scaling:
    """``multipliers / 2**shifts``, in place of real numbers.

    Attributes:
        multipliers: one a channel.
        shifts: likewise.
        largest_relative_error: of any channel; 0 for a channel that is to be zero.
    """

    multipliers: npt.NDArray[np.int64]
    shifts: npt.NDArray[np.int64]
    largest_relative_error: float


def find_scaling(ratios: npt.ArrayLike, *, multiplier_bits: int = 16, shifts: range = range(32)) -> Scaling:
    """The multiplier and shift nearest to each ratio; of equal ones those with the smallest shift.

    For a layer: ``ratio = weight_scale * activation_scale / output_scale``, in units of the sums.

    Args:
        ratios: real numbers, shape ``(channels,)``, not negative.
        multiplier_bits: of the multipliers; 0: powers of two only.
        shifts: the shifts to choose from.

    Returns:
        The relative error is at most ``2**-multiplier_bits`` where a shift brings the multiplier into
        the upper half of its range, a third where there is no multiplier.

    Raises:
        UsageError: a ratio that is no number, negative, or beyond what the multipliers and shifts reach.
    """
    wanted = np.asarray(ratios, dtype=np.float64)
    largest = (1 << multiplier_bits) - 1 if multiplier_bits else 1
    low, high = np.ldexp(1.0, -shifts[-1]), np.ldexp(float(largest), -shifts[0])
    is_zero = (wanted == 0) & (multiplier_bits > 0)
    reached = is_zero | ((wanted >= low) & (wanted <= high))
    if not reached.all():
        worst = wanted[~reached].flat[0]
        msg = f"ratio {worst:g} is out of reach: expected {low:g} to {high:g}"
        raise UsageError(msg, given=worst, expected=[f"{low:g}..{high:g}"])
    candidates = np.array(shifts)
    scaled = np.ldexp(np.where(is_zero, 1.0, wanted)[..., None], candidates)
    multipliers = np.clip(np.rint(scaled), 1, largest)
    errors = np.abs(multipliers / scaled - 1)
    best = errors.argmin(axis=-1)[..., None]
    chosen = np.take_along_axis(multipliers, best, axis=-1)[..., 0]
    error = np.where(is_zero, 0, np.take_along_axis(errors, best, axis=-1)[..., 0])
    return Scaling(
        np.where(is_zero, 0, chosen).astype(np.int64),
        np.where(is_zero, candidates[0], candidates[best[..., 0]]),
        float(error.max(initial=0.0)),
    )


def _integers(name: str, values: npt.ArrayLike) -> Sums:
    array = np.asarray(values)
    if array.dtype == object and all(isinstance(value, int) for value in array.flat):
        return array
    if array.dtype.kind not in "iu":
        msg = f"{name} must be integers, not {array.dtype}"
        raise UsageError(msg, given=array.dtype, expected=["an integer dtype"])
    return array.astype(object) if array.dtype == np.uint64 else array.astype(np.int64)


def _largest(values: Sums) -> int:
    """The largest magnitude."""
    return max(int(values.max()), -int(values.min())) if values.size else 0


def _leading_bits(products: Sums) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Numbers of few enough bits for a float64, and by how many bits they were shortened.

    Rounded to odd: where bits were dropped, the lowest one kept is set. A later rounding to fewer bits
    then sees on which side of a tie the number was, so that it rounds as if from the exact number
    (S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    magnitudes = np.abs(products)
    if products.dtype == object:
        lengths = np.frompyfunc(int.bit_length, 1, 1)(magnitudes)
    else:
        lengths = np.frexp(magnitudes.astype(np.float64))[1]
    dropped = np.maximum(np.asarray(lengths).astype(np.int64) - _KEPT_BITS, 0)
    kept = magnitudes >> dropped
    kept = (kept | (kept << dropped != magnitudes)).astype(np.float64)
    return np.where(products < 0, -kept, kept), dropped
