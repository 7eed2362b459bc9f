"""Integer-exact model of the matrix-vector unit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hw.reference.mac import Sums, _wrapped, multiply_accumulate
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat


def matrix_vector(
    weight_codes: npt.ArrayLike,
    activation_codes: npt.ArrayLike,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    biases: npt.ArrayLike | None = None,
    accumulator_bits: int | None = None,
) -> Sums:
    """The sums that :class:`hw.mvu.MatrixVectorUnit` gives; codes are made of them by :func:`requantize`.

    Args:
        weight_codes: shape ``(rows, columns)``.
        activation_codes: shape ``(vectors, columns)``.
        weights: format of the weight codes.
        activations: format of the activation codes.
        biases: integers in units of the sums, shape ``(rows,)``.
        accumulator_bits: width at which sums wrap (two's complement); without it they never do.

    Returns:
        Shape ``(vectors, rows)``, in units of ``2**(weights.grid.lsb_exponent +
        activations.grid.lsb_exponent)``: int64, or Python integers (dtype object) where a sum might not fit.

    Raises:
        UsageError: shapes that do not fit, or as :func:`multiply_accumulate`.
    """
    matrix, vectors = np.asarray(weight_codes), np.asarray(activation_codes)
    if matrix.ndim != 2 or vectors.ndim != 2 or matrix.shape[1] != vectors.shape[1] or not len(vectors):
        msg = f"codes must be of shapes (rows, n) and (vectors, n), not {matrix.shape} and {vectors.shape}"
        raise UsageError(msg, given=f"{matrix.shape}, {vectors.shape}", expected=["(rows, n), (vectors, n)"])
    start = np.asarray(np.zeros(len(matrix), np.int64) if biases is None else biases)
    if start.shape != matrix.shape[:1]:
        msg = f"biases must be of shape {matrix.shape[:1]}, not {start.shape}"
        raise UsageError(msg, given=start.shape, expected=[str(matrix.shape[:1])])
    products = [
        multiply_accumulate(matrix, vector[None], weights=weights, activations=activations)
        for vector in vectors
    ]
    sums = np.stack(products)
    if max(abs(int(bound)) for bound in (sums.min(), sums.max(), start.min(), start.max())) >= 1 << 62:
        sums = sums.astype(object)
    total = sums + start
    return total if accumulator_bits is None else _wrapped(total, accumulator_bits)
