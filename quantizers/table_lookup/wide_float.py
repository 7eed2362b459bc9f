"""Floating-point formats too wide for a static fixed-point grid: bfloat16 and its like.

Minifloats (`quantizers.formats`) have at most 5 exponent bits, so that hardware can hold each value as one
integer. Here there are up to 8; such values come into fixed point only block by block
(`quantizers.table_lookup.alignment`). Rounding and encoding are those of every scalar format.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import Grid, ScalarFormat

MIN_EXPONENT_BITS, MAX_EXPONENT_BITS = 2, 8
MIN_MANTISSA_BITS, MAX_MANTISSA_BITS = 1, 10
_WIDTHS = {"bf16": (8, 7), "fp16": (5, 10), "tf32": (8, 10)}
_FIXED_POINT_BITS = 63


@dataclass(frozen=True)
class WideFloat(ScalarFormat):
    """Sign, exponent, mantissa as IEEE 754: subnormals; exponents of all ones are infinity and NaN.

    Attributes:
        exponent_bits: 2 to 8; the bias is ``2**(exponent_bits - 1) - 1``.
        mantissa_bits: 1 to 10, without the hidden one.

    Raises:
        UsageError: a width out of range.
    """

    exponent_bits: int
    mantissa_bits: int

    def __post_init__(self) -> None:
        _check_width("exponent_bits", self.exponent_bits, MIN_EXPONENT_BITS, MAX_EXPONENT_BITS)
        _check_width("mantissa_bits", self.mantissa_bits, MIN_MANTISSA_BITS, MAX_MANTISSA_BITS)

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def signed(self) -> bool:  # type: ignore[override]
        return True

    @property
    def name(self) -> str:
        """``bf16``, ``fp16``, ``tf32``, or in the grammar of minifloats."""
        names = {widths: name for name, widths in _WIDTHS.items()}
        widths = (self.exponent_bits, self.mantissa_bits)
        return names.get(widths, f"e{self.exponent_bits}m{self.mantissa_bits}ieee")

    @property
    def family(self) -> str:
        return "float"

    @property
    def exponent_bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def min_exponent(self) -> int:
        """Of the smallest normal numbers and, of which they are fractions, of the subnormal ones."""
        return 1 - self.exponent_bias

    @cached_property
    def grid(self) -> Grid:
        maximum = float(np.ldexp((2 << self.mantissa_bits) - 1, self.exponent_bias - self.mantissa_bits))
        parity = self.min_exponent & 1
        return Grid(self.mantissa_bits, self.min_exponent, -maximum, maximum, True, parity)

    def fixed_point(self, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """As of every scalar format, where 64 bits hold it.

        Raises:
            UsageError: they do not, or a code is not a finite number.
        """
        bits = (1 << self.exponent_bits) - 2 + self.mantissa_bits
        if bits > _FIXED_POINT_BITS:
            msg = f"a fixed-point value of {self} has {bits} bits beside its sign, and 64 bits do not hold it"
            raise UsageError(msg, given=self, expected=["values aligned block by block"])
        return super().fixed_point(codes)

    @property
    def unsigned_counterpart(self) -> WideFloat:
        """The format itself: these always have a sign."""
        return self

    def _overflow(self, saturate: bool) -> float | None:
        return None if saturate else np.inf

    def _decode(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        mantissa = codes & ((1 << self.mantissa_bits) - 1)
        field = codes >> self.mantissa_bits & ((1 << self.exponent_bits) - 1)
        significand = mantissa + np.where(field > 0, 1 << self.mantissa_bits, 0)
        exponent = np.maximum(field, 1) - self.exponent_bias - self.mantissa_bits
        magnitude = np.ldexp(significand.astype(np.float64), exponent)
        not_finite = np.where(mantissa == 0, np.inf, np.nan)
        magnitude = np.where(field == (1 << self.exponent_bits) - 1, not_finite, magnitude)
        return np.where(codes >> (self.bits - 1) == 1, -magnitude, magnitude)

    def _encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        finite = np.where(np.isfinite(values), np.abs(values), 0.0)
        exponent = np.where(finite == 0, self.min_exponent, np.frexp(finite)[1] - 1)
        exponent = np.maximum(exponent, self.min_exponent)
        # The hidden one of a normal number adds one to the exponent field.
        steps = np.ldexp(finite, self.mantissa_bits - exponent).astype(np.int64)
        codes = ((exponent - self.min_exponent).astype(np.int64) << self.mantissa_bits) + steps
        infinity = ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        codes = np.where(np.isinf(values), infinity, codes)
        codes = np.where(np.isnan(values), infinity | 1 << (self.mantissa_bits - 1), codes)
        return codes | np.signbit(values).astype(np.int64) << (self.bits - 1)


def wide_float(fmt: str | WideFloat) -> WideFloat:
    """The format of a name: ``bf16``, ``fp16`` or ``tf32``; a format stays what it is.

    Raises:
        UsageError: another name.
    """
    if isinstance(fmt, WideFloat):
        return fmt
    if fmt not in _WIDTHS:
        raise unknown_choice("floating-point format", fmt, _WIDTHS)
    return WideFloat(*_WIDTHS[fmt])


def _check_width(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        msg = f"{name} must be an integer from {low} to {high}, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=[f"{low}..{high}"])
