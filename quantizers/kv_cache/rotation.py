"""Random-sign Hadamard rotation of vectors of 16-bit integers, and back; every result is an integer.

A rotation spreads the energy of outlying channels over all coefficients, which then are close to normal
whatever the vector was: A. Zandieh et al., "TurboQuant", arXiv 2504.19874, section 3.1. Here, for vectors of
d elements, h = log2(d) // 2 and the Walsh-Hadamard matrix H of d rows in Sylvester's order:

    coefficients w = floor(H (signs * (x - means)) / 2**h),
    elements     x = saturate(means + signs * round_half_even(2**h * H w / d)).

With h halvings a coefficient is about as large as an element, so that its fraction, which is dropped, is
below what the elements themselves were rounded to. Dropping it downwards makes the coefficients symmetric
about -1/2: the magnitude of w is w, or ``-1 - w``, its complement, where w is negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST, saturate
from quantizers.kv_cache.integers import check_integers

MIN_SIZE, MAX_SIZE = 2, 4096
"""Elements of a vector that is rotated."""

MAX_COEFFICIENT = (1 << 24) - 1
"""Magnitude of what can be rotated back."""

IntegerArray = npt.NDArray[Any]

# Elements that are worked on at a time: they and their temporaries stay in the processor's cache.
_CHUNK = 1 << 17

_MATRIX_SIZE = 128


def hadamard(x: npt.ArrayLike) -> IntegerArray:
    """The unnormalised Walsh-Hadamard transform along the last axis, in Sylvester's order.

    ``H[i, j]`` is 1, or -1 where ``i & j`` has an odd number of ones; ``H @ H`` is d times the identity.

    Args:
        x: integers of shape (..., d), d a power of two. The sum of the magnitudes of a vector is below 2**63.

    Returns:
        Of the shape of *x*; int32 where that is certain to hold it, else int64.

    Raises:
        UsageError: *x* holds something else than integers, or d is no power of two.
    """
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        msg = f"x must be integers, not {array.dtype}"
        raise UsageError(msg, given=array.dtype, expected=["an integer dtype"])
    size = array.shape[-1] if array.ndim else 0
    check_size(size)
    out = np.empty(array.shape, _dtype_for(array, size))
    for source, target in _chunks(array, out):
        target[...] = source
        _transform(target)
    return out


def rotate(
    x: npt.ArrayLike, *, means: npt.ArrayLike | None = None, signs: npt.ArrayLike | None = None
) -> npt.NDArray[np.int32]:
    """The coefficients of vectors: ``floor(H (signs * (x - means)) / 2**h)``, see the module's description.

    Args:
        x: integers from -32768 to 32767, shape (..., d), d a power of two.
        means: likewise, of a shape that broadcasts against *x*; 0 where there are none.
        signs: 1 and -1, likewise; 1 where there are none.

    Returns:
        Of the shape of *x*; of magnitude below ``2**16 * d / 2**h``.

    Raises:
        UsageError: an argument is of the wrong kind, shape or range.
    """
    array = np.asarray(x)
    check_integers("x", array, LOWEST, HIGHEST)
    size = array.shape[-1] if array.ndim else 0
    check_size(size)
    offset, factor = _checked_tables(array.shape, means, signs)
    out = np.empty(array.shape, np.int32)
    parts = _chunks(array, out, np.broadcast_to(offset, array.shape), np.broadcast_to(factor, array.shape))
    for source, target, mean, sign in parts:
        np.subtract(source, mean, out=target, dtype=np.int32, casting="unsafe")
        target *= sign
        _transform(target)
        target >>= halvings(size)
    return out


def unrotate(
    w: npt.ArrayLike, *, means: npt.ArrayLike | None = None, signs: npt.ArrayLike | None = None
) -> npt.NDArray[np.int32]:
    """Vectors from their coefficients: ``saturate(means + signs * round_half_even(2**h * H w / d))``.

    Args:
        w: integers, shape (..., d), of magnitude at most :data:`MAX_COEFFICIENT`.
        means, signs: as for :func:`rotate`.

    Returns:
        Of the shape of *w*, from -32768 to 32767.

    Raises:
        UsageError: an argument is of the wrong kind, shape or range.
    """
    array = np.asarray(w)
    check_integers("w", array, -MAX_COEFFICIENT, MAX_COEFFICIENT)
    size = array.shape[-1] if array.ndim else 0
    check_size(size)
    offset, factor = _checked_tables(array.shape, means, signs)
    out = np.empty(array.shape, np.int32)
    shift = size.bit_length() - 1 - halvings(size)
    dtype = _dtype_for(array, size)
    parts = _chunks(array, out, np.broadcast_to(offset, array.shape), np.broadcast_to(factor, array.shape))
    for source, target, mean, sign in parts:
        work = source.astype(dtype)
        _transform(work)
        target[...] = saturate(shift_half_even(work, shift) * sign + mean)
    return out


def halvings(size: int) -> int:
    """h: how often the sums of a transform of *size* elements are halved, ``log2(size) // 2``."""
    return (size.bit_length() - 1) // 2


