"""Number formats: names, values, codes, and the project's one definition of rounding.

Everything else (the fast kernels, the Brevitas quantizers, the Amaranth layouts, the reference
arithmetic) is built from these values and checked against them. Importing this needs numpy only.

Name grammar::

    int8  uint4             two's complement / unsigned integers, zero point 0
    int8n                   the same without the most negative code ("narrow range"): symmetric
    e4m3  ue3m2             minifloat, every code a number: subnormals, no infinity, no NaN
    e4m3b11                 the same with exponent bias 11 (default 2**(e-1) - 1)
    e4m3fn  e5m2ieee        one NaN code per sign (OCP E4M3) / infinities and NaNs (OCP E5M2)
    ternary                 {-1, 0, 1} in two bits
    mxfp4  mxfp6_e2m3  ...  OCP MX v1.0: 32 elements share one power-of-two scale (E8M0)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError, unknown_choice

FloatArray = npt.NDArray[np.floating]
CodeArray = npt.NDArray[np.integer]

MAX_INTEGER_BITS = 16
MAX_EXPONENT_BITS = 5
# One more than a signed 8-bit minifloat can use: the unsigned counterpart of e1m6 is ue1m7.
MAX_MANTISSA_BITS = 7
# Keeps every value and every product of two values a normal float32, so float paths stay exact.
MAX_ABS_BIAS = 31

MX_BLOCK_SIZE = 32
MX_SCALE_BITS = 8
_E8M0_BIAS = 127
_E8M0_NAN = 255


class Specials(StrEnum):
    """Which codes of a minifloat are not numbers (the value is the suffix of the format name)."""

    NONE = ""
    FN = "fn"
    IEEE = "ieee"


@dataclass(frozen=True, slots=True)
class Grid:
    """The finite values of a scalar format, as rounding needs them.

    A magnitude ``a`` lies on a step of ``2**(max(floor(log2 a), min_exponent) - mantissa_bits)``;
    values are clipped to ``[minimum, maximum]``. A uniform (integer) grid is the case where
    ``min_exponent == mantissa_bits`` is at least the exponent of the largest magnitude.
    ``odd_code_parity`` is the parity of the exponents whose code is odd; it decides ties where
    there are no mantissa bits to look at (``mantissa_bits == 0``).
    """

    mantissa_bits: int
    min_exponent: int
    minimum: float
    maximum: float
    signed_zero: bool
    odd_code_parity: int

    @property
    def lsb_exponent(self) -> int:
        """log2 of the smallest step: every finite value is an integer times ``2**lsb_exponent``."""
        return self.min_exponent - self.mantissa_bits


class Format(ABC):
    """A number format. Immutable; equal formats have equal names."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The canonical name; ``parse_format(f.name) == f``."""

    @property
    @abstractmethod
    def family(self) -> str:
        """``integer``, ``minifloat``, ``ternary`` or ``mx``."""

    @property
    @abstractmethod
    def bits_per_value(self) -> float:
        """Stored bits per element, shared scales of the format included."""

    @abstractmethod
    def round(self, x: npt.ArrayLike, *, saturate: bool = True) -> FloatArray:
        """The nearest value of the format for each element of *x* (ties to the even code)."""

    @property
    @abstractmethod
    def unsigned_counterpart(self) -> Format:
        """What values that are never negative are stored in, in as many bits."""

    def __str__(self) -> str:
        return self.name


