"""Integer-exact model of the grouped table-lookup engine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hw.reference.lut_kernel import table_lookup_matrix_vector
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat


def grouped_matrix_vector(
    weight_codes: npt.ArrayLike,
    activation_codes: npt.ArrayLike,
    scales: npt.ArrayLike,
    zeros: npt.ArrayLike | None = None,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    block: int,
    group: int,
) -> npt.NDArray[np.int64]:
    """The results that :class:`hw.lut_kernel.grouped.GroupedLookupEngine` gives, block by block as it does.

    Args:
        weight_codes: shape ``(rows, columns)``.
        activation_codes: shape ``(vectors, columns)``.
        scales: integers, shape ``(rows, ceil(columns / block))``.
        zeros: zero points, of the same shape; none by default.
        weights: integers of up to four bits, or ternary.
        activations: integers.
        block: columns that share a scale.
        group: columns that share a table.

    Returns:
        ``sum_b scales[row, b] * sum_k (w[row, k] - zeros[row, b]) * x[vector, k]`` with k from the columns
        of block b, shape ``(vectors, rows)``.

    Raises:
        UsageError: shapes that do not fit, or as
            :func:`hw.reference.lut_kernel.table_lookup_matrix_vector`.
    """
    matrix, vectors, factors = map(np.asarray, (weight_codes, activation_codes, scales))
    offsets = np.zeros_like(factors) if zeros is None else np.asarray(zeros)
    starts = range(0, matrix.shape[-1], block)
    shape = (len(matrix), len(starts))
    if factors.shape != shape or offsets.shape != shape:
        msg = f"scales and zeros must be of shape {shape}, not {factors.shape} and {offsets.shape}"
        raise UsageError(msg, given=f"{factors.shape}, {offsets.shape}", expected=[str(shape)])
    total = np.zeros((len(vectors), len(matrix)), np.int64)
    for number, start in enumerate(starts):
        columns = slice(start, start + block)
        sums = table_lookup_matrix_vector(
            matrix[:, columns], vectors[:, columns], weights=weights, activations=activations, group=group
        )
        activation_sums = activations.fixed_point(vectors[:, columns]).sum(axis=1, keepdims=True)
        total += factors[:, number] * (sums - offsets[:, number] * activation_sums)
    return total
