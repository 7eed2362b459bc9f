"""Where the words of the load stream go."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mvu._counter import step
from hw.mvu.folding import Folding


class Loader(Component):
    """Turns the load stream into writes, and keeps loading and computing apart.

    The stream goes row by row: the words of the row's weights, then its parameters, if there are any.

    Ports:
        ``load``: the stream.
        ``is_idle`` in: nothing is being computed; the first word is taken only then.
        ``may_start`` out: the memories are loaded, and nobody waits to load them again.
        ``word``, ``parameters`` out: what to write.
        ``write_weights``, ``write_parameters`` out: a bit a processing element.
        ``address``: of the weights; ``fold``: of the parameters.

    Args:
        folding: of the matrix.
        weight_bits: of one weight.
        parameter_bits: of the parameters of a row; may be 0.
    """

    def __init__(self, folding: Folding, *, weight_bits: int, parameter_bits: int) -> None:
        self._folding = folding
        self._weight_bits = weight_bits
        word_bits = folding.simd * weight_bits
        super().__init__(
            {
                "load": In(stream.Signature(max(word_bits, parameter_bits))),
                "is_idle": In(1),
                "may_start": Out(1),
                "word": Out(word_bits),
                "parameters": Out(parameter_bits),
                "write_weights": Out(folding.pe),
                "write_parameters": Out(folding.pe),
                "address": Out(Shape.cast(range(folding.cycles))),
                "fold": Out(Shape.cast(range(folding.row_folds))),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        folding = self._folding
        has_parameters = len(self.parameters) > 0
        slots = folding.column_folds + has_parameters
        slot = Signal(range(slots))
        row = Signal(range(folding.rows))
        lane = Signal(range(folding.pe))
        base = Signal.like(self.address)
        is_loading = Signal()
        is_loaded = Signal()
        taken = Signal()
        row_ends = step(m, slot, slots, taken)
        ends = step(m, row, folding.rows, row_ends)
        with m.If(ends):
            m.d.sync += [lane.eq(0), base.eq(0), self.fold.eq(0)]
        with m.Elif(row_ends & (lane == folding.pe - 1)):
            m.d.sync += [lane.eq(0), base.eq(base + folding.column_folds), self.fold.eq(self.fold + 1)]
        with m.Elif(row_ends):
            m.d.sync += lane.eq(lane + 1)
        with m.If(taken):
            m.d.sync += [is_loading.eq(~ends), is_loaded.eq(is_loaded | ends)]

        selected = (C(1) << lane)[: folding.pe] & taken.replicate(folding.pe)
        is_parameters = slot == folding.column_folds if has_parameters else C(0, 1)
        m.d.comb += [
            self.load.ready.eq(is_loading | self.is_idle),
            taken.eq(self.load.valid & self.load.ready),
            self.may_start.eq(is_loaded & ~is_loading & ~self.load.valid),
            self.word.eq(self._without_spare_lanes(slot == folding.column_folds - 1)),
            self.parameters.eq(self.load.payload),
            self.write_weights.eq(Mux(is_parameters, 0, selected)),
            self.write_parameters.eq(Mux(is_parameters, selected, 0)),
            self.address.eq(base + slot),
        ]
        return m

    def _without_spare_lanes(self, is_last: Value) -> Value:
        """The word; zeros in the lanes beyond the last column, whatever was sent there."""
        used = len(self.word) - self._folding.spare_lanes * self._weight_bits
        spare = self.load.payload[used : len(self.word)]
        return Cat(self.load.payload[:used], Mux(is_last, 0, spare))
