"""How a matrix is cut to the size of the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from hw._checks import check_positive
from quantizers.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Folding:
    """A matrix of *rows* x *columns* on *pe* processing elements of *simd* lanes.

    M. Blott et al., "FINN-R", ACM TRETS 2018: rows are worked on *pe* at a time, columns
    *simd* a cycle. Where *pe* or *simd* does not divide them, the last fold is padded with zeros.

    Raises:
        UsageError: a number that is not positive, or a *pe* or *simd* above the rows or columns.
    """

    rows: int
    columns: int
    pe: int
    simd: int

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "pe", "simd"):
            check_positive(name, getattr(self, name))
        for part, whole in (("pe", "rows"), ("simd", "columns")):
            given, limit = getattr(self, part), getattr(self, whole)
            if given > limit:
                msg = f"{part} must be at most {whole} ({limit}), not {given}"
                raise UsageError(msg, given=given, expected=[f"1..{limit}"])

    @property
    def row_folds(self) -> int:
        """Groups of rows."""
        return -(-self.rows // self.pe)

    @property
    def column_folds(self) -> int:
        """Words of a row of weights, and of a vector."""
        return -(-self.columns // self.simd)

    @property
    def cycles(self) -> int:
        """Cycles that one vector takes: the initiation interval."""
        return self.row_folds * self.column_folds

    @property
    def spare_lanes(self) -> int:
        """Lanes of the last word of a row that hold no column."""
        return self.column_folds * self.simd - self.columns
