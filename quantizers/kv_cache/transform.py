"""Calibrated linear transforms: coefficients by an integer matrix, codes by offline tables, and back.

Of a block of d elements y, n coefficients are coded, all in integers:

    z = F y,                  F (n, d), the project's matrix-vector unit;
    code of z_j               the number of thresholds of coefficient j that z_j reaches;
    v_j                       the level that stands in its table for the code;
    y = (G v) / 2**shift      G (d, n), rounded half to even, saturated to 16 bits.

There is no metadata: how large each coefficient gets was found on calibration text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Code, Codec, Field, IntegerArray
from quantizers.kv_cache.fixed_point import BITS, saturate
from quantizers.kv_cache.integers import check_integers, check_range
from quantizers.kv_cache.rotation import shift_half_even

MAX_CODE_BITS = 8
"""Of a coefficient."""

MAX_ENTRY_BITS = 12
"""Of an entry of a matrix."""

LEVEL_BITS = 16

_LARGEST_EXACT = 1 << 53


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """One block of consecutive elements.

    Attributes:
        forward: F, integers of at most 12 bits, shape (n, d).
        inverse: G, likewise, shape (d, n).
        shift: of the sums of G, 0 to 30.
        thresholds: for each coefficient ``2**bits - 1`` integers, ascending.
        levels: for each coefficient ``2**bits`` 16-bit integers.

    Raises:
        UsageError: tables that do not fit each other, or are out of range.
    """

    forward: IntegerArray
    inverse: IntegerArray
    shift: int
    thresholds: tuple[tuple[int, ...], ...]
    levels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        check_range("shift", self.shift, 0, 30)
        n, d = self.forward.shape
        if self.inverse.shape != (d, n) or len(self.thresholds) != n or len(self.levels) != n:
            msg = (
                f"{n} coefficients of {d} elements take an inverse of shape {(d, n)} and {n} tables, "
                f"not {self.inverse.shape}, {len(self.thresholds)} and {len(self.levels)}"
            )
            raise UsageError(msg, given=self.inverse.shape, expected=[str((d, n))])
        limit = 1 << (MAX_ENTRY_BITS - 1)
        check_integers("forward", self.forward, -limit, limit - 1)
        check_integers("inverse", self.inverse, -limit, limit - 1)
        for thresholds, levels in zip(self.thresholds, self.levels, strict=True):
            _check_table(thresholds, levels)
        half = 1 << (BITS - 1)
        if max(d * half, n * (1 << (LEVEL_BITS - 1))) * limit >= _LARGEST_EXACT:
            msg = f"blocks of {d} elements are too long for exact sums in float64"
            raise UsageError(msg, given=d)

    @property
    def elements(self) -> int:
        """d."""
        return self.forward.shape[1]

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Bits of each coefficient."""
        return tuple(len(levels).bit_length() - 1 for levels in self.levels)

    def encode(self, y: IntegerArray) -> Field:
        """The codes of blocks ``(units, d)``."""
        z = _product(y, self.forward.T)
        columns = [
            np.searchsorted(table, z[:, j], side="right") for j, table in enumerate(self._threshold_arrays)
        ]
        codes = np.stack(columns, axis=1) if columns else np.zeros((len(y), 0), np.int64)
        return Field(codes.astype(np.int64), self.widths)

    def decode(self, field: Field) -> npt.NDArray[np.int64]:
        """The blocks ``(units, d)``."""
        v = self._level_table[np.arange(len(self.levels)), field.values]
        return saturate(shift_half_even(_product(v, self.inverse.T), self.shift))

    @cached_property
    def _threshold_arrays(self) -> list[npt.NDArray[np.int64]]:
        return [np.array(table, np.int64) for table in self.thresholds]

    @cached_property
    def _level_table(self) -> npt.NDArray[np.int64]:
        """Levels of all coefficients, filled up to the longest."""
        longest = max((len(levels) for levels in self.levels), default=1)
        table = np.zeros((len(self.levels), longest), np.int64)
        for j, levels in enumerate(self.levels):
            table[j, : len(levels)] = levels
        return table


class Transformed(Codec):
    """Each token as blocks that are transformed and coded one by one.

    Args:
        blocks: from channel 0 on, one after the other: a block a head, or one of all heads.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        if not blocks:
            msg = "a token has at least one block"
            raise UsageError(msg, given=0, expected=["1 or more"])
        self.blocks = tuple(blocks)
        self.channels = sum(block.elements for block in self.blocks)

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        starts = np.cumsum([block.elements for block in self.blocks])[:-1]
        shares = np.split(x[:, 0], starts, axis=1)
        return tuple(block.encode(share) for block, share in zip(self.blocks, shares, strict=True))

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        parts = [block.decode(field) for block, field in zip(self.blocks, code, strict=True)]
        return np.concatenate(parts, axis=1)[:, None]

    @property
    def unit_bits(self) -> float:
        return float(sum(sum(block.widths) for block in self.blocks))


def _product(x: IntegerArray, matrix: IntegerArray) -> npt.NDArray[np.int64]:
    """Of integers, by floats: all sums are below 2**53, hence exact in any order."""
    product: npt.NDArray[Any] = x.astype(np.float64) @ matrix.astype(np.float64)
    return product.astype(np.int64)


def _check_table(thresholds: tuple[int, ...], levels: tuple[int, ...]) -> None:
    count = len(levels)
    check_range("levels of a coefficient", count, 2, 1 << MAX_CODE_BITS)
    if count & (count - 1) or len(thresholds) != count - 1 or list(thresholds) != sorted(thresholds):
        msg = f"{count} levels take {count - 1} ascending thresholds, and are a power of two"
        raise UsageError(msg, given=len(thresholds), expected=[str(count - 1)])
    limit = 1 << (LEVEL_BITS - 1)
    check_integers("levels", np.array(levels), -limit, limit - 1)
