"""Block selection on integers, as the hardware computes it bit for bit, and integers from real queries and
keys.

Steps, each exact or with the rounding that is named:

1. Compressed keys are sums of *kernel* integer keys, divided by ``2**dropped_bits`` and rounded to nearest,
   ties to even. With 0 dropped bits they are exact; with log2(kernel) they are means of the keys' own width.
2. A score is the dot product of an integer query with a compressed key, divided by ``2**shift`` of its head,
   rounded to nearest, ties to even, saturating to the width of scores: a binary logarithm.
3. :class:`~.fixed_softmax.FixedSoftmax` and the sum over the heads.
4. Maxima of blocks, forced blocks and the choice as in :mod:`~.selection`: comparisons only.

No multiplier stands between dot product and softmax: scales of the keys (one a channel), ``log2(e) /
sqrt(d)`` and the rest of the mean's division are folded into the query before it is rounded to integers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.formats import MAX_INTEGER_BITS, IntegerFormat
from quantizers.sparse_attention.fixed_softmax import FixedSoftmax
from quantizers.sparse_attention.selection import (
    Floats,
    Mask,
    best_blocks,
    block_scores,
    check_shapes,
    token_windows,
    visible_keys,
)
from quantizers.sparse_attention.settings import BlockSelection, Integers
from quantizers.table_lookup.planes import check_integer

SHIFTS = range(-8, 24)
"""Of a head's scores; see :func:`integer_queries`."""


def compressed_bits(key_bits: int, dropped_bits: int, selection: BlockSelection) -> int:
    """Width of a compressed key.

    Raises:
        UsageError: widths out of range, or more than 16 bits.
    """
    check_integer("key_bits", key_bits, 2, MAX_INTEGER_BITS)
    grown = (selection.kernel - 1).bit_length()
    check_integer("dropped_bits", dropped_bits, 0, grown)
    bits = key_bits + grown - dropped_bits
    if bits > MAX_INTEGER_BITS:
        least = bits - MAX_INTEGER_BITS + dropped_bits
        msg = (
            f"compressed keys of {bits} bits are too wide: drop at least {least} of them, not {dropped_bits}"
        )
        raise UsageError(msg, given=dropped_bits, expected=[str(least)])
    return bits


def compressed_sums(
    keys: ArrayLike, selection: BlockSelection, *, key_bits: int, dropped_bits: int = 0
) -> Integers:
    """``round(sum(keys[stride*j : stride*j + kernel]) / 2**dropped_bits)``, ties to even.

    Args:
        keys: integers, shape (tokens, head_dim).
        selection: sizes.
        key_bits: of a key.
        dropped_bits: 0 to ceil(log2(kernel)).

    Returns:
        int64, shape (compressed, head_dim).

    Raises:
        UsageError: shapes or widths that do not fit.
    """
    fmt = IntegerFormat(compressed_bits(key_bits, dropped_bits, selection))
    sums = token_windows(np.asarray(keys, np.int64), selection).sum(axis=-1)
    return fmt.round(np.ldexp(sums.astype(np.float64), -dropped_bits)).astype(np.int64)


def head_scores(
    queries: ArrayLike, compressed: ArrayLike, shifts: ArrayLike, softmax: FixedSoftmax
) -> Integers:
    """``round(queries @ compressed.T / 2**shifts)``, ties to even, saturating to the width of scores.

    Args:
        queries: integers, shape (heads, queries, head_dim).
        compressed: integers, shape (compressed, head_dim).
        shifts: shape (heads, queries).
        softmax: widths.

    Returns:
        int64, shape (heads, queries, compressed).
    """
    dots = np.asarray(queries, np.int64) @ np.asarray(compressed, np.int64).T
    scaled = np.ldexp(dots.astype(np.float64), -np.asarray(shifts)[..., None])
    return IntegerFormat(softmax.score_bits).round(scaled).astype(np.int64)


