"""How the weights of a group become the address of a table entry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hw.lut_kernel.walk import Step, binary_walk, ternary_walk
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import IntegerFormat, ScalarFormat, TernaryFormat
from quantizers.table_lookup.planes import bit_planes, plane_indices, ternary_indices

TABLES = ("full", "mirrored")
"""All entries, or (ternary only) of each pair with opposite weights one."""

_GROUPS = {"binary": range(1, 6), "ternary": range(1, 4)}
_MAX_PLANES = 4


@dataclass(frozen=True)
class Encoding:
    """Of the weights of a group as indices: one a bit plane, or one of ternary weights.

    An index is the address of a table entry, and above it, where tables are mirrored, whether the entry
    is negated. The entry of the binary weights c_j is ``sum_j c_j * x_j`` at ``sum_j c_j << j``; that of
    ternary weights is at v, the number of :func:`quantizers.table_lookup.planes.ternary_indices`, modulo a
    power of two.

    Args:
        weights: integers of up to four bits, or ternary.
        group: weights that share an index: 1 to 5, ternary 1 to 3.
        table: one of :data:`TABLES`.

    Raises:
        UsageError: a format, group or table that there is no datapath for.
    """

    weights: ScalarFormat
    group: int
    table: str = "full"

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise unknown_choice("table", self.table, TABLES)
        is_integer = isinstance(self.weights, IntegerFormat) and self.weights.bits <= _MAX_PLANES
        if not is_integer and not self.is_ternary:
            expected = [f"int2..int{_MAX_PLANES}", f"uint1..uint{_MAX_PLANES}", "ternary"]
            msg = f"weights must be integers of up to {_MAX_PLANES} bits or ternary, not {self.weights}"
            raise UsageError(msg, given=str(self.weights), expected=expected)
        if self.table == "mirrored" and not self.is_ternary:
            msg = f"mirrored tables are for ternary weights, not {self.weights}"
            raise UsageError(msg, given=str(self.weights), expected=["ternary"])
        allowed = _GROUPS["ternary" if self.is_ternary else "binary"]
        if self.group not in allowed:
            msg = (
                f"group must be {allowed[0]} to {allowed[-1]} for {self.weights} weights, not {self.group!r}"
            )
            raise UsageError(msg, given=repr(self.group), expected=[f"{allowed[0]}..{allowed[-1]}"])

    @property
    def is_ternary(self) -> bool:
        return isinstance(self.weights, TernaryFormat)

    @property
    def has_sign(self) -> bool:
        """Whether an index says that its entry is negated."""
        return self.table == "mirrored"

    @property
    def planes(self) -> int:
        """Indices of a group."""
        return 1 if self.is_ternary else self.weights.bits

    @property
    def factors(self) -> tuple[int, ...]:
        """What the entry of each plane counts."""
        if self.is_ternary:
            return (1,)
        signs = [1] * (self.planes - 1) + [-1 if self.weights.signed else 1]
        return tuple(sign << plane for plane, sign in enumerate(signs))

    @cached_property
    def walk(self) -> list[Step]:
        """The order in which a table is filled."""
        if self.is_ternary:
            return ternary_walk(self.group, is_mirrored=self.has_sign)
        return binary_walk(self.group)

    def address(self, step: Step) -> int:
        """Of an entry in its table."""
        if not self.is_ternary:
            return sum(digit << place for place, digit in enumerate(step.digits))
        value = sum(digit * 3**place for place, digit in enumerate(reversed(step.digits)))
        return value % (1 << self.address_bits)

    @property
    def address_bits(self) -> int:
        """Of an address in a table."""
        return len(self.walk).bit_length()

    @property
    def index_bits(self) -> int:
        """Of an index: those of the address, and the sign."""
        return self.address_bits + self.has_sign

    def entry_range(self, low: int, high: int) -> tuple[int, int]:
        """Smallest and largest entry, for activations of *low* to *high*."""
        if self.is_ternary:
            largest = self.group * max(abs(low), abs(high))
            return -largest, largest
        return min(0, self.group * low), max(0, self.group * high)

    def indices(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of weight codes ``(rows, columns)``; shape ``(planes, rows, ceil(columns / group))``."""
        if not self.is_ternary:
            planes = bit_planes(codes, self.planes)
            return np.stack([plane_indices(plane, self.group) for plane in planes]).astype(np.int64)
        weights = self.weights.fixed_point(codes)
        magnitudes, signs = (part.astype(np.int64) for part in ternary_indices(weights, self.group))
        if self.has_sign:
            return (magnitudes | signs << self.address_bits)[None]
        return (np.where(signs, -magnitudes, magnitudes) % (1 << self.address_bits))[None]
