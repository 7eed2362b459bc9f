"""The table-lookup engine for weights with scales and zero points along the columns."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Shape, Value, signed, unsigned
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive, check_switch
from hw._component import Component
from hw.lut_kernel.activation_sums import ActivationSums
from hw.lut_kernel.engine import TableLookupEngine
from hw.lut_kernel.queue import Queue
from hw.lut_kernel.scale_stage import ScaleStage
from hw.reference.widths import largest_magnitude
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, ScalarFormat, TernaryFormat


class GroupedLookupEngine(Component):
    """``y[row] = sum over blocks of scale[row, block] * sum over its columns of (u - zero[row, block]) * x``.

    A :class:`hw.lut_kernel.TableLookupEngine`, to which each block of columns is a vector of its own, the
    sums of the activations where there are zero points, and a
    :class:`hw.lut_kernel.scale_stage.ScaleStage`. Integers throughout; the results count the unit of the
    scales times that of the activations. See :func:`hw.reference.grouped_lookup.grouped_matrix_vector`.

    Ports:
        ``activations``, ``weights``: input streams, as those of the engine, block by block. See
        :func:`hw.lut_kernel.grouped_streams.activation_words` and ``weight_words`` there.
        ``scales``: input stream of *lanes* scales and zero points a transfer, ``row_folds`` transfers a
        block. Once for every vector. See :func:`hw.lut_kernel.grouped_streams.scale_words`.
        ``outputs``: output stream of *lanes* results a transfer, ``row_folds`` transfers a vector.
        Lanes beyond the last row hold what their weights and scales, which are to be zero, gave.

    :attr:`interval` cycles from vector to vector: where a block takes the engine at least
    :attr:`scale_cycles`, fewer multipliers than lanes do not slow it down: then the sums of a block wait in
    a queue in LUT RAM. The first results are valid :attr:`latency` cycles after the one in which the first
    rows' weights of the last chunk were taken, if no sums waited.

    Args:
        weights: ``uint1`` to ``uint4``, ``int2`` to ``int4``, ``ternary``.
        activations: integers; where there are no zero points whatever the engine takes.
        rows: of the matrix.
        columns: of the matrix.
        block: columns that share a scale, at most *columns*; all of them by default. The last block may be
            shorter. A block takes whole chunks of ``groups * group`` columns.
        has_zeros: whether there are zero points, of as many bits as the weights and as signed; by default
            for unsigned weights. Not for ternary ones.
        lanes: rows worked on at a time.
        groups: tables.
        scale_bits: of a scale, unsigned: 2 to 16.
        multipliers: lanes that are scaled at a time, a divisor of *lanes*; by default all.
        products: what they are made of: ``luts`` or ``dsps``.
        tables: the other arguments of :class:`hw.lut_kernel.TableLookupEngine`.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        rows: int,
        columns: int,
        block: int | None = None,
        has_zeros: bool | None = None,
        lanes: int = 8,
        groups: int = 8,
        scale_bits: int = 12,
        multipliers: int | None = None,
        products: str = "luts",
        **tables: Any,
    ) -> None:
        check_positive("columns", columns)
        self.rows, self.columns, self.lanes = rows, columns, lanes
        self.block = _checked_block(block, columns)
        self.weight_format = weights
        self.engine = TableLookupEngine(
            weights=weights,
            activations=activations,
            rows=rows,
            columns=self.block,
            lanes=lanes,
            groups=groups,
            **tables,
        )
        zeros = _zero_shape(weights, has_zeros)
        self._summer = _summer(self.engine, activations) if zeros.width else None
        self.stage = ScaleStage(
            lanes=lanes,
            row_folds=self.engine.row_folds,
            blocks=self.blocks,
            sums=signed(self.engine.accumulator_bits),
            scale_bits=scale_bits,
            zeros=zeros,
            offsets=self._summer.sums.payload.shape() if self._summer else unsigned(0),
            largest=self.block * _largest_weight(weights, zeros) * largest_magnitude(activations),
            multipliers=multipliers,
            products=products,
        )
        super().__init__(
            {
                "activations": In(stream.Signature(self.engine.activations.payload.shape())),
                "weights": In(stream.Signature(self.engine.weights.payload.shape())),
                "scales": In(stream.Signature(self.stage.scales.payload.shape())),
                "outputs": Out(stream.Signature(self.stage.outputs.payload.shape())),
            }
        )

    @property
    def has_zeros(self) -> bool:
        """Whether there are zero points."""
        return self.stage.has_zeros

    @property
    def zero_shape(self) -> Shape:
        """Of a zero point."""
        return _zero_shape(self.weight_format, self.has_zeros)

    @property
    def scale_bits(self) -> int:
        """Width of a scale."""
        return self.stage.scale_bits

    @property
    def accumulator_bits(self) -> int:
        """Width of the results."""
        return self.stage.accumulator_bits

    @property
    def row_folds(self) -> int:
        """Turns in which the lanes work on the rows."""
        return self.engine.row_folds

    @property
    def blocks(self) -> int:
        """Of a vector."""
        return -(-self.columns // self.block)

    @property
    def scale_cycles(self) -> int:
        """Cycles in which the sums of a block are scaled."""
        return self.row_folds * self.stage.cycles_per_transfer

    @property
    def block_cycles(self) -> int:
        """Cycles from block to block."""
        return max(self.engine.interval, self.scale_cycles)

    @property
    def interval(self) -> int:
        """Cycles from vector to vector."""
        return self.blocks * self.block_cycles

    @property
    def latency(self) -> int:
        """Cycles from a row's last weights to its result, if no sums waited."""
        return self.engine.latency + self._is_queued + self.stage.cycles_per_transfer - 1 + self.stage.latency

    def cycles(self, vectors: int) -> int:
        """From the first offer to the last result of so many vectors, where nothing waits outside."""
        passes, scaling = self.engine.passes, self.stage.cycles_per_transfer
        first_sums = self.engine.cycles(1) - (self.row_folds - 1) * passes + self._is_queued
        later_blocks = (vectors * self.blocks - 1) * self.block_cycles
        last_sums = (self.row_folds - 1) * max(passes, scaling)
        return first_sums + later_blocks + last_sums + scaling - 1 + self.stage.latency

    @property
    def _is_queued(self) -> bool:
        return self.stage.cycles_per_transfer > self.engine.passes

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.engine, m.submodules.stage = engine, stage = self.engine, self.stage
        connect(m, flipped(self.weights), engine.weights)
        connect(m, flipped(self.scales), stage.scales)
        connect(m, stage.outputs, flipped(self.outputs))
        self._connect_activations(m)
        self._connect_sums(m)
        return m

    def _connect_activations(self, m: Module) -> None:
        """To the engine, and in the same cycle to the sums where there are zero points."""
        if self._summer is None:
            connect(m, flipped(self.activations), self.engine.activations)
            return
        m.submodules.summer = summer = self._summer
        tables, words = self.engine.activations, summer.words
        m.d.comb += [
            tables.payload.eq(self.activations.payload),
            words.payload.eq(self.activations.payload),
            tables.valid.eq(self.activations.valid & words.ready),
            words.valid.eq(self.activations.valid & tables.ready),
            self.activations.ready.eq(tables.ready & words.ready),
        ]
        connect(m, summer.sums, self.stage.offsets)

    def _connect_sums(self, m: Module) -> None:
        """To the stage, through a queue that holds those of a block where the stage is slower."""
        sums = self.engine.outputs
        if not self._is_queued:
            connect(m, sums, self.stage.sums)
            return
        # A single place would be empty for a cycle after each transfer.
        depth = max(self.row_folds, 2)
        m.submodules.queue = queue = Queue(width=Shape.cast(sums.payload.shape()).width, depth=depth)
        m.d.comb += [
            queue.inputs.payload.eq(sums.payload),
            queue.inputs.valid.eq(sums.valid),
            sums.ready.eq(queue.inputs.ready),
            Value.cast(self.stage.sums.payload).eq(queue.outputs.payload),
            self.stage.sums.valid.eq(queue.outputs.valid),
            queue.outputs.ready.eq(self.stage.sums.ready),
        ]


def _summer(engine: TableLookupEngine, activations: ScalarFormat) -> ActivationSums:
    if not isinstance(activations, IntegerFormat):
        msg = f"zero points need activations that are integers, not {activations}"
        raise UsageError(msg, given=str(activations), expected=["int8", "has_zeros=False"])
    return ActivationSums(
        activation=Shape(activations.bits, activations.signed),
        length=engine.activations.payload.shape().length,
        words=engine.chunks * engine.groups // engine.writers,
        terms=engine.columns,
    )


def _checked_block(block: int | None, columns: int) -> int:
    if block is None:
        return columns
    check_positive("block", block)
    if block > columns:
        msg = f"block must be at most the {columns} columns, not {block}"
        raise UsageError(msg, given=block, expected=[f"1..{columns}"])
    return block


def _zero_shape(weights: ScalarFormat, has_zeros: bool | None) -> Shape:
    """Of a zero point; no bits where there is none."""
    if has_zeros is None:
        has_zeros = not weights.signed
    check_switch("has_zeros", has_zeros)
    if has_zeros and isinstance(weights, TernaryFormat):
        msg = "ternary weights have no zero points"
        raise UsageError(msg, given=str(weights), expected=["has_zeros=False"])
    return Shape(weights.bits, weights.signed) if has_zeros else unsigned(0)


def _largest_weight(weights: ScalarFormat, zeros: Shape) -> int:
    """The largest magnitude of a weight without its zero point."""
    return (1 << weights.bits) - 1 if zeros.width else largest_magnitude(weights)
