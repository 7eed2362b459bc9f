"""Tables rounded to int8, as T-MAC's kernels look them up (arXiv 2407.00088, section 3).

An FPGA needs none of this: tables of int8 activations fit 10 bits exactly. It is here to reproduce
the arithmetic of the CPU kernels and its error.

Against the released kernels: they multiply by the reciprocal of the scale in float16 or float32, here
the quotient is rounded, so an entry next to a tie can differ by one (in float32 none of 327,680 did);
their averaging trees of 8 miss the correction (an integer division of 3 by 4), here it is
log2(lookups) / 4 for every length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.table_lookup import _kernels
from quantizers.table_lookup.gemv import PlaneIndices, block_sums, vector
from quantizers.table_lookup.planes import check_integer, checked_activations, table

LARGEST = 127
CHUNKS = (8, 16)


@dataclass(frozen=True, kw_only=True)
class TableQuantization:
    """How tables become int8 and how the looked-up values are added.

    Attributes:
        activation_group: columns that share a table scale, such as 32 or 64; None for all.
        lookups: most lookups that are added in int16 before the sum becomes a float, 8 or 16.
        averaging: "fast aggregation", a tree of rounding averages (a + b + 1) >> 1 in int8 in place of
            the int16 sum, less the error that it makes on average (arXiv 2106.10860).
    """

    activation_group: int | None = 64
    lookups: int = 16
    averaging: bool = False

    def __post_init__(self) -> None:
        if self.activation_group is not None:
            check_integer("activation_group", self.activation_group, 1, 2**31 - 1)
        if self.lookups not in CHUNKS:
            msg = f"lookups must be 8 or 16, not {self.lookups!r}"
            raise UsageError(msg, given=self.lookups, expected=[str(n) for n in CHUNKS])


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedTables:
    """Tables of int8 and what turns sums of their entries back.

    Attributes:
        codes: shape (groups, 2**group).
        scales: float32, shape (activation groups,).
        biases: float32, minus the sum of the activations of each activation group.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    biases: NDArray[np.float32]


