"""Codes of few bits as a stream of words, and back.

Code 0 takes the lowest bits of word 0, the next one those above it; a code that does not fit the rest of a
word continues in the lowest bits of the next one. What is left of the last word is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.integers import check_integers, check_range

MAX_CODE_BITS = 16
"""Widest code."""

WORD_BITS = 32
"""Of a word of memory, where nothing else is said."""

MAX_WORD_BITS = 64
"""Widest word."""

Widths: TypeAlias = int | Sequence[int]
"""One width for all codes, or that of each code of the last axis; a width of 0 stores nothing."""

_LIMB = 64


def pack(codes: npt.ArrayLike, widths: Widths, *, word_bits: int = WORD_BITS) -> npt.NDArray[np.uint64]:
    """The words of the codes along the last axis.

    Args:
        codes: shape (..., n), each from 0 to ``2**width - 1``.
        widths: of all codes, or of each of the n codes; 0 to 16 bits.
        word_bits: of a word, 1 to 64.

    Returns:
        uint64, shape (..., :func:`word_count` (n, ...)).

    Raises:
        UsageError: a width, a code or the length of *widths* is wrong.
    """
    array = np.asarray(codes)
    if not array.ndim:
        msg = "codes must be of shape (..., n), not ()"
        raise UsageError(msg, given="()", expected=["(..., n)"])
    total = _total_bits(array.shape[-1], widths, word_bits)
    _check_codes(array, widths)
    octets = _one_width(array, widths) if isinstance(widths, int) else _many_widths(array, widths)
    return _words(octets, -(-total // word_bits), word_bits)


def unpack(
    words: npt.ArrayLike, widths: Widths, *, count: int, word_bits: int = WORD_BITS
) -> npt.NDArray[np.uint16]:
    """The codes of which :func:`pack` gives *words*.

    Args:
        words: shape (..., m), m = :func:`word_count` (count, ...).
        widths: as they were packed.
        count: codes along the last axis.
        word_bits: of a word, 1 to 64.

    Returns:
        uint16, shape (..., count).

    Raises:
        UsageError: a width, the length of *widths* or of the last axis is wrong, or a word is out of range.
    """
    array = np.asarray(words)
    length = word_count(count, widths, word_bits=word_bits)
    if not array.ndim or array.shape[-1] != length:
        msg = f"{count} codes take {length} words of {word_bits} bits; the shape is {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[f"(..., {length})"])
    check_integers("words", array, 0, (1 << word_bits) - 1)
    octets = _octets(array, word_bits)
    if isinstance(widths, int):
        return _codes_of_one_width(octets, widths, count)
    return _codes_of_many_widths(octets, widths)


def word_count(count: int, widths: Widths, *, word_bits: int = WORD_BITS) -> int:
    """Words that *count* codes take.

    Raises:
        UsageError: a width or the length of *widths* is wrong.
    """
    return -(-_total_bits(count, widths, word_bits) // word_bits)


def _total_bits(count: int, widths: Widths, word_bits: int) -> int:
    check_range("word_bits", word_bits, 1, MAX_WORD_BITS)
    if isinstance(widths, int):
        check_range("widths", widths, 0, MAX_CODE_BITS)
        return count * widths
    for width in widths:
        check_range("each of widths", width, 0, MAX_CODE_BITS)
    if len(widths) != count:
        msg = f"there must be a width for each of {count} codes, not {len(widths)}"
        raise UsageError(msg, given=len(widths), expected=[str(count)])
    return int(sum(widths))


def _check_codes(codes: npt.NDArray[Any], widths: Widths) -> None:
    if isinstance(widths, int):
        check_integers("codes", codes, 0, (1 << widths) - 1)
        return
    check_integers("codes", codes, 0, (1 << MAX_CODE_BITS) - 1)
    limits = np.left_shift(1, np.asarray(widths, np.int64))
    if np.any(codes.astype(np.int64) >= limits):
        place = int(
            np.nonzero(np.any(codes.reshape(-1, len(widths)).astype(np.int64) >= limits, axis=0))[0][0]
        )
        largest = int(codes[..., place].max())
        msg = f"code {place} has {widths[place]} bits; one is {largest}"
        raise UsageError(msg, given=largest, expected=[f"0 to {int(limits[place]) - 1}"])


def _one_width(codes: npt.NDArray[Any], width: int) -> npt.NDArray[np.uint8]:
    """Eight codes are *width* bytes."""
    spare = -codes.shape[-1] % 8
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, spare)]) if spare else codes
    eights = padded.shape[-1] // 8
    octets = _many_widths(padded.reshape(*codes.shape[:-1], eights, 8), [width] * 8)
    return octets.reshape(*codes.shape[:-1], eights * width)


def _many_widths(codes: npt.NDArray[Any], widths: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The bytes of the codes along the last axis."""
    total = sum(widths)
    limbs = np.zeros((*codes.shape[:-1], -(-total // _LIMB)), np.uint64)
    start = 0
    for place, width in enumerate(widths):
        limb, shift = divmod(start, _LIMB)
        if width:
            code = codes[..., place].astype(np.uint64)
            limbs[..., limb] |= code << np.uint64(shift)
        if shift + width > _LIMB:
            limbs[..., limb + 1] |= code >> np.uint64(_LIMB - shift)
        start += width
    return _octets(limbs, _LIMB)[..., : -(-total // 8)]


def _codes_of_one_width(octets: npt.NDArray[np.uint8], width: int, count: int) -> npt.NDArray[np.uint16]:
    eights = -(-count // 8)
    padded = _resized(octets, eights * width).reshape(*octets.shape[:-1], eights, width)
    codes = _codes_of_many_widths(padded, [width] * 8)
    return codes.reshape(*octets.shape[:-1], eights * 8)[..., :count]


def _codes_of_many_widths(octets: npt.NDArray[np.uint8], widths: Sequence[int]) -> npt.NDArray[np.uint16]:
    limbs = _words(octets, -(-sum(widths) // _LIMB), _LIMB)
    codes = np.zeros((*octets.shape[:-1], len(widths)), np.uint16)
    start = 0
    for place, width in enumerate(widths):
        limb, shift = divmod(start, _LIMB)
        if width:
            code = limbs[..., limb] >> np.uint64(shift)
            if shift + width > _LIMB:
                code = code | limbs[..., limb + 1] << np.uint64(_LIMB - shift)
            codes[..., place] = code & np.uint64((1 << width) - 1)
        start += width
    return codes


def _words(octets: npt.NDArray[np.uint8], count: int, word_bits: int) -> npt.NDArray[np.uint64]:
    """*count* words of the bits of *octets*."""
    if word_bits in (8, 16, 32, 64):
        size = word_bits // 8
        return _resized(octets, count * size).view(f"<u{size}").astype(np.uint64)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")
    fields = _resized(bits, count * word_bits).reshape(*octets.shape[:-1], count, word_bits)
    parts = _resized(np.packbits(fields, axis=-1, bitorder="little"), 8)
    return parts.view("<u8")[..., 0].astype(np.uint64)


def _octets(words: npt.NDArray[Any], word_bits: int) -> npt.NDArray[np.uint8]:
    """The bits of *words* as bytes; the last one filled up with zeros."""
    *shape, count = words.shape
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(*shape, count, 8)
    if word_bits % 8 == 0:
        return octets[..., : word_bits // 8].reshape(*shape, count * word_bits // 8)
    bits = np.unpackbits(octets, axis=-1, count=word_bits, bitorder="little")
    return np.packbits(bits.reshape(*shape, count * word_bits), axis=-1, bitorder="little")


def _resized(array: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
    """The last axis cut, or filled up with zeros, to *length*; contiguous."""
    spare = length - array.shape[-1]
    if spare <= 0:
        return np.ascontiguousarray(array[..., :length])
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, spare)])