def largest_sum(size: int) -> int:
    """The most that the magnitudes of the coefficients of a vector can add up to.

    Of elements of magnitude at most M = 65535, their differences to a mean, the Euclidean norm is at most
    ``sqrt(d) * M``; H multiplies it by ``sqrt(d)``; and the sum of the magnitudes of d numbers is at most
    ``sqrt(d)`` times their norm.
    """
    check_size(size)
    return int(size**1.5 * ((1 << BITS) - 1) / (1 << halvings(size)))


def random_signs(size: int, seed: int) -> npt.NDArray[np.int8]:
    """Signs 1 and -1, shape (size,); the same ones for the same seed."""
    bits = np.random.default_rng(seed).integers(0, 2, size)
    return (1 - 2 * bits).astype(np.int8)


def shift_half_even(x: IntegerArray, shift: int) -> IntegerArray:
    """``x / 2**shift`` to the nearest integer, ties to even, of signed integers; they hold x + 2**shift."""
    if shift == 0:
        return x
    floor = x >> shift
    return np.asarray((x + ((1 << (shift - 1)) - 1) + (floor & 1)) >> shift)


def check_size(size: int) -> None:
    """Raises :class:`UsageError` unless vectors of *size* elements can be rotated."""
    if MIN_SIZE <= size <= MAX_SIZE and size & (size - 1) == 0:
        return
    choices = [1 << n for n in range(MIN_SIZE.bit_length() - 1, MAX_SIZE.bit_length())]
    nearest = sorted(choices, key=lambda choice: abs(choice - size))
    msg = (
        f"a Hadamard rotation takes vectors of a power of two of elements, {MIN_SIZE} to {MAX_SIZE}, "
        f"not {size}; the nearest is {nearest[0]}"
    )
    raise UsageError(msg, given=size, expected=map(str, nearest))


def _transform(x: IntegerArray) -> None:
    """Butterflies on the last axis of a contiguous array, in place."""
    size = x.shape[-1]
    half = 1
    if size <= _MATRIX_SIZE and x.dtype == np.int32:
        # A product of matrices of floats, which hold these integers exactly, is several times as fast.
        largest = max(int(x.max()), -int(x.min())) if x.size else 0
        dtype = np.float32 if largest * size <= 1 << 24 else np.float64
        x[...] = x.astype(dtype) @ _matrix(size).astype(dtype)
        return
    while half < size:
        pairs = x.reshape(-1, size // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        first += second
        second *= -2
        second += first
        half *= 2


@lru_cache(maxsize=8)
def _matrix(size: int) -> npt.NDArray[np.float32]:
    rows = np.arange(size, dtype=np.uint32)
    ones = np.bitwise_count(rows[:, None] & rows)
    return np.where(ones & 1, -1, 1).astype(np.float32)


def _chunks(first: IntegerArray, *others: IntegerArray) -> Iterator[tuple[IntegerArray, ...]]:
    """The arrays, all of one shape, some rows at a time."""
    size = first.shape[-1]
    rows = max(_CHUNK // size, 1)
    if first.ndim == 1:
        yield (first, *others)
        return
    leading = first.shape[0]
    if first.ndim > 2:
        for place in range(leading):
            yield from _chunks(first[place], *(other[place] for other in others))
        return
    for start in range(0, leading, rows):
        stop = start + rows
        yield (first[start:stop], *(other[start:stop] for other in others))


def _dtype_for(array: IntegerArray, size: int) -> type[np.signedinteger[Any]]:
    largest = max(abs(int(array.min())), abs(int(array.max()))) if array.size else 0
    return np.int32 if largest * size < 1 << 30 else np.int64


def _checked_tables(
    shape: tuple[int, ...], means: npt.ArrayLike | None, signs: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    offset, factor = np.asarray(0 if means is None else means), np.asarray(1 if signs is None else signs)
    check_integers("means", offset, LOWEST, HIGHEST)
    check_integers("signs", factor, -1, 1)
    if not factor.all():
        msg = "signs must be 1 or -1; one is 0"
        raise UsageError(msg, given=0, expected=["1", "-1"])
    for name, table in {"means": offset, "signs": factor}.items():
        try:
            fits = np.broadcast_shapes(table.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            msg = f"{name} of shape {table.shape} do not fit vectors of shape {shape}"
            raise UsageError(msg, given=table.shape, expected=[str(shape), str(shape[-1:])])
    return offset.astype(np.int32), factor.astype(np.int32)
