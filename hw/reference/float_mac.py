"""Integer-exact model of the multiply-accumulate unit with a floating-point accumulator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hw._checks import check_natural
from hw.arith.decoder import Decoder, has_separate_sign
from hw.reference.mac import Sums
from quantizers.errors import UsageError
from quantizers.formats import MinifloatFormat, ScalarFormat


def float_accumulate(
    weight_codes: npt.ArrayLike,
    activation_codes: npt.ArrayLike,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    guard_bits: int,
) -> tuple[Sums, npt.NDArray[np.int64]]:
    """Dot products along the last axis as :class:`hw.float_mac.FloatMultiplyAccumulate` adds them up.

    Args:
        weight_codes: shape ``(..., n)``, broadcast against *activation_codes*.
        activation_codes: shape ``(..., n)`` with the same n.
        weights, activations, guard_bits: of the unit.

    Returns:
        Significands (Python integers, dtype object) and exponents, each of shape ``(...)``: the dot
        product is about ``significand * 2**(exponent - first_exponent - guard_bits)``, in the unit's terms.

    Raises:
        UsageError: a code outside its format or without a finite value, or lengths that differ.
    """
    check_natural("guard_bits", guard_bits)
    (w, w_exponent, w_sign), (a, a_exponent, a_sign) = (
        _parts(fmt, codes) for fmt, codes in ((weights, weight_codes), (activations, activation_codes))
    )
    if not w.ndim or not a.ndim or w.shape[-1] != a.shape[-1]:
        msg = f"codes must agree in the length of their last axis, not have shapes {w.shape} and {a.shape}"
        raise UsageError(msg, given=f"{w.shape}, {a.shape}", expected=["(..., n), (..., n)"])
    products = np.asarray(w.astype(object) * a)
    exponents = np.asarray(w_exponent + a_exponent)
    negative = np.asarray(w_sign ^ a_sign)
    sums = np.zeros(products.shape[:-1], dtype=object)
    largest = np.zeros(products.shape[:-1], dtype=np.int64)
    for index in range(products.shape[-1]):
        exponent = exponents[..., index]
        sums = sums >> np.maximum(exponent - largest, 0).astype(object)
        largest = np.maximum(largest, exponent)
        below = (largest - exponent).astype(object)
        doubled = (products[..., index] << (guard_bits + 1)) >> below
        rounded = (doubled + 1) >> 1
        sums = sums + np.where(negative[..., index], -rounded, rounded)
    return sums, largest


def _parts(
    fmt: ScalarFormat, codes: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Significand, exponent and sign as :class:`hw.arith.decoder.Decoder` gives them."""
    values = fmt.fixed_point(codes)
    array = np.asarray(codes, dtype=np.int64)
    if Decoder(fmt).max_exponent == 1:
        exponents = np.zeros_like(array)
    else:
        assert isinstance(fmt, MinifloatFormat)
        exponents = (array >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
        if fmt.mantissa_bits:
            exponents = np.maximum(exponents, 1)
    significands = values >> np.maximum(exponents - 1, 0)
    if not has_separate_sign(fmt):
        return significands, exponents, np.zeros(array.shape, dtype=np.bool_)
    magnitude = np.abs(values) >> np.maximum(exponents - 1, 0)
    return magnitude.astype(np.int64), exponents, (array >> (fmt.bits - 1)).astype(np.bool_)
