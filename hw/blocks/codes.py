"""Random codes and packed words for the stimuli of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.formats import ScalarFormat


def sum_meaning(weights: ScalarFormat, activations: ScalarFormat) -> str:
    return f"sum of the products, in units of 2**{weights.grid.lsb_exponent + activations.grid.lsb_exponent}"


def packed(codes: npt.NDArray[np.int64], bits: int) -> int:
    """The codes side by side, the first in the low bits."""
    return sum(code << bits * place for place, code in enumerate(codes.tolist()))


def random_codes(
    fmt: ScalarFormat, count: int | tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Codes that are numbers, each as likely as the others."""
    return rng.choice(np.flatnonzero(np.isfinite(fmt.values())), count).astype(np.int64)


LONGEST_RANDOM_DOT = 64
"""Pairs in the longest random dot product: many short ones exercise the streams more than few long ones."""

PAIRS_MEANING = "a weight code and an activation code; last marks the final pair of a dot product"


def random_dots(
    weights: ScalarFormat, activations: ScalarFormat, dot_length: int, rng: np.random.Generator, count: int
) -> tuple[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], list[int]]:
    """*count* dot products of random codes, of random length: their codes, and the payloads of pairs."""
    lengths = rng.integers(1, min(dot_length, LONGEST_RANDOM_DOT) + 1, count)
    w, a = (random_codes(fmt, int(lengths.sum()), rng) for fmt in (weights, activations))
    ends = np.cumsum(lengths)
    last = np.zeros(len(w), dtype=np.int64)
    last[ends - 1] = 1
    dots = [(w[end - n : end], a[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    return dots, (w | a << weights.bits | last << weights.bits + activations.bits).tolist()


def joined(numbers: Sequence[int], widths: Sequence[int]) -> int:
    """Two's complements of the given widths side by side, the first in the low bits."""
    word = position = 0
    for number, bits in zip(numbers, widths, strict=True):
        word |= wrapped(number, bits) << position
        position += bits
    return word


def element_words(elements: npt.NDArray[Any], *, lanes: int, bits: int) -> list[int]:
    """Integers of any shape, in order, as payloads of *lanes* two's complements of so many bits."""
    words = elements.astype(np.int64).reshape(-1, lanes) & ((1 << bits) - 1)
    return [packed(word, bits) for word in words]


def wrapped(number: int, width: int) -> int:
    """Two's complement; wraps."""
    return number & ((1 << width) - 1)
