"""How many bits each coefficient gets: the marginal gain of every bit, largest first."""

from __future__ import annotations

import heapq
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import MAX_BITS, normal_codebook
from quantizers.kv_cache.integers import check_range

WIDEST = 8


@lru_cache(maxsize=WIDEST + 1)
def distortion(bits: int) -> float:
    """Mean squared error of a unit normal number in a codebook of so many bits, 0 to 8.

    Beyond the widest codebook (`quantizers.kv_cache.codebook`), where the error is known to shrink by a
    factor of nearly 4 a bit, the formula of Panter and Dite (1951): ``sqrt(3) * pi / 2 * 4**-bits``.

    Raises:
        UsageError: *bits* out of range.
    """
    check_range("bits", bits, 0, WIDEST)
    if bits == 0:
        return 1.0
    if bits > MAX_BITS:
        return math.sqrt(3) * math.pi / 2 * 4.0**-bits
    return normal_codebook(bits).distortion


def allocate(
    errors: npt.ArrayLike, total: int, *, lowest: int = 0, highest: int = WIDEST
) -> npt.NDArray[np.int64]:
    """The bits of each coefficient that make the sum of ``errors * distortion(bits)`` least.

    Greedy: the distortion is convex in the bits, so taking the bit that gains most is optimal. Equal gains go
    to the lower index.

    Args:
        errors: what losing the coefficient altogether costs, its variance times its importance; any shape.
        total: bits to give away.
        lowest: bits that each has anyway.
        highest: bits that none has more of, at most 8.

    Returns:
        int64, of the shape of *errors*.

    Raises:
        UsageError: *total* is not within what *lowest* and *highest* allow, or errors are negative or NaN.
    """
    costs = np.asarray(errors, np.float64)
    check_range("highest", highest, 1, WIDEST)
    check_range("lowest", lowest, 0, highest)
    check_range("total", total, lowest * costs.size, highest * costs.size)
    if not (costs >= 0).all():
        msg = "errors must be numbers of at least 0"
        raise UsageError(msg, given=float(costs.min()), expected=[">= 0"])
    gains = [distortion(b) - distortion(b + 1) for b in range(highest)]
    bits = np.full(costs.size, lowest, np.int64)
    waiting = [(-cost * gains[lowest], index) for index, cost in enumerate(costs.ravel()) if lowest < highest]
    heapq.heapify(waiting)
    flat = costs.ravel()
    for _ in range(total - lowest * costs.size):
        _, index = heapq.heappop(waiting)
        bits[index] += 1
        if bits[index] < highest:
            heapq.heappush(waiting, (-flat[index] * gains[bits[index]], index))
    return bits.reshape(costs.shape)
