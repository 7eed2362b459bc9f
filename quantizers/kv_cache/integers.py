"""Division of integers, rounded to nearest with ties to even, and checks of integer arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError

IntegerArray = npt.NDArray[Any]


def divide_half_even(numerator: IntegerArray, denominator: IntegerArray | int) -> IntegerArray:
    """``numerator / denominator`` to the nearest integer, ties to the even one; exact.

    Args:
        numerator: integers of any sign (of an unsigned dtype: not negative).
        denominator: positive integers that broadcast against them.

    Returns:
        Of the common dtype of both, which must hold ``2 * |numerator| + denominator``.
    """
    quotient = (2 * numerator + denominator) // (2 * denominator)
    # Half a step above an even number was rounded up to an odd one.
    is_tie = quotient * denominator * 2 == 2 * numerator + denominator
    return np.asarray(quotient - (is_tie & (quotient & 1 != 0)))


def check_range(name: str, value: object, low: int, high: int) -> None:
    """Raises :class:`UsageError` unless *value* is an integer from *low* to *high*."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        msg = f"{name} must be an integer from {low} to {high}, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=[f"{low} to {high}"])


def check_integers(name: str, array: IntegerArray, low: int, high: int) -> None:
    """Raises :class:`UsageError` unless *array* holds integers from *low* to *high* only."""
    if array.dtype.kind not in "iu":
        msg = f"{name} must be integers, not {array.dtype}"
        raise UsageError(msg, given=array.dtype, expected=["an integer dtype"])
    if not array.size:
        return
    smallest, largest = int(array.min()), int(array.max())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        msg = f"{name} must be from {low} to {high}; one is {wrong}"
        raise UsageError(msg, given=wrong, expected=[f"{low} to {high}"])
