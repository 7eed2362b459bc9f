"""Integer-exact model of the dot product of two MX blocks."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hw.reference.mac import Sums, multiply_accumulate
from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, ScalarFormat

SCALE_BITS = 8
"""Width of an E8M0 scale code."""

SCALE_NAN = 255
"""The E8M0 code for NaN (OCP MX v1.0, section 5.4.1)."""

SCALE_BIAS = 127
"""The E8M0 code of the scale one."""

Elements: TypeAlias = ScalarFormat | BlockFormat
"""An MX format, or the format of its elements."""


class BlockDots(NamedTuple):
    """Dot products of blocks.

    Attributes:
        sums: exact sums of the element products, in units of the least significant bits.
        exponents: sums of the two scale codes: the biased exponent of the product of the scales.
        is_nan: whether either scale is NaN; sum and exponent mean nothing then.
    """

    sums: Sums
    exponents: npt.NDArray[np.int64]
    is_nan: npt.NDArray[np.bool_]


def element_format(fmt: Elements) -> ScalarFormat:
    """The format of single elements."""
    return fmt.element if isinstance(fmt, BlockFormat) else fmt


def unit_exponent(weights: Elements, activations: Elements) -> int:
    """The exponent of two of one unit of a sum where the scale codes add up to 0."""
    implicit = sum(fmt.element_exponent for fmt in (weights, activations) if isinstance(fmt, BlockFormat))
    lsb = sum(element_format(fmt).grid.lsb_exponent for fmt in (weights, activations))
    return implicit + lsb - 2 * SCALE_BIAS


def block_dot(
    weight_scales: npt.ArrayLike,
    weight_codes: npt.ArrayLike,
    activation_scales: npt.ArrayLike,
    activation_codes: npt.ArrayLike,
    *,
    weights: Elements,
    activations: Elements,
) -> BlockDots:
    """Dot products of pairs of blocks, exact: what :class:`hw.mx_dot.MxDotProduct` gives.

    The value of a dot product is ``sums * 2.0**(exponents + unit_exponent(weights, activations))``.

    Args:
        weight_scales: E8M0 codes, shape ``(...)``.
        weight_codes: element codes, shape ``(..., k)``.
        activation_scales: E8M0 codes, shape ``(...)``.
        activation_codes: element codes, shape ``(..., k)``.
        weights: MX format of the weights, or the format of its elements.
        activations: likewise of the activations.

    Raises:
        UsageError: a scale is no code of 8 bits, or as :func:`multiply_accumulate`.
    """
    sums = multiply_accumulate(
        weight_codes,
        activation_codes,
        weights=element_format(weights),
        activations=element_format(activations),
    )
    scales = [_scale_codes(codes) for codes in (weight_scales, activation_scales)]
    return BlockDots(sums, scales[0] + scales[1], (scales[0] == SCALE_NAN) | (scales[1] == SCALE_NAN))


def _scale_codes(codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(codes)
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < 1 << SCALE_BITS):
        msg = "scales must be E8M0 codes, integers from 0 to 255"
        raise UsageError(msg, expected=["0..255"])
    return array.astype(np.int64)
