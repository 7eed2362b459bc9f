"""The order in which a list of scores is taken, counted and put out."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mvu._counter import step


class TopSequence(Component):
    """Scores are taken and counted by their first digit; counts are added up; scores are counted by their
    next digit; and so on; then they are put out.

    Ports:
        ``taken``, ``is_last``, ``is_dense`` in: a score came, the last one of its list, all are to be taken.
        ``advance`` in: scores that are put out are read on. ``ends_output`` in: the last index was taken.
        ``address`` out: of the score that comes or is read; ``last`` out: of the list.
        ``takes_all`` out: there is nothing to choose.
        ``digit`` out: by which scores are counted; ``scanned`` out: the place of the count that is added.
        ``fills``, ``counts``, ``scans``, ``emits`` out: the phase; ``ends_scan`` out.

    Args:
        max_blocks: scores of a list.
        topk: that are chosen.
        digits: of a score.
        radix_bits: of a digit.
    """

    def __init__(self, *, max_blocks: int, topk: int, digits: int, radix_bits: int) -> None:
        self._topk, self._digits, self._radix = topk, digits, 1 << radix_bits
        inputs = ("taken", "is_last", "is_dense", "advance", "ends_output")
        outputs = ("takes_all", "fills", "counts", "scans", "emits", "ends_scan")
        address = Shape.cast(range(max_blocks))
        super().__init__(
            {
                **{name: In(1) for name in inputs},
                **{name: Out(1) for name in outputs},
                **{name: Out(address) for name in ("address", "last")},
                "digit": Out(Shape.cast(range(digits))),
                "scanned": Out(radix_bits),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        ends_list = Signal()
        ends_fill = self.taken & self.is_last
        m.d.comb += ends_list.eq(Mux(self.fills, ends_fill, self.address == self.last))
        with m.If(self.ends_output):
            m.d.sync += self.address.eq(0)
        with m.Elif(self.taken | self.counts | (self.emits & self.advance)):
            m.d.sync += self.address.eq(Mux(ends_list, 0, self.address + 1))
        with m.If(ends_fill):
            m.d.sync += [
                self.last.eq(self.address),
                self.takes_all.eq(self.is_dense | (self.address < self._topk)),
            ]
        m.d.comb += self.ends_scan.eq(step(m, self.scanned, self._radix, self.scans))
        is_over = self.takes_all | (self.digit == self._digits - 1)
        with m.If(self.ends_scan):
            m.d.sync += self.digit.eq(Mux(is_over, 0, self.digit + 1))
        self._add_phases(m, ends_list, is_over)
        return m

    def _add_phases(self, m: Module, ends_list: Signal, is_over: Any) -> None:
        with m.FSM():
            with m.State("FILL"):
                m.d.comb += self.fills.eq(1)
                with m.If(ends_list):
                    m.next = "COUNTED"
            with m.State("COUNTED"):
                m.next = "SCAN"
            with m.State("SCAN"):
                m.d.comb += self.scans.eq(1)
                with m.If(self.ends_scan):
                    m.next = "COUNT"
                    with m.If(is_over):
                        m.next = "EMIT"
            with m.State("COUNT"):
                m.d.comb += self.counts.eq(1)
                with m.If(ends_list):
                    m.next = "COUNT ENDS"
            with m.State("COUNT ENDS"):
                m.next = "WORD"
            with m.State("WORD"):
                m.next = "COUNTED"
            with m.State("EMIT"):
                m.d.comb += self.emits.eq(1)
                with m.If(self.ends_output):  # perhaps before the last score
                    m.next = "FILL"
                with m.Elif(ends_list & self.advance):
                    m.next = "EMIT ENDS"
            with m.State("EMIT ENDS"), m.If(self.ends_output):
                m.next = "FILL"
