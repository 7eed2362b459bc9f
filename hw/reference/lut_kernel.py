"""Integer-exact model of the table-lookup engine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat, TernaryFormat
from quantizers.table_lookup.planes import bit_planes, plane_indices, table, ternary_indices, ternary_table


def table_lookup_matrix_vector(
    weight_codes: npt.ArrayLike,
    activation_codes: npt.ArrayLike,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    group: int,
) -> npt.NDArray[np.int64]:
    """The sums that :class:`hw.lut_kernel.TableLookupEngine` gives, by tables and indices as it does.

    Args:
        weight_codes: shape ``(rows, columns)``.
        activation_codes: shape ``(vectors, columns)``.
        weights: integers of up to four bits, or ternary.
        activations: integers.
        group: columns that share a table.

    Returns:
        ``sum_k w[row, k] * x[vector, k]``, shape ``(vectors, rows)``, in units of
        ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``.

    Raises:
        UsageError: shapes that do not fit, codes that are none, or as the functions of
            :mod:`quantizers.table_lookup.planes`.
    """
    matrix, vectors = np.asarray(weight_codes), activations.fixed_point(np.asarray(activation_codes))
    if matrix.ndim != 2 or vectors.ndim != 2 or matrix.shape[1] != vectors.shape[1]:
        msg = f"codes must be of shapes (rows, n) and (vectors, n), not {matrix.shape} and {vectors.shape}"
        raise UsageError(msg, given=f"{matrix.shape}, {vectors.shape}", expected=["(rows, n), (vectors, n)"])
    if isinstance(weights, TernaryFormat):
        indices, signs = ternary_indices(weights.fixed_point(matrix), group)
        entries = _looked_up(ternary_table(vectors, group), indices)
        return np.where(signs == 1, -entries, entries).sum(axis=-1)
    signed_sums = table(vectors, group)
    subset_sums = (signed_sums - signed_sums[..., :1]) // 2
    total = np.zeros((len(vectors), len(matrix)), np.int64)
    for plane, bits in enumerate(bit_planes(matrix, weights.bits)):
        is_negative = weights.signed and plane == weights.bits - 1
        part = _looked_up(subset_sums, plane_indices(bits, group)).sum(axis=-1) << plane
        total += -part if is_negative else part
    return total


def _looked_up(tables: npt.NDArray[np.int64], indices: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """``tables[vector, group, indices[row, group]]``, shape ``(vectors, rows, groups)``."""
    return tables[:, np.arange(indices.shape[1]), indices]
