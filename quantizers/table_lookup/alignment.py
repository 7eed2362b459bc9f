"""Blocks of floating-point activations as integers that share an exponent, for tables of integers.

As FIGLUT (HPCA 2025) and LUT Tensor Core (ISCA 2025) do for activations whose range no static grid spans.
Of each block of consecutive activations the largest exponent e is shared: that of the largest
magnitude, at least that of the format's smallest normal numbers, which is also that of a block of zeros.
An activation x becomes the integer

    q = round(x / 2**(e + 2 - bits)), at most 2**(bits-1) - 1 in magnitude,

to nearest, ties to even: a magnitude below 2**(e+1) takes bits - 1 bits. Where bits is at least 2 more than
the mantissa the largest activations are exact, and nothing saturates.

The error of an activation is at most 2**(e + 1 - bits), half a unit; of one that saturates, where the
mantissa is wider than that, it is below a unit, 2**(e + 2 - bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat
from quantizers.table_lookup.planes import check_integer, first_position
from quantizers.table_lookup.wide_float import WideFloat, wide_float

MIN_BITS, MAX_BITS = 4, 16
DEFAULT_BITS = 12
MAX_BLOCK = 2**31 - 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Aligned:
    """Integers with the exponents that their blocks share.

    Attributes:
        codes: int64, shape (..., n), of magnitude at most 2**(bits-1) - 1.
        exponents: e of each block, int64, shape (..., ceil(n / block)).
        bits: of a code, its sign included.
        block: codes that share an exponent; the last block may be shorter.
    """

    codes: NDArray[np.int64]
    exponents: NDArray[np.int64]
    bits: int
    block: int

    @property
    def unit_exponents(self) -> NDArray[np.int64]:
        """log2 of what a one stands for in each block: the factor of its integer sums."""
        return self.exponents + 2 - self.bits

    def values(self) -> NDArray[np.float64]:
        """code * 2**(e + 2 - bits), float64, exact, shape (..., n)."""
        units = np.repeat(self.unit_exponents, self.block, axis=-1)[..., : self.codes.shape[-1]]
        values: NDArray[np.float64] = np.ldexp(self.codes.astype(np.float64), units)
        return values


def align(
    values: ArrayLike, *, bits: int = DEFAULT_BITS, block: int | None = None, fmt: str | WideFloat = "bf16"
) -> Aligned:
    """Blocks along the last axis as integers with a shared exponent, see the module's description.

    Args:
        values: finite numbers, shape (..., n), n at least 1; what is no value of *fmt* is first rounded to
            the nearest one, ties to even. Subnormal numbers count exactly.
        bits: of an integer, 4 to 16.
        block: values that share an exponent; all by default.
        fmt: of the values: ``bf16``, ``fp16``, ``tf32`` or other widths.

    Raises:
        UsageError: an argument is out of range, *values* are no numbers or empty, or one is NaN, infinite
            or rounds to infinity in *fmt*; the first such one is named by its position.
    """
    check_integer("bits", bits, MIN_BITS, MAX_BITS)
    fmt = wide_float(fmt)
    rounded = _checked(values, fmt)
    length = rounded.shape[-1]
    block = length if block is None else block
    check_integer("block", block, 1, MAX_BLOCK)
    block = min(block, length)
    padded = np.pad(rounded, [(0, 0)] * (rounded.ndim - 1) + [(0, -length % block)])
    blocks = padded.reshape(*rounded.shape[:-1], -1, block)
    exponents = _shared_exponents(blocks, fmt)
    units = exponents[..., None] + 2 - bits
    codes = IntegerFormat(bits, narrow=True).round(np.ldexp(blocks, -units)).astype(np.int64)
    return Aligned(
        codes=codes.reshape(padded.shape)[..., :length], exponents=exponents, bits=bits, block=block
    )


def _shared_exponents(blocks: NDArray[np.float64], fmt: WideFloat) -> NDArray[np.int64]:
    """Of blocks (..., blocks, n): the exponent of the largest magnitude; zero has the smallest one."""
    largest = np.abs(blocks).max(axis=-1)
    exponents = np.where(largest == 0, fmt.min_exponent, np.frexp(largest)[1] - 1)
    return np.maximum(exponents, fmt.min_exponent).astype(np.int64)


def _checked(values: ArrayLike, fmt: WideFloat) -> NDArray[np.float64]:
    """The values rounded to the format."""
    array: NDArray[Any] = np.asarray(values)
    if (
        array.ndim < 1
        or array.size == 0
        or array.dtype.kind == "b"
        or not np.can_cast(array.dtype, np.float64)
    ):
        msg = f"values must be a non-empty array of numbers, not {array.dtype} of shape {array.shape}"
        raise UsageError(msg, given=array.shape)
    array = array.astype(np.float64)
    if not (finite := np.isfinite(array)).all():
        position = first_position(~finite)
        msg = f"a block with {array[position]} cannot be aligned; it is at position {_named(position)}"
        raise UsageError(msg, given=array[position], expected=["finite numbers"])
    rounded = fmt.round(array, saturate=False)
    if not (finite := np.isfinite(rounded)).all():
        position = first_position(~finite)
        msg = (
            f"{array[position]} at position {_named(position)} is beyond the largest value of {fmt}, "
            f"{fmt.maximum}"
        )
        raise UsageError(msg, given=array[position], expected=[f"at most {fmt.maximum} in magnitude"])
    return rounded.astype(np.float64)


def _named(position: tuple[int, ...]) -> str:
    return str(position[0] if len(position) == 1 else position)
