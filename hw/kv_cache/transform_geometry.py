"""What the hardware of calibrated transforms must have room for, and tables in the order of its memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from hw._checks import check_positive, check_switch
from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST
from quantizers.kv_cache.integers import check_integers, check_range
from quantizers.kv_cache.transform import MAX_CODE_BITS, MAX_ENTRY_BITS, Block

Means: TypeAlias = npt.ArrayLike | None
"""Of the elements of a token, 16-bit integers."""

_T = TypeVar("_T")

MIN_ENTRY_BITS = 2


@dataclass(frozen=True, kw_only=True)
class TransformGeometry:
    """Sizes of the memories: of all blocks of a token, be it of the heads of one layer or of all layers.

    Attributes:
        matrices: blocks of a token.
        elements: of a block, d.
        coefficients: that are coded, n: of the block with the most; the others get ones without bits.
        entry_bits: of the matrices.
        slots: ``slots[k]`` coefficients of a token have more than k bits.
        levels: of all coefficients of a token; one for each without bits.
        has_means: offline means are taken away before, and added afterwards.

    Raises:
        UsageError: a number that is out of range.
    """

    matrices: int
    elements: int
    coefficients: int
    entry_bits: int
    slots: tuple[int, ...]
    levels: int
    has_means: bool = False

    def __post_init__(self) -> None:
        for name in ("matrices", "elements", "coefficients", "levels"):
            check_positive(name, getattr(self, name))
        check_range("entry_bits", self.entry_bits, MIN_ENTRY_BITS, MAX_ENTRY_BITS)
        check_range("stages of slots", len(self.slots), 1, MAX_CODE_BITS)
        for slots in self.slots:
            check_positive("each of slots", slots)
        check_switch("has_means", self.has_means)

    @classmethod
    def covering(
        cls, *tokens: Sequence[Block], entry_bits: int | None = None, has_means: bool = False
    ) -> TransformGeometry:
        """The smallest that holds the tables of any of *tokens*, each given as its blocks.

        Args:
            tokens: a layer each, or one of all layers.
            entry_bits: of the matrices; by default as few as hold all entries.
            has_means: see above.

        Raises:
            UsageError: no blocks, blocks of several sizes or without a coefficient, or entries of more bits.
        """
        blocks = [block for token in tokens for block in token]
        counts, sizes = {len(token) for token in tokens}, {block.elements for block in blocks}
        if len(counts) != 1 or len(sizes) != 1:
            msg = f"tokens must have blocks of one number and size, not {sorted(counts)} of {sorted(sizes)}"
            raise UsageError(msg, given=f"{sorted(counts)}, {sorted(sizes)}", expected=["one of each"])
        if entry_bits is None:
            entry_bits = max(
                _bits_of(matrix) for block in blocks for matrix in (block.forward, block.inverse)
            )
        limit = 1 << (entry_bits - 1)
        for block in blocks:
            check_integers(f"entries of {entry_bits} bits", block.forward, -limit, limit - 1)
            check_integers(f"entries of {entry_bits} bits", block.inverse, -limit, limit - 1)
        n = max(len(block.widths) for block in blocks)
        widths = [np.array(coefficient_widths(token, n)) for token in tokens]
        longest = max(int(some.max(initial=0)) for some in widths)
        return cls(
            matrices=counts.pop(),
            elements=sizes.pop(),
            coefficients=n,
            entry_bits=entry_bits,
            slots=tuple(max(int((some > k).sum()) for some in widths) for k in range(longest)),
            levels=max(int((1 << some).sum()) for some in widths),
            has_means=has_means,
        )

    @property
    def token_coefficients(self) -> int:
        """Of all matrices."""
        return self.matrices * self.coefficients

    @property
    def token_elements(self) -> int:
        """Of all matrices."""
        return self.matrices * self.elements

    def check(self, blocks: Sequence[Block], means: Means) -> None:
        """Raises :class:`UsageError` unless the tables of *blocks*, and *means*, fit."""
        needed = TransformGeometry.covering(blocks, entry_bits=self.entry_bits, has_means=means is not None)
        exact = ("matrices", "elements", "has_means")
        for name in (*exact, "coefficients", "levels"):
            room, need = getattr(self, name), getattr(needed, name)
            if need > room or (name in exact and need != room):
                msg = f"the hardware is made for {name} {room}, and the tables have {need}"
                raise UsageError(msg, given=need, expected=[str(room)])
        spare = (0,) * max(0, len(needed.slots) - len(self.slots))
        if any(need > room for need, room in zip(needed.slots, (*self.slots, *spare), strict=False)):
            msg = f"the hardware is made for slots {self.slots}, and the tables have {needed.slots}"
            raise UsageError(msg, given=needed.slots, expected=[str(self.slots)])
        if means is not None:
            _checked_means(means, self.token_elements)

    def mean_words(self, means: Means) -> list[int]:
        """The means as 16-bit words; none where there are none."""
        if means is None:
            return []
        mask = (1 << BITS) - 1
        return [mean & mask for mean in _checked_means(means, self.token_elements).tolist()]


def coefficient_widths(blocks: Sequence[Block], coefficients: int) -> list[int]:
    """Bits of all coefficients of a token: *coefficients* of each block, those that it lacks without bits."""
    return [width for block in blocks for width in _filled(block.widths, coefficients, 0)]


def crosses_word(widths: Sequence[int], word_bits: int) -> bool:
    """Whether the last code begins in one word and ends in the next."""
    return sum(widths[:-1]) % word_bits + widths[-1] > word_bits


def stacked(matrices: Sequence[npt.NDArray[np.int64]], *, rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Matrices of any size filled up with zeros, shape (matrices, rows, columns)."""
    return np.stack(
        [np.pad(some, [(0, rows - some.shape[0]), (0, columns - some.shape[1])]) for some in matrices]
    )


def stage_thresholds(blocks: Sequence[Block], stage: int, *, bits: int) -> list[int]:
    """The thresholds of a stage of :class:`hw.kv_cache.transform_search.ThresholdSearch`.

    Those outside the range of signed numbers of *bits* bits are moved to its ends, which no sum reaches.
    """
    limit = 1 << (bits - 1)
    return [
        max(-limit, min(thresholds[(part << width - stage) + (1 << width - stage - 1) - 1], limit - 1))
        for block in blocks
        for thresholds, width in zip(block.thresholds, block.widths, strict=True)
        if width > stage
        for part in range(1 << stage)
    ]


def level_words(blocks: Sequence[Block], coefficients: int) -> list[int]:
    """The levels of all coefficients as 16-bit words; a zero for those without bits."""
    mask = (1 << BITS) - 1
    return [
        level & mask
        for block in blocks
        for levels in _filled(block.levels, coefficients, (0,))
        for level in levels
    ]


def _bits_of(entries: npt.NDArray[np.int64]) -> int:
    """The fewest with which all are signed numbers."""
    largest = max(int(entries.max(initial=0)), ~int(entries.min(initial=0)))
    return max(MIN_ENTRY_BITS, largest.bit_length() + 1)


def _filled(values: Sequence[_T], count: int, value: _T) -> list[_T]:
    return [*values, *[value] * (count - len(values))]


def _checked_means(means: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    array = np.asarray(means)
    if array.shape != (count,):
        msg = f"there must be {count} means, an element of a token one, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[f"({count},)"])
    check_integers("means", array, LOWEST, HIGHEST)
    return array.astype(np.int64)
