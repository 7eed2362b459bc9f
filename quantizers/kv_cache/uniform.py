"""Groups of integers on an even grid between their minimum and their maximum.

The asymmetric quantization of Z. Liu et al., "KIVI", arXiv 2402.02750, equation 1, in integers: keys take a
group along the tokens of one channel, values one along the channels of one token. A scale is never stored:
the span, from which it follows, is, so that the division that rounds is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.integers import check_integers, check_range

MIN_BITS, MAX_BITS = 2, 8
"""Widths of a code."""

LOWEST, HIGHEST = -(1 << 15), (1 << 15) - 1
"""Range of the elements."""

MINIMUM_BITS, SPAN_BITS = 16, 16
"""Metadata of a group."""


# Quotients are taken in float64 and are still exact: numerators are below 2**24 and denominators below 2**16,
# so a quotient that is not a tie is at least 2**-17 from one, and a tie is a float64.
_CHUNK = 1 << 15


class UniformGroups(NamedTuple):
    """Groups of g elements as codes.

    Attributes:
        codes: uint8, shape (..., g), 0 to ``2**bits - 1``.
        minimum: int16, shape (...).
        span: uint16, shape (...): maximum less minimum.
    """

    codes: npt.NDArray[np.uint8]
    minimum: npt.NDArray[np.int16]
    span: npt.NDArray[np.uint16]


def quantize(x: npt.ArrayLike, bits: int) -> UniformGroups:
    """Codes ``(x - minimum) * (2**bits - 1) / span``, rounded to nearest with ties to even, exactly.

    The minimum has code 0, the maximum ``2**bits - 1``. Where all elements of a group are equal, all
    codes are 0.

    Args:
        x: integers from -32768 to 32767, shape (..., g), a group along the last axis.
        bits: of a code, 2 to 8.

    Raises:
        UsageError: *bits* or an element out of range, elements that are no integers, or groups of none.
    """
    elements = np.asarray(x)
    check_range("bits", bits, MIN_BITS, MAX_BITS)
    check_integers("x", elements, LOWEST, HIGHEST)
    if not elements.ndim or not elements.shape[-1]:
        msg = f"x must be of shape (..., g) with groups of at least one element, not {elements.shape}"
        raise UsageError(msg, given=elements.shape, expected=["(..., g)"])
    groups = elements.reshape(-1, elements.shape[-1])
    codes = np.empty(groups.shape, np.uint8)
    minimum = groups.min(axis=-1).astype(np.int16)
    span = (groups.max(axis=-1).astype(np.int32) - minimum).astype(np.uint16)
    for rows in _rows(groups.shape):
        offsets = np.subtract(groups[rows], minimum[rows, None], dtype=np.float64)
        offsets *= (1 << bits) - 1
        offsets /= np.maximum(span[rows, None], 1)
        codes[rows] = np.rint(offsets, out=offsets)
    shape = elements.shape[:-1]
    return UniformGroups(codes.reshape(elements.shape), minimum.reshape(shape), span.reshape(shape))


def dequantize(groups: UniformGroups, bits: int) -> npt.NDArray[np.int16]:
    """``minimum + codes * span / (2**bits - 1)``, rounded to nearest with ties to even, exactly.

    There are no ties: ``2**bits - 1`` is odd. No element is beyond the group's minimum and maximum.

    Args:
        groups: codes (..., g), minimum (...) and span (...), as :func:`quantize` gives them.
        bits: of a code, 2 to 8.

    Returns:
        Shape (..., g).

    Raises:
        UsageError: *bits*, a code or metadata out of range, or shapes that do not fit.
    """
    check_range("bits", bits, MIN_BITS, MAX_BITS)
    codes, minimum, span = (np.asarray(part) for part in groups)
    steps = (1 << bits) - 1
    check_integers("codes", codes, 0, steps)
    check_integers("minimum", minimum, LOWEST, HIGHEST)
    check_integers("span", span, 0, HIGHEST - LOWEST)
    if codes.shape[:-1] != minimum.shape or codes.shape[:-1] != span.shape or not codes.ndim:
        msg = (
            f"codes, minimum and span must be of shapes (..., g), (...) and (...), "
            f"not {codes.shape}, {minimum.shape} and {span.shape}"
        )
        raise UsageError(msg, given=f"{codes.shape}, {minimum.shape}, {span.shape}")
    largest = int((minimum.astype(np.int32) + span.astype(np.int32)).max(initial=LOWEST))
    if largest > HIGHEST:
        msg = f"minimum + span must be at most {HIGHEST}; one is {largest}"
        raise UsageError(msg, given=largest, expected=[f"<= {HIGHEST}"])
    groups_of_codes = codes.reshape(-1, codes.shape[-1])
    elements = np.empty(groups_of_codes.shape, np.int16)
    flat_minimum, flat_span = minimum.reshape(-1, 1), span.reshape(-1, 1)
    for rows in _rows(groups_of_codes.shape):
        offsets = np.multiply(groups_of_codes[rows], flat_span[rows], dtype=np.float64)
        offsets /= steps
        elements[rows] = np.rint(offsets, out=offsets) + flat_minimum[rows]
    return elements.reshape(codes.shape)


def bits_per_element(bits: int, group: int) -> float:
    """Bits stored for an element, with its share of the metadata of a group of *group* elements."""
    return bits + (MINIMUM_BITS + SPAN_BITS) / group


def _rows(shape: tuple[int, ...]) -> Iterator[slice]:
    """Ranges of groups that stay in the processor's cache."""
    step = max(1, _CHUNK // shape[1])
    return (slice(start, start + step) for start in range(0, shape[0], step))