class ScalarFormat(Format):
    """A format in which every element stands for itself.

    Subclasses give ``bits``, ``signed``, ``grid`` and ``decode``; rounding and encoding are here.
    """

    bits: int
    signed: bool

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The finite values as a grid."""

    @abstractmethod
    def _decode(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]: ...

    @abstractmethod
    def _encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]: ...

    @property
    def bits_per_value(self) -> float:
        return float(self.bits)

    @property
    def maximum(self) -> float:
        """Largest finite value."""
        return self.grid.maximum

    @property
    def minimum(self) -> float:
        """Most negative finite value (0 for unsigned formats)."""
        return self.grid.minimum

    def round(self, x: npt.ArrayLike, *, saturate: bool = True) -> FloatArray:
        """The nearest value of the format; ties go to the even code; NaN stays NaN.

        Args:
            x: any shape; float32 stays float32 (every value is exact in it), the rest is float64.
            saturate: values beyond the largest (infinities too) become the largest. ``False`` gives
                the IEEE/OCP non-saturating conversion instead: infinity where the format has one,
                NaN where it only has NaN. Formats without special codes always saturate.
        """
        array = np.asarray(x)
        dtype = np.float32 if array.dtype == np.float32 else np.float64
        return _round_to_grid(array.astype(np.float64), self.grid, self._overflow(saturate)).astype(dtype)

    def _overflow(self, saturate: bool) -> float | None:
        """What a magnitude beyond the largest becomes; ``None``: the largest."""
        del saturate
        return None

    def encode(self, x: npt.ArrayLike, *, saturate: bool = True) -> npt.NDArray[np.int64]:
        """The code of the nearest value of each element.

        Raises:
            UsageError: *x* holds a NaN and the format has no code for it.
        """
        return self._encode(np.asarray(self.round(x, saturate=saturate), dtype=np.float64))

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The value of each code; NaN for codes that are not numbers.

        Raises:
            UsageError: codes that are not integers in ``[0, 2**bits)``.
        """
        array = np.asarray(codes)
        if array.dtype.kind not in "iu":
            msg = f"codes of {self.name} must be integers, not {array.dtype}"
            raise UsageError(msg, given=array.dtype, expected=["an integer dtype"])
        if array.size and (array.min() < 0 or array.max() >= 1 << self.bits):
            worst = int(array.min() if array.min() < 0 else array.max())
            msg = f"code {worst} is outside {self.name}: expected 0 to {(1 << self.bits) - 1}"
            raise UsageError(msg, given=worst, expected=[f"0..{(1 << self.bits) - 1}"])
        return self._decode(array.astype(np.int64))

    def values(self) -> npt.NDArray[np.float64]:
        """The value of every code, in code order: the value table, shape ``(2**bits,)``."""
        return self._decode(np.arange(1 << self.bits, dtype=np.int64))

    def fixed_point(self, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The value of each code as an integer count of ``2**grid.lsb_exponent``: what hardware adds.

        Raises:
            UsageError: a code that is not a finite number.
        """
        values = self.decode(codes)
        if not np.isfinite(values).all():
            msg = f"{self.name} has codes that are not finite numbers; they have no fixed-point value"
            raise UsageError(msg, given=self.name, expected=["codes of finite values"])
        return np.ldexp(values, -self.grid.lsb_exponent).astype(np.int64)

    @property
    @abstractmethod
    def unsigned_counterpart(self) -> ScalarFormat:
        """The unsigned format of the same number of bits: the sign bit becomes one of precision."""


def _round_to_grid(x: npt.NDArray[np.float64], grid: Grid, overflow: float | None) -> npt.NDArray[np.float64]:
    """Round to nearest, ties to even, on the unbounded grid; then clip, or replace what overflowed."""
    magnitude = np.abs(x)
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, grid.min_exponent)
    step_exponent = exponent - grid.mantissa_bits
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.ldexp(magnitude, -step_exponent)
        nearest = np.rint(steps)
        if grid.mantissa_bits == 0:
            # 1.5 steps lie between two powers of two; the mantissa cannot say which code is even.
            lower_code_is_even = (exponent & 1) != grid.odd_code_parity
            nearest = np.where((steps == 1.5) & lower_code_is_even, 1.0, nearest)
        rounded = np.copysign(np.ldexp(nearest, step_exponent), x)
    if overflow is None:
        rounded = np.clip(rounded, grid.minimum, grid.maximum)
    else:
        above = np.where(rounded > grid.maximum, overflow, rounded)
        rounded = np.where(rounded < grid.minimum, -overflow if grid.minimum < 0 else 0.0, above)
    return rounded if grid.signed_zero else rounded + 0.0


@dataclass(frozen=True)
class IntegerFormat(ScalarFormat):
    """``intN`` (two's complement) or ``uintN``; zero point 0, step 1.

    ``narrow`` (``intNn``) leaves the most negative code unused, so that the range is symmetric: what
    low-bit weights want, since a lopsided range shifts their mean.
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.narrow and not self.signed:
            msg = "an unsigned integer has no negative code to leave out; narrow range is for signed ones"
            expected = [f"uint{self.bits}", f"int{self.bits}n"]
            raise UsageError(msg, given=f"uint{self.bits}n", expected=expected)
        lowest = 2 if self.signed else 1
        if not lowest <= self.bits <= MAX_INTEGER_BITS:
            prefix = "int" if self.signed else "uint"
            msg = f"{prefix} formats have {lowest} to {MAX_INTEGER_BITS} bits, not {self.bits}"
            raise UsageError(msg, given=self.bits, expected=[f"{prefix}{lowest}..{prefix}{MAX_INTEGER_BITS}"])

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}{'n' if self.narrow else ''}"

    @property
    def family(self) -> str:
        return "integer"

    @cached_property
    def grid(self) -> Grid:
        magnitude_bits = self.bits - 1 if self.signed else self.bits
        maximum = (1 << magnitude_bits) - 1
        minimum = (-maximum if self.narrow else -maximum - 1) if self.signed else 0
        return Grid(magnitude_bits, magnitude_bits, float(minimum), float(maximum), False, 0)

    def _decode(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        negative = self.signed & (codes >> (self.bits - 1)).astype(bool)
        values = (codes - (negative.astype(np.int64) << self.bits)).astype(np.float64)
        return np.where(values < self.minimum, np.nan, values)

    def _encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        _reject_nan(values, self)
        return values.astype(np.int64) & ((1 << self.bits) - 1)

    @property
    def unsigned_counterpart(self) -> IntegerFormat:
        return IntegerFormat(self.bits, signed=False)


@dataclass(frozen=True)
class MinifloatFormat(ScalarFormat):
    """``e{E}m{M}``: sign, exponent, mantissa; subnormals; code order equals magnitude order.

    ``bias`` defaults to ``2**(E-1) - 1``. Without specials all codes are numbers and conversion
    saturates (arXiv 2311.12359, section 3.1); ``FN`` and ``IEEE`` follow OCP OFP8 v1.0.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int | None = None
    signed: bool = True
    specials: Specials = Specials.NONE

    def __post_init__(self) -> None:
        if not 1 <= self.exponent_bits <= MAX_EXPONENT_BITS:
            msg = f"minifloats have 1 to {MAX_EXPONENT_BITS} exponent bits, not {self.exponent_bits}"
            raise UsageError(msg, given=self.exponent_bits, expected=[f"1..{MAX_EXPONENT_BITS}"])
        if not 0 <= self.mantissa_bits <= MAX_MANTISSA_BITS:
            msg = f"minifloats have 0 to {MAX_MANTISSA_BITS} mantissa bits, not {self.mantissa_bits}"
            raise UsageError(msg, given=self.mantissa_bits, expected=[f"0..{MAX_MANTISSA_BITS}"])
        if self.bias is None:
            object.__setattr__(self, "bias", self.default_bias)
        if abs(self.exponent_bias) > MAX_ABS_BIAS:
            msg = f"the exponent bias must lie in -{MAX_ABS_BIAS}..{MAX_ABS_BIAS}, not {self.bias}"
            raise UsageError(msg, given=self.bias, expected=[f"-{MAX_ABS_BIAS}..{MAX_ABS_BIAS}"])
        if self._largest_finite_code < 1:
            msg = f"{self.name} has no finite value but zero: its special codes take the rest"
            raise UsageError(msg, given=self.name, expected=["more exponent or mantissa bits"])

    @property
    def default_bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def exponent_bias(self) -> int:
        """The bias as a number (``bias`` is ``None`` only before construction ends)."""
        return self.default_bias if self.bias is None else self.bias

    @property
    def bits(self) -> int:  # type: ignore[override]
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def name(self) -> str:
        bias = "" if self.exponent_bias == self.default_bias else f"b{self.exponent_bias}"
        return f"{'' if self.signed else 'u'}e{self.exponent_bits}m{self.mantissa_bits}{bias}{self.specials}"

    @property
    def family(self) -> str:
        return "minifloat"

    @property
    def _magnitude_bits(self) -> int:
        return self.exponent_bits + self.mantissa_bits

    @property
    def _infinity_code(self) -> int:
        """The magnitude code of infinity in an IEEE format: exponent all ones, mantissa zero."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def _largest_finite_code(self) -> int:
        match self.specials:
            case Specials.IEEE:
                return self._infinity_code - 1
            case Specials.FN:
                return (1 << self._magnitude_bits) - 2
            case _:
                return (1 << self._magnitude_bits) - 1

    @property
    def has_infinity(self) -> bool:
        return self.specials is Specials.IEEE

    @property
    def has_nan(self) -> bool:
        return self.specials is Specials.FN or (self.specials is Specials.IEEE and self.mantissa_bits > 0)

    @cached_property
    def grid(self) -> Grid:
        maximum = float(self._finite_magnitude(np.array(self._largest_finite_code)))
        return Grid(
            mantissa_bits=self.mantissa_bits,
            min_exponent=1 - self.exponent_bias,
            minimum=-maximum if self.signed else 0.0,
            maximum=maximum,
            signed_zero=self.signed,
            odd_code_parity=(1 - self.exponent_bias) & 1,
        )

    def _finite_magnitude(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        field = codes >> self.mantissa_bits
        mantissa = codes & ((1 << self.mantissa_bits) - 1)
        significand = mantissa + np.where(field > 0, 1 << self.mantissa_bits, 0)
        exponent = np.maximum(field, 1) - self.exponent_bias - self.mantissa_bits
        return np.ldexp(significand.astype(np.float64), exponent)

    def _decode(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        magnitude_codes = codes & ((1 << self._magnitude_bits) - 1)
        magnitude = self._finite_magnitude(magnitude_codes)
        if self.has_infinity:
            magnitude = np.where(magnitude_codes == self._infinity_code, np.inf, magnitude)
        first_nan = self._largest_finite_code + (2 if self.has_infinity else 1)
        magnitude = np.where(magnitude_codes >= first_nan, np.nan, magnitude)
        negative = self.signed & (codes >> self._magnitude_bits).astype(bool)
        return np.where(negative, -magnitude, magnitude)

    def _encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        if not self.has_nan:
            _reject_nan(values, self)
        finite = np.where(np.isfinite(values), np.abs(values), 0.0)
        exponent = np.maximum(np.frexp(finite)[1] - 1, self.grid.min_exponent)
        exponent = np.where(finite == 0, self.grid.min_exponent, exponent)
        steps = np.ldexp(finite, self.mantissa_bits - exponent).astype(np.int64)
        codes = ((exponent - self.grid.min_exponent).astype(np.int64) << self.mantissa_bits) + steps
        codes = np.where(np.isinf(values), self._infinity_code, codes)
        codes = np.where(np.isnan(values), self._nan_code, codes)
        return codes + (np.where(np.signbit(values) & self.signed, 1, 0) << self._magnitude_bits)

    @property
    def _nan_code(self) -> int:
        """Quiet NaN: the top mantissa bit set (IEEE 754), all ones where that is the only NaN."""
        if self.specials is Specials.IEEE:
            return self._infinity_code | (1 << max(self.mantissa_bits - 1, 0))
        return (1 << self._magnitude_bits) - 1

    def _overflow(self, saturate: bool) -> float | None:
        if saturate or self.specials is Specials.NONE:
            return None
        return np.inf if self.has_infinity else np.nan

    @property
    def unsigned_counterpart(self) -> MinifloatFormat:
        if not self.signed:
            return self
        bias = None if self.exponent_bias == self.default_bias else self.exponent_bias
        return MinifloatFormat(self.exponent_bits, self.mantissa_bits + 1, bias, False, self.specials)


@dataclass(frozen=True)
class TernaryFormat(ScalarFormat):
    """{-1, 0, 1} in two's complement codes of two bits; code 2 is not a number."""

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 2

    @property
    def signed(self) -> bool:  # type: ignore[override]
        return True

    @property
    def name(self) -> str:
        return "ternary"

    @property
    def family(self) -> str:
        return "ternary"

    @property
    def grid(self) -> Grid:
        return Grid(1, 1, -1.0, 1.0, False, 0)

    def _decode(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.array([0.0, 1.0, np.nan, -1.0])[codes]

    def _encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        _reject_nan(values, self)
        return values.astype(np.int64) & 3

    @property
    def unsigned_counterpart(self) -> IntegerFormat:
        return IntegerFormat(2, signed=False)


def _reject_nan(values: npt.NDArray[np.float64], fmt: Format) -> None:
    if np.isnan(values).any():
        msg = f"{fmt.name} has no code for NaN"
        raise UsageError(msg, given="NaN", expected=["finite numbers"])


@dataclass(frozen=True)
class BlockFormat(Format):
    """OCP MX v1.0: *block_size* elements along the last axis share a power-of-two scale (E8M0).

    The scale's exponent is ``floor(log2 max|x|) - floor(log2 element.maximum)``, limited to
    -127..127 (section 6.3 of the specification); elements are rounded to nearest even and saturate.
    A NaN anywhere in a block makes the block NaN. A last block may be shorter.
    """

    element: ScalarFormat
    block_name: str
    block_size: int = MX_BLOCK_SIZE
    # OCP counts mxint8 elements in steps of 2**-6; this is the power the element's integer carries.
    element_exponent: int = 0

    @property
    def name(self) -> str:
        return self.block_name

    @property
    def family(self) -> str:
        return "mx"

    @property
    def bits_per_value(self) -> float:
        return self.element.bits + MX_SCALE_BITS / self.block_size

    @property
    def unsigned_counterpart(self) -> BlockFormat:
        """The format itself: OCP MX v1.0 has no unsigned elements."""
        return self

    def round(self, x: npt.ArrayLike, *, saturate: bool = True) -> FloatArray:
        """The values of *x* (blocks along the last axis) after conversion. Always saturates."""
        del saturate
        array = np.asarray(x)
        dtype = np.float32 if array.dtype == np.float32 else np.float64
        blocks, length = self._split(array)
        exponent = self._scale_exponents(blocks)
        rounded = np.ldexp(self.element.round(np.ldexp(blocks, -exponent)), exponent)
        rounded = np.where(np.isnan(blocks).any(axis=-1, keepdims=True), np.nan, rounded)
        return self._join(rounded, length).astype(dtype)

    def scale_factors(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """What the element values of each block are multiplied by: powers of two, ``(..., blocks)``."""
        return np.ldexp(1.0, self._scale_exponents(self._split(np.asarray(x))[0])[..., 0])

    def encode(self, x: npt.ArrayLike) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """E8M0 scale codes ``(..., ceil(n / block_size))`` and element codes ``(..., n)``."""
        blocks, length = self._split(np.asarray(x))
        exponent = self._scale_exponents(blocks)
        nan = np.isnan(blocks).any(axis=-1, keepdims=True)
        codes = self.element.encode(np.where(nan, 0.0, np.ldexp(blocks, -exponent)))
        scale = np.clip(exponent - self.element_exponent, -_E8M0_BIAS, _E8M0_BIAS) + _E8M0_BIAS
        return np.where(nan, _E8M0_NAN, scale)[..., 0].astype(np.uint8), self._join(codes, length)

    def decode(self, scales: npt.ArrayLike, codes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The values for scale codes ``(..., blocks)`` and element codes ``(..., n)``."""
        values, length = self._split(self.element.decode(codes))
        scale_codes = np.asarray(scales).astype(np.int64)[..., None]
        if scale_codes.shape[:-1] != values.shape[:-1]:
            given, wanted = scale_codes.shape[:-1], values.shape[:-1]
            msg = f"{self.name} needs scales of shape {wanted} for codes of this shape, not {given}"
            raise UsageError(msg, given=given, expected=[str(wanted)])
        scaled = np.ldexp(values, scale_codes - _E8M0_BIAS + self.element_exponent)
        return self._join(np.where(scale_codes == _E8M0_NAN, np.nan, scaled), length)

    def _split(self, x: npt.NDArray) -> tuple[npt.NDArray[np.float64], int]:
        if x.ndim == 0:
            msg = f"{self.name} works on blocks along the last axis; a scalar has none"
            raise UsageError(msg, given="a scalar", expected=["an array of at least one axis"])
        length = x.shape[-1]
        padding = -length % self.block_size
        padded = np.pad(x.astype(np.float64), [(0, 0)] * (x.ndim - 1) + [(0, padding)])
        return padded.reshape(*x.shape[:-1], -1, self.block_size), length

    def _join(self, blocks: npt.NDArray, length: int) -> npt.NDArray:
        return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]

    def _scale_exponents(self, blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Exponent of the factor between element values and real values, per block, kept axis."""
        largest = np.max(np.abs(blocks), axis=-1, keepdims=True)
        usable = np.where(np.isfinite(largest), largest, np.finfo(np.float64).max)
        shared = np.frexp(usable)[1] - int(np.frexp(self.element.maximum)[1]) - self.element_exponent
        shared = np.where(usable == 0, -_E8M0_BIAS, shared)
        return np.clip(shared, -_E8M0_BIAS, _E8M0_BIAS).astype(np.int64) + self.element_exponent


_E5M2_OCP = MinifloatFormat(5, 2, specials=Specials.IEEE)
_E4M3_OCP = MinifloatFormat(4, 3, specials=Specials.FN)
_BLOCK_FORMATS = {
    fmt.name: fmt
    for fmt in (
        BlockFormat(_E4M3_OCP, "mxfp8_e4m3"),
        BlockFormat(_E5M2_OCP, "mxfp8_e5m2"),
        BlockFormat(MinifloatFormat(2, 3), "mxfp6_e2m3"),
        BlockFormat(MinifloatFormat(3, 2), "mxfp6_e3m2"),
        BlockFormat(MinifloatFormat(2, 1), "mxfp4"),
        BlockFormat(IntegerFormat(8), "mxint8", element_exponent=-6),
    )
}

_INTEGER = re.compile(r"(u?)int(\d{1,2})(n?)")
_MINIFLOAT = re.compile(r"(u?)e(\d)m(\d)(?:b(-?\d{1,2}))?(fn|ieee)?")


@lru_cache(maxsize=1024)
def parse_format(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: the name is not in the grammar or its parameters are out of range.
    """
    if name == "ternary":
        return TernaryFormat()
    if name in _BLOCK_FORMATS:
        return _BLOCK_FORMATS[name]
    try:
        if match := _INTEGER.fullmatch(name):
            return IntegerFormat(int(match[2]), signed=not match[1], narrow=bool(match[3]))
        if match := _MINIFLOAT.fullmatch(name):
            bias = None if match[4] is None else int(match[4])
            specials = Specials(match[5] or "")
            return MinifloatFormat(int(match[2]), int(match[3]), bias, not match[1], specials)
    except UsageError as error:
        msg = f"no format {name!r}: {error}"
        raise UsageError(msg, given=name, expected=error.expected) from None
    raise unknown_choice("number format", name, [fmt.name for fmt in common_formats()])


def parse_scalar_format(name: str) -> ScalarFormat:
    """Like :func:`parse_format`, for places where a shared scale makes no sense."""
    fmt = parse_format(name)
    if not isinstance(fmt, ScalarFormat):
        msg = f"{name!r} shares scales between elements; a scalar format is needed here, such as 'e4m3'"
        raise UsageError(msg, given=name, expected=["int8", "e4m3"])
    return fmt


def minifloat_splits(bits: int) -> list[MinifloatFormat]:
    """Every signed minifloat of *bits* bits without specials: e 1..5, the rest mantissa."""
    splits = range(1, min(MAX_EXPONENT_BITS, bits - 1) + 1)
    return [MinifloatFormat(e, bits - 1 - e) for e in splits if bits - 1 - e <= MAX_MANTISSA_BITS]


def signed_formats(bits: int) -> list[ScalarFormat]:
    """The integer and every minifloat split of *bits* bits: what a sweep compares."""
    return [IntegerFormat(bits), *minifloat_splits(bits)]


def common_formats() -> Iterator[Format]:
    """The formats that lists show: 3 to 8 bits, ternary, OCP formats and MX blocks."""
    for bits in range(3, 9):
        yield from signed_formats(bits)
    yield from (TernaryFormat(), _E4M3_OCP, _E5M2_OCP, *_BLOCK_FORMATS.values())


def describe_format(fmt: Format, *, table: bool = False) -> dict[str, Any]:
    """The properties of a format under plain names; with *table*, the value of every code.

    Values that are not numbers appear in the table as text (``nan``, ``inf``), so that it stays JSON;
    a code without a value is ``unused``. Minimum, maximum and smallest step of a block format are
    those of its element's codes, to be multiplied by the block's scale and by ``implicit_scale``
    (OCP MX v1.0 reads mxint8 elements in steps of 2**-6), which is there only where it is not 1.
    """
    scalar = fmt.element if isinstance(fmt, BlockFormat) else fmt
    facts: dict[str, Any] = {"name": fmt.name, "family": fmt.family, "bits": fmt.bits_per_value}
    if isinstance(fmt, BlockFormat):
        facts |= {"element": fmt.element.name, "block_size": fmt.block_size}
        if fmt.element_exponent:
            facts["implicit_scale"] = f"2**{fmt.element_exponent} (OCP MX v1.0)"
    if isinstance(scalar, MinifloatFormat):
        names = ("exponent_bits", "mantissa_bits", "exponent_bias", "has_infinity", "has_nan")
        facts |= {name: getattr(scalar, name) for name in names}
    if isinstance(scalar, ScalarFormat):
        facts |= {
            "signed": scalar.signed,
            "minimum": scalar.minimum,
            "maximum": scalar.maximum,
            "smallest_step": 2.0**scalar.grid.lsb_exponent,
        }
    if table and isinstance(fmt, ScalarFormat):
        not_a_number = "nan" if isinstance(fmt, MinifloatFormat) else "unused"
        facts["values"] = [
            not_a_number if np.isnan(value) else value if np.isfinite(value) else str(value)
            for value in fmt.values().tolist()
        ]
    return facts
