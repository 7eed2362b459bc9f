"""Numba kernels behind :mod:`quantizers.rounding`: serial loops that release the GIL.

Kept apart so that the public module imports where numba is missing. The loops are not ``prange``
loops: after a fork numba's OpenMP layer ends the child that calls it, and its own layer ends the
process on calls from two threads. Plain threads over these loops do neither, are as fast on large
arrays, and on a busy machine several times faster on arrays of a megabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from quantizers.formats import Grid

_EXPONENT_MASK = np.int32(0x7F800000)
# Lowest exponent bit and mantissa: what tells a tie between two powers of two.
_PARITY_AND_MANTISSA = np.int32(0x00FFFFFF)
_HALF = np.int32(0x00400000)
_MAGNITUDE_MASK = np.int32(0x7FFFFFFF)
# No block has this exponent; half of it still is that of a normal number.
_NAN_BLOCK = np.int32(200)
# Parallel lanes of the error sums: enough to hide the latency of an addition, and a fixed order of
# additions on every machine.
_LANES = 64
ERROR_CHUNK = 8192


class Steps(NamedTuple):
    """A grid in the terms of the kernel, all for float32.

    Attributes:
        low, high: the clipping range.
        min_exponent_bits: the exponent of the subnormal range, in place in a float32.
        magic_offset: added to the exponent bits of a value, it makes ``1.5 * 2**23`` steps.
        sign_mask: the sign bit where the format has a negative zero, else 0.
        tie: low bits of a value halfway between an even code and the next power of two; -1
            (which nothing equals) where the mantissa decides ties.
    """

    low: np.float32
    high: np.float32
    min_exponent_bits: np.int32
    magic_offset: np.int32
    sign_mask: np.int32
    tie: np.int32


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without fast-math (results are exact); cached on disk where a folder can be written."""
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # numba found no folder to cache in: a read-only install and home
        return numba.njit(function, nogil=True, error_model="numpy")


@_jit
def _nearest(u, steps):  # type: ignore[no-untyped-def]
    """The grid value nearest to *u*. NaN stays NaN: every comparison with it is false.

    Clipping comes first, so that the sum with the magic number cannot leave the binade in which
    one unit in the last place is one step; the addition then rounds to nearest even by itself.
    """
    clipped = u if not u > steps.high else steps.high
    clipped = clipped if not clipped < steps.low else steps.low
    bits = np.float32(clipped).view(np.int32)
    exponent = np.int32(bits & _EXPONENT_MASK)
    exponent = exponent if exponent > steps.min_exponent_bits else steps.min_exponent_bits
    magic = np.int32(exponent + steps.magic_offset).view(np.float32)
    # With no mantissa bits the sum sends 1.5 steps up, always; one ulp less goes down.
    down = np.int32((bits & _PARITY_AND_MANTISSA) == steps.tie)
    rounded = np.float32((np.int32(bits - down).view(np.float32) + magic) - magic)
    return np.int32(rounded.view(np.int32) | (bits & steps.sign_mask)).view(np.float32)


@_jit
def round_range(x, out, scales, inner, start, stop, steps):  # type: ignore[no-untyped-def]
    """``out[i] = round(x[i] / s) * s`` for ``start <= i < stop``, with ``s = scales[i // inner]``.

    Args:
        x, out: float32 ``(n,)``, contiguous, apart from each other: where they overlap the loop is scalar.
        scales: float32 ``(n // inner,)``.
    """
    while start < stop:
        channel = start // inner
        end = min(stop, (channel + 1) * inner)
        scale = scales[channel]
        # Slices, indexed from 0: indices that might be negative would keep the loop from vectorizing.
        values, rounded = x[start:end], out[start:end]
        for i in range(values.size):
            rounded[i] = _nearest(values[i] / scale, steps) * scale
        start = end


@_jit
def round_rows(x, out, offsets, scale, start, stop, steps):  # type: ignore[no-untyped-def]
    """Row r of *x*, rounded, to ``out[offsets[r]:]``, for ``start <= r < stop``.

    Args:
        x: float32 ``(rows, inner)``, contiguous, apart from *out*.
        out: float32, flat.
        offsets: int64 ``(rows,)``.
    """
    inner = x.shape[1]
    for row in range(start, stop):
        values, rounded = x[row], out[offsets[row] : offsets[row] + inner]
        for i in range(inner):
            rounded[i] = _nearest(values[i] / scale, steps) * scale


@_jit
def block_range(x, out, block, largest_exponent, shift, start, stop, steps):  # type: ignore[no-untyped-def]
    """Blocks of *block* values along axis 1, each with its own power of two, for ``start <= row < stop``.

    The power is ``floor(log2 max|x|) - largest_exponent`` (that of the largest element), between -127
    and 127 after *shift* is taken from it.

    Args:
        x, out: float32 ``(rows, length, inner)``, contiguous.
    """
    _, length, inner = x.shape
    exponents = np.empty(inner, np.int32)
    for row in range(start, stop):
        for first in range(0, length, block):
            last = min(first + block, length)
            exponents[:] = 0
            for j in range(first, last):
                bits = x[row, j].view(np.int32)
                for i in range(inner):
                    exponents[i] = max(exponents[i], np.int32(bits[i] & _MAGNITUDE_MASK))
            for i in range(inner):
                exponents[i] = _shared_exponent(exponents[i], largest_exponent, shift)
            for j in range(first, last):
                values, rounded = x[row, j], out[row, j]
                for i in range(inner):
                    rounded[i] = _nearest_in_block(values[i], exponents[i], steps)


