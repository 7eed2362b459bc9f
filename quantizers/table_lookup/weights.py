"""Weights of 1 to 4 bits with scales and zero points along the columns, and their product by tables.

w[m, k] = scale * (u[m, k] - zero), with one scale and one zero point for each block of columns of a
row, for a row, or for the matrix. Rounding follows GPTQ (arXiv 2210.17323) and, for ternary weights,
BitNet b1.58 (arXiv 2402.17764, equations 1 to 3); both round half to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.table_lookup.gemv import PlaneIndices, block_products, block_sums, vector
from quantizers.table_lookup.planes import FLOAT_LIMIT, MAX_BITS, check_integer, check_matrix, first_position
from quantizers.table_lookup.quantized import TableQuantization, quantized_gemv

BlockSize = int | Literal["channel", "tensor"]
_EPSILON = 1e-5
_SMALLEST_SCALE = np.finfo(np.float16).smallest_subnormal
TERNARY_ZERO = 2
"""The code of a ternary weight is w + 2, of two bits."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupedWeights:
    """Weight codes with their scales.

    Attributes:
        codes: u in [0, 2**bits), shape (rows, columns).
        bits: bits per code, 1 to 4.
        scales: float16, shape (rows, ceil(columns/block)), or (1, 1) for one scale.
        zeros: the codes that stand for 0, shape of *scales*; 2**(bits-1) where symmetric.
        block: columns that share a scale.
        ternary: every code is 1, 2 or 3 of two bits, for the weights -1, 0 and 1.

    Raises:
        UsageError: the values do not fit together.
    """

    codes: NDArray[np.uint8]
    bits: int
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    block: int
    ternary: bool = False

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, MAX_BITS)
        check_matrix("codes", self.codes, 0, 2**self.bits - 1)
        rows, columns = self.codes.shape
        check_integer("block", self.block, 1, columns)
        shape = (rows, -(-columns // self.block))
        if self.scales.shape not in (shape, (1, 1)) or self.scales.dtype != np.float16:
            given = f"{self.scales.dtype} of shape {self.scales.shape}"
            msg = f"scales must be float16 of shape {shape} or (1, 1), not {given}"
            raise UsageError(msg, given=given)
        if (wrong := ~(np.isfinite(self.scales) & (self.scales > 0))).any():
            position = first_position(wrong)
            msg = f"scales must be positive and finite; {self.scales[position]} at {position} is not"
            raise UsageError(msg, given=self.scales[position])
        if self.zeros.shape != self.scales.shape:
            msg = f"zeros must have the shape of the scales {self.scales.shape}, not {self.zeros.shape}"
            raise UsageError(msg, given=self.zeros.shape)
        check_matrix("zeros", self.zeros, 0, 2**self.bits - 1)
        if self.ternary:
            check_matrix("ternary codes", self.codes, 1, 3)
            check_matrix("ternary zeros", self.zeros, TERNARY_ZERO, TERNARY_ZERO)

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 2**(bits-1)."""
        return bool((self.zeros == 2 ** (self.bits - 1)).all())

    @cached_property
    def scale_matrix(self) -> NDArray[np.float64]:
        """The scales as float64 of shape (rows, blocks)."""
        return np.broadcast_to(self.scales.astype(np.float64), self._shape)

    @cached_property
    def zero_matrix(self) -> NDArray[np.int64]:
        """The zero points less 2**(bits-1), shape (rows, blocks)."""
        return np.broadcast_to(self.zeros.astype(np.int64) - 2 ** (self.bits - 1), self._shape)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.codes.shape[0], -(-self.codes.shape[1] // self.block)

    def indices(self, group: int = 4) -> PlaneIndices:
        """The lookup indices for tables of *group* columns, 1 to 8."""
        return PlaneIndices.of_codes(self.codes, self.bits, group=group, block=self.block)

    def dequantized(self) -> NDArray[np.float64]:
        """scale * (u - zero), shape (rows, columns), float64."""
        columns = self.codes.shape[1]
        centred = self.codes.astype(np.float64) - 2 ** (self.bits - 1)
        zeros = np.repeat(self.zero_matrix, self.block, axis=1)[:, :columns]
        weights: NDArray[np.float64] = (centred - zeros) * np.repeat(self.scale_matrix, self.block, axis=1)[
            :, :columns
        ]
        return weights


@dataclass(frozen=True, eq=False, kw_only=True)
class TableProduct:
    """A product by tables beside the product of the dequantized weights.

    Attributes:
        values: by tables, float64, shape (rows,).
        reference: by float64 multiplications, shape (rows,).
    """

    values: NDArray[np.float64]
    reference: NDArray[np.float64]

    @property
    def nmse(self) -> float:
        """Normalised mean squared error: sum (y - r)**2 / sum r**2; 0 where both are all zero."""
        error = float(np.square(self.values - self.reference).sum())
        return error / float(np.square(self.reference).sum()) if error else 0.0

    @property
    def relative_error(self) -> float:
        """The ratio of the norms, |y - r| / |r|: the square root of `nmse`."""
        return float(np.sqrt(self.nmse))


def quantize_groups(
    weights: ArrayLike, bits: int, *, block: BlockSize = 128, symmetric: bool = False
) -> GroupedWeights:
    """Round *weights* as GPTQ does without its error compensation.

    Asymmetric: scale = (max(w, 0) - min(w, 0)) / (2**bits - 1), zero = round(-min / scale).
    Symmetric: the range is [-max |w|, max |w|] and zero = 2**(bits-1). Then
    u = clip(round(w / scale) + zero, 0, 2**bits - 1). Scales are rounded to float16 first.

    Args:
        weights: finite, shape (rows, columns).
        bits: bits per code, 1 to 4.
        block: columns that share a scale (the last block may be shorter), "channel" for one scale a
            row or "tensor" for one scale.
        symmetric: one fixed zero point.

    Raises:
        UsageError: an argument is out of range, or a scale is too large for float16.
    """
    check_integer("bits", bits, 1, MAX_BITS)
    matrix = _finite_matrix(weights)
    columns = columns_of_block(block, matrix.shape[1])
    low = np.minimum(_reduced(np.minimum, matrix, columns, block), 0.0)
    high = np.maximum(_reduced(np.maximum, matrix, columns, block), 0.0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scales = _half_precision((high - low) / (2**bits - 1))
    exact = scales.astype(np.float64)
    middle = np.full(scales.shape, 2.0 ** (bits - 1))
    zeros = middle if symmetric else np.clip(np.rint(-low / exact), 0, 2**bits - 1)
    steps = np.rint(matrix / _spread(exact, matrix.shape, columns))
    codes = np.clip(steps + _spread(zeros, matrix.shape, columns), 0, 2**bits - 1)
    return GroupedWeights(
        codes=codes.astype(np.uint8), bits=bits, scales=scales, zeros=zeros.astype(np.uint8), block=columns
    )


def quantize_ternary(weights: ArrayLike, *, block: BlockSize = "tensor") -> GroupedWeights:
    """Round *weights* to scale * {-1, 0, 1} by their mean magnitude, as BitNet b1.58.

    scale = mean |w|, rounded to float16; w = clip(round(w / (scale + 1e-5)), -1, 1).

    Args:
        weights: finite, shape (rows, columns).
        block: as in `quantize_groups`; BitNet has one scale, "tensor".

    Raises:
        UsageError: an argument is out of range, or a scale is too large for float16.
    """
    matrix = _finite_matrix(weights)
    columns = columns_of_block(block, matrix.shape[1])
    sums = _reduced(np.add, np.abs(matrix), columns, block)
    ends = np.minimum(np.arange(columns, matrix.shape[1] + columns, columns), matrix.shape[1])
    lengths = np.diff(ends, prepend=0) * (matrix.shape[0] if block == "tensor" else 1)
    scales = _half_precision(sums / lengths)
    steps = np.rint(matrix / _spread(scales.astype(np.float64) + _EPSILON, matrix.shape, columns))
    codes = (np.clip(steps, -1, 1) + TERNARY_ZERO).astype(np.uint8)
    zeros = np.full(scales.shape, TERNARY_ZERO, np.uint8)
    return GroupedWeights(codes=codes, bits=2, scales=scales, zeros=zeros, block=columns, ternary=True)


def table_gemv(
    weights: GroupedWeights,
    activations: ArrayLike,
    *,
    group: int = 4,
    tables: TableQuantization | None = None,
    indices: PlaneIndices | None = None,
) -> TableProduct:
    """y = W x by table lookup, and the same with dequantized weights in float64.

    Args:
        weights: W.
        activations: x, integers or finite floats, shape (columns,).
        group: columns that share a table, 1 to 8.
        tables: round the tables to int8; exact tables by default.
        indices: `weights.indices(group)` where they are at hand.

    Raises:
        UsageError: shapes do not fit, a value is not finite, or see `quantized_gemv`.
    """
    x = vector(activations, weights.codes.shape[1])
    indices = weights.indices(group) if indices is None else indices
    offsets = (weights.scale_matrix * weights.zero_matrix) @ block_sums(x, weights.block)
    if tables is None:
        products = block_products(indices, x)
        values = (weights.scale_matrix * products).sum(axis=1) - offsets
    else:
        values = quantized_gemv(indices, weights.scales, x, tables) - offsets
    return TableProduct(values=values, reference=weights.dequantized() @ x.astype(np.float64))


def columns_of_block(block: BlockSize, columns: int) -> int:
    """The columns that share a scale, at most *columns*.

    Raises:
        UsageError: *block* is neither a positive integer nor "channel" nor "tensor".
    """
    if block in ("channel", "tensor"):
        return columns
    if isinstance(block, str | bool) or block < 1:
        msg = f"block must be a positive integer, 'channel' or 'tensor', not {block!r}"
        raise UsageError(msg, given=block, expected=["32", "64", "128", "channel", "tensor"])
    return min(block, columns)


def _finite_matrix(weights: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(weights)
    if matrix.ndim != 2 or matrix.size == 0 or matrix.dtype.kind not in "iuf":
        msg = f"weights must be a non-empty matrix of numbers, not {matrix.dtype} of shape {matrix.shape}"
        raise UsageError(msg, given=matrix.shape)
    if not (usable := np.abs(matrix.astype(np.float64)) <= FLOAT_LIMIT).all():
        row, column = first_position(~usable)
        wrong = matrix[row, column]
        msg = f"weights must be finite float32 values; {wrong} at row {row}, column {column} is none"
        raise UsageError(msg, given=wrong)
    return matrix.astype(np.float64)


def _reduced(
    function: np.ufunc, matrix: NDArray[np.float64], columns: int, block: BlockSize
) -> NDArray[np.float64]:
    """*function* over each block of *columns* columns; shape (rows, blocks), or (1, 1) for "tensor"."""
    reduced: NDArray[Any] = function.reduceat(matrix, np.arange(0, matrix.shape[1], columns), axis=1)
    return function.reduce(reduced, axis=0, keepdims=True) if block == "tensor" else reduced


def _spread(values: NDArray[np.float64], shape: tuple[int, ...], columns: int) -> NDArray[np.float64]:
    """*values* of the blocks for every element of a matrix of *shape*, or as they are where one."""
    return values if values.shape == (1, 1) else np.repeat(values, columns, axis=1)[:, : shape[1]]


def _half_precision(scales: NDArray[np.float64]) -> NDArray[np.float16]:
    """*scales* as float16, at least its smallest value: a block of zeros works with any scale."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if (infinite := np.isinf(half)).any():
        position = first_position(infinite)
        msg = (
            f"the scale {scales[position]:.6g} at {position} is too large for float16; scale the weights down"
        )
        raise UsageError(msg, given=scales[position])
    return np.maximum(half, _SMALLEST_SCALE)
