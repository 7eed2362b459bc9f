"""Keys and values as 16-bit integers: what every codec takes, and what the hardware is sent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import BitfrontError, UsageError
from quantizers.kv_cache.integers import check_range

BITS = 16
"""Of an element that is not compressed."""

LOWEST, HIGHEST = -(1 << (BITS - 1)), (1 << (BITS - 1)) - 1

HEADROOM_BITS = 1
"""How many times the largest magnitude of the calibration text may double before an element saturates."""

MAX_FRACTION_BITS = 40

IntegerArray = npt.NDArray[Any]


class NotFiniteError(BitfrontError, ArithmeticError):
    """A key or a value that is no finite number: the model, or what changed it, is broken.

    Attributes:
        layer: index of the layer.
        position: of the token.
    """

    def __init__(self, what: str, *, layer: int, position: int, value: float) -> None:
        super().__init__(f"{what} of layer {layer} hold {value} at position {position}")
        self.layer, self.position = layer, position


def fraction_bits(largest: float, *, headroom: int = HEADROOM_BITS) -> int:
    """The most fraction bits with which ``largest * 2**headroom`` still fits into 16 bits.

    An element x becomes the integer nearest to ``x * 2**fraction_bits``; the number may be negative.

    Args:
        largest: largest magnitude on the calibration text; 0 gives as many bits as are allowed.
        headroom: in bits.

    Raises:
        UsageError: *largest* is negative or not finite, or *headroom* not 0 to 8.
    """
    check_range("headroom", headroom, 0, 8)
    if not (math.isfinite(largest) and largest >= 0):
        msg = f"the largest magnitude must be a finite number that is not negative, not {largest}"
        raise UsageError(msg, given=largest, expected=["finite, >= 0"])
    if largest == 0:
        return MAX_FRACTION_BITS
    # HIGHEST is a hair below a power of two, and so may *largest* be.
    bits = BITS - 1 - headroom - math.frexp(largest)[1]
    return int(np.clip(bits, -MAX_FRACTION_BITS, MAX_FRACTION_BITS))


def to_integers(
    x: npt.ArrayLike, fraction: int, *, what: str = "keys", layer: int = 0
) -> npt.NDArray[np.int64]:
    """``x * 2**fraction`` to the nearest integer, ties to even, saturated to 16 bits.

    Args:
        x: shape (..., tokens, channels).
        fraction: number of fraction bits.
        what: "keys" or "values", for the error.
        layer: for the error.

    Raises:
        NotFiniteError: an element is NaN or infinite.
    """
    array = np.asarray(x, dtype=np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        place = np.argwhere(~finite)[np.argmin(np.argwhere(~finite)[:, -2])]
        raise NotFiniteError(what, layer=layer, position=int(place[-2]), value=float(array[tuple(place)]))
    return np.clip(np.rint(np.ldexp(array, fraction)), LOWEST, HIGHEST).astype(np.int64)


def to_floats(x: IntegerArray, fraction: int) -> npt.NDArray[np.float32]:
    """``x * 2**-fraction``; exact, 16-bit integers being exact in float32."""
    return np.ldexp(x.astype(np.float32), -fraction)


def saturate(x: IntegerArray) -> IntegerArray:
    """Integers clipped to 16 bits."""
    return np.clip(x, LOWEST, HIGHEST)