def integer_group_scores(
    queries: ArrayLike,
    compressed: ArrayLike,
    shifts: ArrayLike,
    positions: ArrayLike,
    selection: BlockSelection,
    softmax: FixedSoftmax,
) -> Integers:
    """The softmax of the scores, added up over the heads: int64 (queries, compressed), see the module.

    Raises:
        UsageError: shapes that do not fit.
    """
    q, c, at = np.asarray(queries), np.asarray(compressed), np.asarray(positions)
    check_shapes(q, c, at)
    visible = visible_keys(at, len(c), selection)
    return softmax.weights(head_scores(q, c, shifts, softmax), visible)


class IntegerQueries(NamedTuple):
    """Queries as integers.

    Attributes:
        codes: int64, shape (heads, queries, head_dim).
        shifts: int64, shape (heads, queries): scores are dot products divided by two to this power.
    """

    codes: Integers
    shifts: Integers


def key_scales(keys: ArrayLike, *, key_bits: int) -> Floats:
    """A scale a channel, by which the largest magnitude of calibration keys (tokens, head_dim) becomes the
    largest code."""
    largest = np.abs(np.asarray(keys, np.float64)).max(axis=0)
    return np.where(largest == 0, 1, largest) / ((1 << (key_bits - 1)) - 1)


def integer_keys(keys: ArrayLike, scales: Floats, *, key_bits: int) -> Integers:
    """``round(keys / scales)``, to nearest, ties to even, saturating: int64 (tokens, head_dim)."""
    return IntegerFormat(key_bits).round(np.asarray(keys, np.float64) / scales).astype(np.int64)


def integer_queries(
    queries: ArrayLike,
    scales: Floats,
    selection: BlockSelection,
    softmax: FixedSoftmax,
    *,
    query_bits: int,
    dropped_bits: int = 0,
) -> IntegerQueries:
    """Each query with all scales folded in, as integers of the finest power of two in which it fits.

    Args:
        queries: shape (heads, queries, head_dim).
        scales: of the keys' channels.
        selection: sizes.
        softmax: widths.
        query_bits: of a code.
        dropped_bits: of the compressed keys.
    """
    values = np.asarray(queries, np.float64)
    factor = math.log2(math.e) / math.sqrt(values.shape[-1]) * 2.0**dropped_bits / selection.kernel
    folded = values * (scales * factor)
    fmt = IntegerFormat(query_bits)
    largest = np.abs(folded).max(axis=-1)
    exponents = np.floor(np.log2(fmt.maximum / np.where(largest == 0, 1, largest))).astype(np.int64)
    shifts = np.clip(exponents - softmax.fraction_bits, SHIFTS[0], SHIFTS[-1])
    codes = fmt.round(np.ldexp(folded, shifts[..., None] + softmax.fraction_bits))
    return IntegerQueries(codes.astype(np.int64), shifts)


def select_blocks_integer(
    queries: IntegerQueries,
    keys: ArrayLike,
    positions: ArrayLike,
    selection: BlockSelection,
    softmax: FixedSoftmax,
    *,
    key_bits: int,
    dropped_bits: int = 0,
) -> Mask:
    """Which blocks each query takes: bool (queries, blocks), by integers.

    Args:
        queries: see :func:`integer_queries`.
        keys: integers, shape (tokens, head_dim).
        positions: of the queries.
        selection: sizes.
        softmax: widths.
        key_bits: of a key.
        dropped_bits: of a compressed key.

    Raises:
        UsageError: shapes or widths that do not fit.
    """
    compressed = compressed_sums(keys, selection, key_bits=key_bits, dropped_bits=dropped_bits)
    scores = integer_group_scores(queries.codes, compressed, queries.shifts, positions, selection, softmax)
    return best_blocks(block_scores(scores, positions, selection), positions, selection)


def agreement(taken: Mask, expected: Mask, forced: Mask | NDArray[Any]) -> float:
    """Of the blocks that queries are free to choose, the fraction that both masks take.

    Blocks that are forced do not count; 1 where there is nothing to choose.
    """
    free = expected & ~forced
    return float((taken & free).sum() / free.sum()) if free.any() else 1.0
