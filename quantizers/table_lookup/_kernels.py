"""Numba loops of the table-lookup products: one row after the other, without fast-math."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # numba found no folder to cache in: a read-only install and home
        return numba.njit(function, nogil=True, error_model="numpy")


@_jit
def plane_sums(indices, tables, lookups, out):  # type: ignore[no-untyped-def]
    """out[m, b] = sum_i 2**i * sum of the looked-up values of block b, *lookups* indices a block."""
    planes, rows, groups = indices.shape
    for m in range(rows):
        for i in range(planes):
            row = indices[i, m]
            weight = 1 << i
            for block in range(out.shape[1]):
                start = block * lookups
                total = tables[0, 0] - tables[0, 0]
                for k in range(start, min(start + lookups, groups)):
                    total += tables[k, row[k]]
                out[m, block] += total * weight


@_jit
def mirrored_plane_sums(indices, half, lookups, out):  # type: ignore[no-untyped-def]
    """`plane_sums` from the half of each table whose top index bit is 0; the rest is its mirror."""
    planes, rows, groups = indices.shape
    size = half.shape[1]
    last = 2 * size - 1
    for m in range(rows):
        for i in range(planes):
            row = indices[i, m]
            weight = 1 << i
            for block in range(out.shape[1]):
                start = block * lookups
                total = half[0, 0] - half[0, 0]
                for k in range(start, min(start + lookups, groups)):
                    index = row[k]
                    total += half[k, index] if index < size else -half[k, last - index]
                out[m, block] += total * weight


@_jit
def ternary_sums(indices, signs, tables, lookups, out):  # type: ignore[no-untyped-def]
    """out[m, b] = sum of the looked-up values of block b, negated where the sign is 1."""
    rows, groups = indices.shape
    for m in range(rows):
        for block in range(out.shape[1]):
            start = block * lookups
            total = tables[0, 0] - tables[0, 0]
            for k in range(start, min(start + lookups, groups)):
                value = tables[k, indices[m, k]]
                total += -value if signs[m, k] else value
            out[m, block] += total


@_jit
def chunk_values(indices, codes, start, stop, averaging, work):  # type: ignore[no-untyped-def]
    """The aggregate of one chunk: the int16 sum, or the value of the rounding-average tree.

    The tree halves the chunk: average(first half, second half), (a + b + 1) >> 1 at every node.
    """
    length = stop - start
    if not averaging:
        total = np.int32(0)
        for k in range(start, stop):
            total += codes[k, indices[k]]
        return total
    for k in range(length):
        work[k] = codes[start + k, indices[start + k]]
    # Neighbours first gives the same tree as halves first: the same pairs meet at each node.
    while length > 1:
        for k in range(length // 2):
            work[k] = (work[2 * k] + work[2 * k + 1] + 1) >> 1
        length //= 2
    return work[0]


@_jit
def quantized_planes(indices, codes, lookups, averaging, scales, biases, weight_scales, blocks, out):  # type: ignore[no-untyped-def]
    """out[i, m] in float32: each chunk of *lookups* indices is aggregated in integers, then scaled.

    *scales* and *biases* are those of the chunks (the bias joins plane 0 only), *weight_scales*
    (rows, blocks) those of the rows, *blocks* the block of each chunk.
    """
    planes, rows, _ = indices.shape
    work = np.empty(lookups, np.int32)
    for m in range(rows):
        for i in range(planes):
            row = indices[i, m]
            total = np.float32(0)
            for chunk in range(scales.shape[0]):
                start = chunk * lookups
                value = chunk_values(row, codes, start, start + lookups, averaging, work)
                term = np.float32(value) * scales[chunk]
                if i == 0:
                    term += biases[chunk]
                total += term * weight_scales[m, blocks[chunk]]
            out[i, m] = total
