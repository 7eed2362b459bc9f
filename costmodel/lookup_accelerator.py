"""What a table-lookup engine of any number of lanes occupies, and how many cycles a matrix takes on it.

Engines of a few lanes are synthesised (:mod:`costmodel.lookup_record`), and a line through them gives
those of hundreds. Cycles are those of the engine's own formulas, which its tests confirm.

One engine serves all matrices of a model: its lanes hold the sums of ``lanes * folds`` rows, so a matrix
of more rows goes through it in blocks, and the tables are filled again for each. The engine of
:mod:`hw.lut_kernel` is built for one matrix; one that is told rows and columns while it runs would have
two counters that compare with a register in place of a constant, which is not costed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import mean
from typing import Any

from costmodel.geometries import Matrix
from hw._checks import check_positive
from hw.lut_kernel import TableLookupEngine
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

LANE_STEP = 3
"""Lanes come in threes: so many share a copy of a table (see :class:`hw.lut_kernel.tables.SharedTable`)."""


@dataclass(frozen=True, kw_only=True)
class LookupDesign:
    """Everything that is chosen of a table-lookup engine besides its lanes.

    Attributes:
        weights, activations: names of formats.
        groups, group, planes, table: see :class:`hw.lut_kernel.TableLookupEngine`.
        folds: rows that each lane keeps sums of; 32 are as deep as LUT RAM is.
        columns: of the largest matrix, by which sums are wide enough.

    Raises:
        UsageError: a format, a size or a table that there is no engine for.
    """

    weights: str
    activations: str = "int8"
    groups: int = 8
    group: int | None = None
    planes: int | None = None
    table: str = "full"
    folds: int = 32
    columns: int = 16_384

    def __post_init__(self) -> None:
        check_positive("folds", self.folds)
        self.build(LANE_STEP)

    @property
    def name(self) -> str:
        """The design in a line, the key of its figures."""
        engine = self.build(LANE_STEP)
        return (
            f"{self.weights} {self.activations} groups={self.groups} group={engine.encoding.group} "
            f"planes={engine.planes} table={self.table} folds={self.folds} columns={self.columns}"
        )

    def build(self, lanes: int, *, rows: int | None = None, columns: int | None = None) -> TableLookupEngine:
        """The engine of so many lanes, for all the rows and columns that it can keep sums of, or fewer."""
        return TableLookupEngine(
            weights=parse_scalar_format(self.weights),
            activations=parse_scalar_format(self.activations),
            rows=lanes * self.folds if rows is None else rows,
            columns=self.columns if columns is None else columns,
            lanes=lanes,
            groups=self.groups,
            group=self.group,
            planes=self.planes,
            table=self.table,
        )

    @property
    def weights_per_lane(self) -> float:
        """Weights of a row that a lane looks up a cycle."""
        engine = self.build(LANE_STEP)
        return self.groups * engine.encoding.group / engine.passes

    @property
    def index_bits(self) -> float:
        """Bits of the indices, for each weight."""
        encoding = self.build(LANE_STEP).encoding
        return encoding.planes * encoding.index_bits / encoding.group

    def head_rows(self, bits: int) -> int:
        """Rows that one row of *bits*-bit signed integers becomes on this engine.

        Each holds as many of their bit planes as the engine has, or a digit of the balanced ternary
        system. Exact: what is left is to add their sums times powers of two or three, and of bit planes a
        multiple of the sum of all activations.
        """
        encoding = self.build(LANE_STEP).encoding
        if not encoding.is_ternary:
            return -(-bits // encoding.planes)
        digits = 1
        while (3**digits - 1) // 2 < 1 << (bits - 1):
            digits += 1
        return digits


def matrix_cycles(design: LookupDesign, matrix: Matrix, lanes: int) -> int:
    """Cycles from the first activation to the last result of a vector, where nothing waits outside.

    All blocks of rows but the last are full. The tables of a block are filled while the one before is
    looked up, so what is added once is the first filling and the latency of the last result.

    Raises:
        UsageError: the matrix has more columns than the design's sums are wide enough for.
    """
    if matrix.columns > design.columns:
        msg = f"{matrix.name} has {matrix.columns} columns, and the engine's sums are for {design.columns}"
        raise UsageError(msg, given=matrix.columns, expected=[f"columns={matrix.columns}"])
    full, rest = divmod(matrix.rows, lanes * design.folds)
    interval, alone = _block_cycles(design, design.folds, matrix.columns)
    if not rest:
        return (full - 1) * interval + alone
    return full * interval + _block_cycles(design, -(-rest // lanes), matrix.columns)[1]


@lru_cache(maxsize=4096)
def _block_cycles(design: LookupDesign, turns: int, columns: int) -> tuple[int, int]:
    """Cycles of a block of so many rows a lane: until the next may follow, and of one alone."""
    # Lanes work side by side: an engine with one takes as long for as many turns.
    engine = design.build(1, rows=turns, columns=columns)
    return engine.interval, engine.cycles(1)


@dataclass(frozen=True, kw_only=True)
class LookupCost:
    """Measured figures of a design at some numbers of lanes.

    Attributes:
        lanes: those that were synthesised, ascending multiples of :data:`LANE_STEP`.
        luts, lutrams, ffs: LUT6 sites, those of them used as RAM, and flip-flops, of each.
        seeds_mhz: clock frequencies after place and route of *placed_lanes* lanes, one a seed; empty where
            it was not placed.
        placed_lanes: see there.
        tools: versions and options.
    """

    lanes: Sequence[int]
    luts: Sequence[float]
    lutrams: Sequence[float]
    ffs: Sequence[float]
    seeds_mhz: Sequence[float] = ()
    placed_lanes: int = 0
    tools: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LookupCost:
        """The figures as :mod:`costmodel.lookup_record` keeps them."""
        return cls(**document)

    @property
    def luts_per_lane(self) -> float:
        """Slope of the line through the smallest and the largest size."""
        return (self.luts[-1] - self.luts[0]) / (self.lanes[-1] - self.lanes[0])

    @property
    def fixed_luts(self) -> float:
        """What that line leaves at no lanes: the adders that fill tables, and control."""
        return self.luts[0] - self.lanes[0] * self.luts_per_lane

    @property
    def lutrams_per_lane(self) -> float:
        """LUTs used as RAM, shared among the lanes, the largest of all sizes: copies of tables, and sums."""
        return max(luts / lanes for luts, lanes in zip(self.lutrams, self.lanes, strict=True))

    @property
    def ffs_per_lane(self) -> float:
        """Slope of the line, as for LUTs."""
        return (self.ffs[-1] - self.ffs[0]) / (self.lanes[-1] - self.lanes[0])

    @property
    def line_error(self) -> float:
        """Largest relative error of the line at the sizes between."""
        return max(abs(self.luts_of(n) / luts - 1) for n, luts in zip(self.lanes, self.luts, strict=True))

    @property
    def fmax_mhz(self) -> float | None:
        """Mean of the seeds' clock frequencies."""
        return mean(self.seeds_mhz) if self.seeds_mhz else None

    def luts_of(self, lanes: int) -> float:
        """LUT6 sites of an engine of so many lanes, on the line."""
        return self.fixed_luts + lanes * self.luts_per_lane

    def lanes_within(self, luts: float, lutrams: float) -> int:
        """The largest number of lanes, a multiple of :data:`LANE_STEP`, that takes no more; 0 where none."""
        by_luts = (luts - self.fixed_luts) / self.luts_per_lane
        by_lutrams = lutrams / self.lutrams_per_lane
        return max(0, int(min(by_luts, by_lutrams)) // LANE_STEP * LANE_STEP)
