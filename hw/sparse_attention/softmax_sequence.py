"""The order in which the scores of a query are taken and read again."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mvu._counter import step


def mark_layout(heads: int) -> data.StructLayout:
    """What goes with a score that is read: its head, whether it is of the first key, whether it is the
    last."""
    return data.StructLayout({"is_valid": 1, "head": Shape.cast(range(heads)), "is_first": 1, "is_last": 1})


class SoftmaxSequence(Component):
    """Four phases: scores are taken; read for the sums; logarithms of the sums, head by head; read again.

    Ports:
        ``taken``, ``is_last`` in: a score came, and it is the last of its query.
        ``advance`` in: scores are read on.
        ``ends_pass`` in: the power of the last score of a pass is there. ``ends_logarithm``, ``ends_query``
        in: a logarithm is there, the last weight has been taken.
        ``address``, ``head``, ``is_first_key`` out: of the score that comes or is read.
        ``mark`` out: of the score that is read.
        ``is_taking``, ``is_summing``, ``is_combining`` out: the phase; ``is_passing``: one of the last two;
        ``starts_logarithm`` out.

    Args:
        heads: scores of a key.
        max_keys: of a query.
    """

    def __init__(self, *, heads: int, max_keys: int) -> None:
        self._heads = heads
        inputs = ("taken", "is_last", "advance", "ends_pass", "ends_logarithm", "ends_query")
        phases = ("is_taking", "is_summing", "is_combining", "is_passing", "starts_logarithm")
        super().__init__(
            {
                **{name: In(1) for name in inputs},
                **{name: Out(1) for name in (*phases, "is_first_key")},
                "address": Out(Shape.cast(range(max_keys * heads))),
                "head": Out(Shape.cast(range(heads))),
                "mark": Out(mark_layout(heads)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        reads, moves, ends = Signal(), Signal(), Signal()
        length = Signal.like(self.address, name="length", reset_less=True)
        is_later_key = Signal()
        m.d.comb += [
            moves.eq(self.taken | (reads & self.advance)),
            ends.eq(moves & Mux(reads, self.address == length, self.is_last)),
            self.is_first_key.eq(~is_later_key),
            self.is_passing.eq(self.is_summing | self.is_combining),
            self.mark.is_valid.eq(reads),
            self.mark.head.eq(self.head),
            self.mark.is_first.eq(self.is_first_key),
            self.mark.is_last.eq(self.address == length),
        ]
        ends_key = step(m, self.head, self._heads, moves | self.ends_logarithm)
        with m.If(ends):
            m.d.sync += [self.address.eq(0), is_later_key.eq(0)]
        with m.Elif(moves):
            m.d.sync += [self.address.eq(self.address + 1), is_later_key.eq(is_later_key | ends_key)]
        with m.If(self.is_taking & self.taken):
            m.d.sync += length.eq(self.address)
        self._add_phases(m, reads, ends, ends_key)
        return m

    def _add_phases(self, m: Module, reads: Signal, ends: Signal, ends_key: Any) -> None:
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.is_taking.eq(1)
                with m.If(ends):
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.comb += [self.is_summing.eq(1), reads.eq(1)]
                with m.If(ends):
                    m.next = "SUM ENDS"
            with m.State("SUM ENDS"):
                m.d.comb += self.is_summing.eq(1)
                with m.If(self.ends_pass):
                    m.next = "LOGARITHM"
            with m.State("LOGARITHM"):
                m.d.comb += self.starts_logarithm.eq(1)
                m.next = "LOGARITHM ENDS"
            with m.State("LOGARITHM ENDS"), m.If(self.ends_logarithm):
                m.next = "LOGARITHM"
                with m.If(ends_key):
                    m.next = "COMBINE"
            with m.State("COMBINE"):
                m.d.comb += [self.is_combining.eq(1), reads.eq(1)]
                with m.If(ends):
                    m.next = "COMBINE ENDS"
            with m.State("COMBINE ENDS"):
                m.d.comb += self.is_combining.eq(1)
                with m.If(self.ends_query):
                    m.next = "TAKE"
