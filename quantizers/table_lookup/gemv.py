"""Exact matrix-vector products by table lookup: bit planes of 1 to 4 bits, and ternary weights.

No restriction on shapes: the columns of each block (a block shares a weight scale) are filled up to
a multiple of the table group, see `quantizers.table_lookup.planes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.table_lookup import _kernels
from quantizers.table_lookup.planes import (
    MAX_GROUP,
    bit_planes,
    check_integer,
    checked_activations,
    plane_indices,
    table,
    ternary_indices,
    ternary_table,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class PlaneIndices:
    """The lookup indices of a matrix of weight codes.

    Attributes:
        indices: shape (bits, rows, blocks * lookups).
        columns: columns of the matrix.
        group: columns that share a table.
        block: columns that share a weight scale; the last block may be shorter.
    """

    indices: NDArray[np.uint8]
    columns: int
    group: int
    block: int

    @classmethod
    def of_codes(
        cls, codes: ArrayLike, bits: int, *, group: int = 4, block: int | None = None
    ) -> PlaneIndices:
        """The indices of *codes* (rows, columns), see `bit_planes` and `plane_indices`.

        Args:
            codes: integers in [0, 2**bits).
            bits: bits per code, 1 to 4.
            group: columns that share a table, 1 to 8.
            block: columns that share a weight scale; all by default.

        Raises:
            UsageError: an argument is out of range.
        """
        planes = bit_planes(codes, bits)
        columns = planes.shape[2]
        block = columns if block is None else block
        check_integer("block", block, 1, columns)
        check_integer("group", group, 1, MAX_GROUP)
        indices = np.stack([plane_indices(p, group) for p in in_blocks(planes, block, group)])
        return cls(indices=indices, columns=columns, group=group, block=block)

    @property
    def bits(self) -> int:
        """Bits per code."""
        return int(self.indices.shape[0])

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return int(self.indices.shape[1])

    @property
    def lookups(self) -> int:
        """Lookups of a row, a plane and a block: ceil(block / group)."""
        return -(-self.block // self.group)

    @property
    def blocks(self) -> int:
        """Blocks of a row: ceil(columns / block)."""
        return -(-self.columns // self.block)


@dataclass(frozen=True, eq=False, kw_only=True)
class TernaryIndices:
    """The lookup indices and signs of a ternary matrix, each of shape (rows, ceil(columns/group))."""

    indices: NDArray[np.uint8]
    signs: NDArray[np.uint8]
    columns: int
    group: int

    @classmethod
    def of_weights(cls, weights: ArrayLike, *, group: int = 3) -> TernaryIndices:
        """The indices of *weights* (rows, columns), see `ternary_indices`.

        Raises:
            UsageError: *group* is out of range, or *weights* is no matrix of -1, 0 and 1.
        """
        indices, signs = ternary_indices(weights, group)
        return cls(indices=indices, signs=signs, columns=np.asarray(weights).shape[1], group=group)


def integer_gemv(
    weights: PlaneIndices, activations: ArrayLike, *, mirrored: bool = False
) -> NDArray[np.int64]:
    """The exact product y[m] = sum_k (u[m, k] - 2**(bits-1)) * x[k] by table lookup.

    Args:
        weights: the indices of the codes u.
        activations: integers x that fit 32 bits, shape (columns,).
        mirrored: build half of each table and negate for the rest, as T-MAC's mirror consolidation;
            the result is the same.

    Returns:
        int64, shape (rows,).

    Raises:
        UsageError: the activations are no integers, too large, or not one a column.
    """
    x = integer_vector(activations, weights.columns)
    return block_products(weights, x, mirrored=mirrored).sum(axis=1)


def ternary_gemv(weights: TernaryIndices, activations: ArrayLike) -> NDArray[np.int64]:
    """The exact product y[m] = sum_k w[m, k] * x[k] of ternary weights by table lookup.

    Args:
        weights: the indices of the weights w.
        activations: integers x that fit 32 bits, shape (columns,).

    Returns:
        int64, shape (rows,).

    Raises:
        UsageError: the activations are no integers, too large, or not one a column.
    """
    x = integer_vector(activations, weights.columns)
    tables = narrowed(ternary_table(x, weights.group))
    sums = np.zeros((weights.indices.shape[0], 1), np.int64)
    _kernels.ternary_sums(weights.indices, weights.signs, tables, tables.shape[0], sums)
    return sums[:, 0]


def block_products(weights: PlaneIndices, activations: ArrayLike, *, mirrored: bool = False) -> NDArray[Any]:
    """sum over the columns k of each block of (u[m, k] - 2**(bits-1)) * x[k].

    Args:
        weights: the indices of the codes u.
        activations: x, shape (columns,); integers, or finite floats.
        mirrored: as in `integer_gemv`.

    Returns:
        Shape (rows, blocks): int64, exact, for integers; float64, rounded, for floats.

    Raises:
        UsageError: the activations are not finite, too large, or not one a column.
    """
    x = vector(activations, weights.columns)
    tables = narrowed(table(in_blocks(x, weights.block, weights.group), weights.group))
    sums = np.zeros((weights.rows, weights.blocks), x.dtype)
    if mirrored:
        half = np.ascontiguousarray(tables[:, : tables.shape[1] // 2])
        _kernels.mirrored_plane_sums(weights.indices, half, weights.lookups, sums)
    else:
        _kernels.plane_sums(weights.indices, tables, weights.lookups, sums)
    # sum_i 2**i * s_i = 2 * (u - 2**(bits-1)) + 1 in every column.
    twice = sums - block_sums(x, weights.block)
    return twice // 2 if x.dtype == np.int64 else twice / 2


def block_sums(activations: NDArray[Any], block: int) -> NDArray[Any]:
    """The sum of the activations (columns,) of each block; shape (ceil(columns/block),)."""
    sums: NDArray[Any] = np.add.reduceat(activations, np.arange(0, activations.shape[0], block))
    return sums


def in_blocks(array: NDArray[Any], block: int, multiple: int) -> NDArray[Any]:
    """(..., columns) with zeros after each block of columns, up to the next multiple of *multiple*.

    The last block gets zeros up to the length of the others.
    """
    columns = array.shape[-1]
    leading = [(0, 0)] * (array.ndim - 1)
    blocks = np.pad(array, [*leading, (0, -columns % block)]).reshape(*array.shape[:-1], -1, block)
    padded = np.pad(blocks, [*leading, (0, 0), (0, -block % multiple)])
    return padded.reshape(*array.shape[:-1], -1)


def vector(activations: ArrayLike, columns: int) -> NDArray[Any]:
    """*activations* as int64 or float64.

    Raises:
        UsageError: they are no vector of *columns* finite numbers.
    """
    x = checked_activations(activations)
    if x.shape != (columns,):
        msg = f"activations must have shape ({columns},), one a column of the weights, not {x.shape}"
        raise UsageError(msg, given=x.shape)
    return x


def integer_vector(activations: ArrayLike, columns: int) -> NDArray[np.int64]:
    """*activations* as int64.

    Raises:
        UsageError: they are no vector of *columns* integers.
    """
    x = vector(activations, columns)
    if x.dtype != np.int64:
        msg = "activations must be integers for an exact product, not floats"
        raise UsageError(msg, given=np.asarray(activations).dtype)
    return x


def narrowed(tables: NDArray[Any]) -> NDArray[Any]:
    """Integer tables in the narrowest type that holds them, so that they stay in the first cache."""
    if tables.dtype != np.int64:
        return tables
    largest = int(np.abs(tables).max())
    narrow = next(t for t in (np.int16, np.int32, np.int64) if largest <= np.iinfo(t).max)
    return tables.astype(narrow)
