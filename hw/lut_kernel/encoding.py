"""How the weights of a group become the address of a table entry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hw.lut_kernel.walk import Step, binary_walk, sign_walk, ternary_walk
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import IntegerFormat, ScalarFormat, TernaryFormat
from quantizers.table_lookup.planes import bit_planes, plane_indices, ternary_indices

TABLES = ("full", "mirrored")
"""All entries, or of each pair with opposite weights one."""

_MAX_PLANES = 4


@dataclass(frozen=True)
class Encoding:
    """Of the weights of a group as indices: one a bit plane, or one of ternary weights.

    An index is the address of a table entry, and above it, where tables are mirrored, whether the entry
    is negated.

    Full tables of integers: the entry of the bits c_j is ``sum_j c_j * x_j``, at ``sum_j c_j << j``.

    Mirrored tables of integers (T-MAC, arXiv 2407.00088, section 3.3): bits count as signs s_j, the entry is
    ``sum_j s_j * x_j`` and is kept where the last sign is plus. A weight is then half of
    ``sum_i factors[i] * s_i + offset_factor`` over its planes i, of two's complement with the highest bit
    inverted, so the sum of the activations counts as well.

    Ternary: the entry is at v, the number of :func:`quantizers.table_lookup.planes.ternary_indices`, modulo
    a power of two; mirrored tables keep those of v above zero.

    Args:
        weights: integers of up to four bits, or ternary.
        group: weights that share an index: 1 to 5, ternary 1 to 3, mirrored tables of integers from 2.
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
        allowed = self._groups
        if self.group not in allowed:
            tables = f"{self.table} tables of {self.weights} weights"
            msg = f"group must be {allowed[0]} to {allowed[-1]} for {tables}, not {self.group!r}"
            raise UsageError(msg, given=repr(self.group), expected=[f"{allowed[0]}..{allowed[-1]}"])

    @property
    def _groups(self) -> range:
        if self.is_ternary:
            return range(1, 4)
        return range(1 + self.has_signs, 6)

    @property
    def is_ternary(self) -> bool:
        return isinstance(self.weights, TernaryFormat)

    @property
    def is_mirrored(self) -> bool:
        """Whether an index says that its entry is negated."""
        return self.table == "mirrored"

    @property
    def has_signs(self) -> bool:
        """Whether bits count as signs: sums are then twice those of the products."""
        return self.is_mirrored and not self.is_ternary

    @property
    def planes(self) -> int:
        """Indices of a group."""
        return 1 if self.is_ternary else self.weights.bits

    @property
    def factors(self) -> tuple[int, ...]:
        """What the entry of each plane counts."""
        if self.is_ternary:
            return (1,)
        signs = [1] * (self.planes - 1) + [-1 if self._has_negative_plane else 1]
        return tuple(sign << plane for plane, sign in enumerate(signs))

    @property
    def _has_negative_plane(self) -> bool:
        return self.weights.signed and not self.has_signs

    @property
    def offset_factor(self) -> int:
        """What the sum of the activations counts."""
        if not self.has_signs:
            return 0
        return -1 if self.weights.signed else (1 << self.planes) - 1

    @cached_property
    def walk(self) -> list[Step]:
        """The order in which a table is filled."""
        if self.is_ternary:
            return ternary_walk(self.group, is_mirrored=self.is_mirrored)
        return sign_walk(self.group) if self.has_signs else binary_walk(self.group)

    def address(self, step: Step) -> int:
        """Of an entry in its table."""
        if not self.is_ternary:
            digits = step.digits[: self.address_bits]
            return sum((digit > 0) << place for place, digit in enumerate(digits))
        value = sum(digit * 3**place for place, digit in enumerate(reversed(step.digits)))
        return value % (1 << self.address_bits)

    @property
    def address_bits(self) -> int:
        """Of an address in a table."""
        if self.is_ternary:
            return len(self.walk).bit_length()
        return self.group - self.has_signs

    @property
    def sum_address(self) -> int:
        """Of the entry that is the sum of all activations of a table of signs."""
        return (1 << self.address_bits) - 1

    @property
    def index_bits(self) -> int:
        """Of an index: those of the address, and the sign."""
        return self.address_bits + self.is_mirrored

    def entry_range(self, low: int, high: int) -> tuple[int, int]:
        """Smallest and largest entry, for activations of *low* to *high*."""
        if self.is_ternary or self.has_signs:
            largest = self.group * max(abs(low), abs(high))
            return -largest, largest
        return min(0, self.group * low), max(0, self.group * high)

    def indices(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of weight codes ``(rows, columns)``; shape ``(planes, rows, ceil(columns / group))``."""
        if self.is_ternary:
            return self._ternary_indices(codes)[None]
        if self.has_signs and self.weights.signed:
            codes = codes ^ (1 << (self.planes - 1))
        planes = bit_planes(codes, self.planes)
        indices = np.stack([plane_indices(plane, self.group) for plane in planes]).astype(np.int64)
        if not self.has_signs:
            return indices
        is_negated = indices <= self.sum_address
        return np.where(is_negated, self.sum_address - indices, indices & self.sum_address) | (
            is_negated.astype(np.int64) << self.address_bits
        )

    def _ternary_indices(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        weights = self.weights.fixed_point(codes)
        magnitudes, signs = (part.astype(np.int64) for part in ternary_indices(weights, self.group))
        if self.is_mirrored:
            return magnitudes | signs << self.address_bits
        return np.where(signs, -magnitudes, magnitudes) % (1 << self.address_bits)