def quantize_tables(
    activations: ArrayLike, group: int, activation_group: int | None = None
) -> QuantizedTables:
    """The int8 tables of *activations*.

    scale = max over the tables of an activation group of sum |x| / 127, rounded to float32; codes are
    T / scale rounded half to even in float64 and saturated to [-128, 127]; 0 where the scale is 0.

    Args:
        activations: integers or finite floats, shape (columns,).
        group: activations that share a table, 1 to 8.
        activation_group: activations that share a scale, a multiple of *group*; None for all.

    Raises:
        UsageError: an argument is out of range, or the activations are no vector of finite numbers.
    """
    x = checked_activations(activations).astype(np.float64)
    if x.ndim != 1:
        msg = f"activations must be a vector, not an array of shape {x.shape}"
        raise UsageError(msg, given=x.shape)
    tables = table(x, group)
    tables_per_scale = tables.shape[0]
    if activation_group is not None:
        check_integer("activation_group", activation_group, 1, 2**31 - 1)
        if activation_group % group:
            msg = f"activation_group must be a multiple of the table group {group}, not {activation_group}"
            raise UsageError(msg, given=activation_group)
        tables_per_scale = min(activation_group // group, tables_per_scale)
    starts = np.arange(0, tables.shape[0], tables_per_scale)
    # The largest entry is the sum of the magnitudes: every choice of signs is in the table.
    largest = np.maximum.reduceat(tables.max(axis=1), starts)
    scales = (largest / LARGEST).astype(np.float32)
    divisors = np.repeat(np.where(scales > 0, scales, np.inf), tables_per_scale)[: tables.shape[0], None]
    codes = np.clip(np.rint(tables / divisors), -LARGEST - 1, LARGEST).astype(np.int8)
    biases = -block_sums(x, tables_per_scale * group)
    return QuantizedTables(codes=codes, scales=scales, biases=biases.astype(np.float32))


def quantized_gemv(
    weights: PlaneIndices,
    weight_scales: ArrayLike,
    activations: ArrayLike,
    settings: TableQuantization,
) -> NDArray[np.float32]:
    """y[m] = sum_k weight_scales[m, block of k] * (u[m, k] - 2**(bits-1)) * x[k] from int8 tables.

    Chunks of min(block/group, activation group/group, lookups) looked-up values are added in int16
    (or averaged), become float32, and are scaled, biased and added up in that order, plane by plane;
    y = sum_i alpha_i * c_i. With one scale for all columns of weights and of tables ("one-scale mode", for
    BitNet) the sum is int32 to the end, with no chunks. No fused multiply-add.

    Args:
        weights: the indices of the codes u.
        weight_scales: shape (rows, blocks), or (1, 1) for one scale.
        activations: x, integers or finite floats, shape (columns,).
        settings: of the tables and of the additions.

    Returns:
        float32, shape (rows,).

    Raises:
        UsageError: shapes do not fit, or the weight block, the activation group and the table group
            do not divide one another.
    """
    x = vector(activations, weights.columns)
    chunk = chunk_lookups(weights, settings)
    tables = quantize_tables(x, weights.group, settings.activation_group)
    per_scale = weights.columns if settings.activation_group is None else settings.activation_group
    chunk_columns = chunk * weights.group
    starts = np.arange(0, weights.columns, chunk_columns)
    scales = tables.scales[starts // per_scale]
    biases = -block_sums(x.astype(np.float64), chunk_columns)
    if settings.averaging:
        levels = chunk.bit_length() - 1
        scales = scales * np.float32(chunk)
        # Each level of rounding averages is a quarter too high on average, in every plane.
        biases = biases - scales.astype(np.float64) * (levels / 4) * (2**weights.bits - 1)
    lookups = starts.shape[0] * chunk
    sums = np.zeros((weights.bits, weights.rows), np.float32)
    _kernels.quantized_planes(
        _with_zeros(weights.indices, 2, lookups),
        _with_zeros(tables.codes, 0, lookups),
        chunk,
        settings.averaging,
        scales,
        biases.astype(np.float32),
        row_scales(weight_scales, weights),
        starts // weights.block,
        sums,
    )
    alphas = np.float32(2.0) ** np.arange(-1, weights.bits - 1, dtype=np.float32)
    y = np.zeros(weights.rows, np.float32)
    for alpha, plane in zip(alphas, sums, strict=True):
        y += alpha * plane
    return y


def chunk_lookups(weights: PlaneIndices, settings: TableQuantization) -> int:
    """The lookups that are added in integers: they share one weight scale and one table scale.

    Raises:
        UsageError: the weight block, the activation group and the table group do not divide one
            another, or averaging has no power of two of lookups.
    """
    one_scale = settings.activation_group is None and weights.blocks == 1
    if one_scale and not settings.averaging:
        return weights.lookups
    spans = [span for span in (settings.activation_group, weights.block) if span and span < weights.columns]
    chunk = min(settings.lookups, *(span // weights.group for span in spans), weights.lookups)
    if settings.averaging:
        chunk = 1 << (chunk.bit_length() - 1) if chunk else 0
    wrong = [span for span in spans if not chunk or span % (chunk * weights.group)]
    if wrong:
        msg = (
            f"{chunk} lookups of {weights.group} columns do not divide the {wrong[0]} columns that share a "
            "scale; int8 tables need a table group that does, such as 4 of 32, 64 or 128"
        )
        raise UsageError(msg, given=wrong[0])
    return chunk


def row_scales(weight_scales: ArrayLike, weights: PlaneIndices) -> NDArray[np.float32]:
    """*weight_scales* for every row and block, as float32.

    Raises:
        UsageError: the shape is neither (rows, blocks) nor (1, 1) for one scale.
    """
    scales = np.asarray(weight_scales, np.float32)
    shape = (weights.rows, weights.blocks)
    if scales.shape not in (shape, (1, 1)):
        msg = f"weight_scales must have shape {shape} or (1, 1), not {scales.shape}"
        raise UsageError(msg, given=scales.shape)
    return np.ascontiguousarray(np.broadcast_to(scales, shape))


def _with_zeros(array: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    """*array* with zeros at the end of *axis* up to *length*; as it is where that is long enough."""
    missing = max(0, length - array.shape[axis])
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)]) if missing else array