@_jit
def row_block_range(x, out, block, largest_exponent, shift, start, stop, steps):  # type: ignore[no-untyped-def]
    """The same for rows ``(rows, length)``, where the loop has to go along the blocks to be fast."""
    length = x.shape[1]
    codes = x.view(np.int32)
    exponents = np.empty(length, np.int32)
    for row in range(start, stop):
        for first in range(0, length, block):
            bits = codes[row, first : first + block]
            largest = np.int32(0)
            for j in range(bits.size):
                largest = max(largest, np.int32(bits[j] & _MAGNITUDE_MASK))
            exponents[first : first + block] = _shared_exponent(largest, largest_exponent, shift)
        values, rounded = x[row], out[row]
        for i in range(length):
            rounded[i] = _nearest_in_block(values[i], exponents[i], steps)


@_jit
def _nearest_in_block(value, exponent, steps):  # type: ignore[no-untyped-def]
    """*value* rounded to the grid times ``2**exponent``.

    In two steps each way: the power of a block of tiny values has no inverse in float32.
    """
    half = np.int32(exponent >> 1)
    rest = np.int32(exponent - half)
    small = np.float32(np.float32(value * _power(-half)) * _power(-rest))
    nearest = np.float32(np.float32(_nearest(small, steps) * _power(half)) * _power(rest))
    return nearest if exponent != _NAN_BLOCK else np.float32(np.nan)


@_jit
def _power(exponent):  # type: ignore[no-untyped-def]
    """``2**exponent`` for exponents of normal numbers."""
    return np.int32((np.int32(exponent) + np.int32(127)) << 23).view(np.float32)


@_jit
def _shared_exponent(magnitude, largest_exponent, shift):  # type: ignore[no-untyped-def]
    """The exponent of a block whose largest magnitude has these bits; ``_NAN_BLOCK`` for a NaN."""
    if magnitude > _EXPONENT_MASK:
        return _NAN_BLOCK
    if magnitude == _EXPONENT_MASK:  # infinity: beyond every scale
        return np.int32(127 + shift)
    exponent = (magnitude >> 23) - 127 - largest_exponent - shift
    return np.int32(min(max(exponent, -127), 127) + shift)


@_jit
def error_range(x, scales, partial, start, stop, steps):  # type: ignore[no-untyped-def]
    """Sums of squared errors of the units ``start <= unit < stop``, for every candidate scale.

    Args:
        x: float32 ``(channels, n)``, contiguous.
        scales: float32 ``(channels, candidates)``.
        partial: float64 ``(channels, chunks, candidates)``, filled for those units. A unit is one
            chunk of ``ERROR_CHUNK`` elements of one channel: it stays in cache for all candidates.
    """
    chunks = partial.shape[1]
    lanes = np.empty(_LANES, np.float64)
    for unit in range(start, stop):
        channel = unit // chunks
        chunk = unit % chunks
        values = x[channel, chunk * ERROR_CHUNK : (chunk + 1) * ERROR_CHUNK]
        for candidate in range(scales.shape[1]):
            partial[channel, chunk, candidate] = _error(values, scales[channel, candidate], steps, lanes)


@_jit
def _error(values, scale, steps, lanes):  # type: ignore[no-untyped-def]
    """Element i adds to lane ``i % _LANES``; then the lanes are added pairwise."""
    whole = values.size // _LANES * _LANES
    lanes[:] = 0.0
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            value = values[start + lane]
            difference = np.float64(np.float32(_nearest(value / scale, steps) * scale) - value)
            lanes[lane] += difference * difference
    for lane in range(values.size - whole):
        value = values[whole + lane]
        difference = np.float64(np.float32(_nearest(value / scale, steps) * scale) - value)
        lanes[lane] += difference * difference
    width = min(_LANES, values.size)
    while width > 1:
        half = (width + 1) // 2
        for lane in range(width - half):
            lanes[lane] += lanes[lane + half]
        width = half
    return lanes[0]


def kernel_steps(grid: Grid) -> Steps:
    """The grid of a scalar format as the kernels take it."""
    # The exponent field is biased by 127, an odd number: its parity is that of the code below a tie
    # exactly where that code is even.
    tie = (grid.odd_code_parity << 23) | int(_HALF) if grid.mantissa_bits == 0 else -1
    return Steps(
        low=np.float32(grid.minimum),
        high=np.float32(grid.maximum),
        min_exponent_bits=np.int32((grid.min_exponent + 127) << 23),
        magic_offset=np.int32(((23 - grid.mantissa_bits) << 23) | int(_HALF)),
        sign_mask=np.int32(-(1 << 31) if grid.signed_zero else 0),
        tie=np.int32(tie),
    )
