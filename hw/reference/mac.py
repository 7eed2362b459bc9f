"""Integer-exact model of the multiply-accumulate unit."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hw._checks import check_positive
from hw.reference.widths import largest_magnitude
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat

Sums: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.object_]

_INT64_BITS = 63


def multiply_accumulate(
    weight_codes: npt.ArrayLike,
    activation_codes: npt.ArrayLike,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    accumulator_bits: int | None = None,
) -> Sums:
    """Dot products along the last axis, exact: what :class:`hw.mac.MultiplyAccumulate` gives.

    Args:
        weight_codes: shape ``(..., n)``, broadcast against *activation_codes*.
        activation_codes: shape ``(..., n)`` with the same n.
        weights: format of the weight codes.
        activations: format of the activation codes.
        accumulator_bits: width at which sums wrap (two's complement); without it they never do.

    Returns:
        Shape ``(...)``, in units of ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``:
        int64 where every possible sum fits, else Python integers (dtype object).

    Raises:
        UsageError: a code outside its format or without a finite value, lengths that differ, or a
            width that is not positive.
    """
    w, a = weights.fixed_point(weight_codes), activations.fixed_point(activation_codes)
    if not w.ndim or not a.ndim or w.shape[-1] != a.shape[-1]:
        msg = f"codes must agree in the length of their last axis, not have shapes {w.shape} and {a.shape}"
        raise UsageError(msg, given=f"{w.shape}, {a.shape}", expected=["(..., n), (..., n)"])
    sums = _dot(w, a, largest_magnitude(weights), largest_magnitude(activations))
    return sums if accumulator_bits is None else _wrapped(sums, accumulator_bits)


def _dot(w: npt.NDArray[np.int64], a: npt.NDArray[np.int64], largest_w: int, largest_a: int) -> Sums:
    """The dot product; wide weights go limb by limb, so that no int64 sum overflows."""
    weight_bits = largest_w.bit_length()
    room = _INT64_BITS - (w.shape[-1] * largest_a).bit_length()
    if weight_bits <= room:
        return np.asarray(np.sum(w * a, axis=-1))
    if room < 1:
        msg = f"dot products of {w.shape[-1]} such codes are too long for the reference model"
        raise UsageError(msg, given=w.shape[-1], expected=["shorter dot products"])
    total = np.zeros((1,), dtype=object)
    for position in range(0, weight_bits, room):
        limb = w >> position
        if position + room < weight_bits:
            limb &= (1 << room) - 1
        # The kept axis keeps numpy from making a scalar of it, which would not become a Python integer.
        total = total + np.sum(limb * a, axis=-1, keepdims=True).astype(object) * (1 << position)
    return np.asarray(total[..., 0], dtype=object)


def _wrapped(sums: Sums, bits: int) -> Sums:
    check_positive("accumulator_bits", bits)
    if sums.dtype != object and bits > _INT64_BITS:
        return sums
    half = 1 << (bits - 1)
    if sums.dtype == object:
        return np.asarray(((sums & (2 * half - 1)) ^ half) - half, dtype=object)
    return np.asarray(((sums & (2 * half - 1)) ^ half) - half, dtype=np.int64)
