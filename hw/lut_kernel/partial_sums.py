"""The sums of all rows, while the chunks of a vector go by."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import add_with_carry
from hw.lut_kernel.tables import LUTRAM

SUM_MEMORIES: dict[str, dict[str, str]] = {"lutram": LUTRAM, "bram": {"ram_style": "block"}}
"""Where partial sums wait, with the attributes that tell synthesis."""


class PartialSums(Component):
    """Adds to the sums of the rows that all lanes work on in the same turn.

    Ports:
        ``advance`` in: without it everything stands still.
        ``next_fold`` in: the turn of the next cycle in which ``advance`` is set.
        ``fold``, ``addends``, ``is_first`` (the sums so far do not count), ``enable`` in; in the same cycle
        ``totals`` out, the sums with the addends, which replace them.

    Args:
        lanes: rows of a turn.
        rows: turns; where there is one, sums are kept in registers.
        addend: shape of an addend.
        bits: of a sum; sums wrap.
        storage: one of :data:`SUM_MEMORIES`.
    """

    def __init__(self, *, lanes: int, rows: int, addend: Shape, bits: int, storage: str) -> None:
        self._rows, self._storage = rows, storage
        super().__init__(
            {
                "advance": In(1),
                "next_fold": In(Shape.cast(range(rows))),
                "fold": In(Shape.cast(range(rows))),
                "addends": In(data.ArrayLayout(addend, lanes)),
                "is_first": In(1),
                "enable": In(1),
                "totals": Out(data.ArrayLayout(signed(bits), lanes)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        totals = Value.cast(self.totals)
        enable = self.enable & self.advance
        kept = self._register(m, totals, enable) if self._rows == 1 else self._memory(m, totals, enable)
        running = data.View(self.totals.shape(), kept)
        for total, sum_, addend in zip(self.totals, running, self.addends, strict=True):
            before = Mux(self.is_first, 0, sum_).as_signed()
            m.d.comb += total.eq(add_with_carry(before, addend, C(0, 0), width=len(total)))
        return m

    def _register(self, m: Module, totals: Value, enable: Value) -> Signal:
        kept = Signal(len(totals), name="running", reset_less=True)
        with m.If(enable):
            m.d.sync += kept.eq(totals)
        return kept

    def _memory(self, m: Module, totals: Value, enable: Value) -> Value:
        """Read in LUT RAM in the same cycle, in block RAM a cycle before: between the turns of one row lies
        that of another at least, so that its sum is written by then."""
        attrs = SUM_MEMORIES[self._storage]
        m.submodules.sums = sums = memory.Memory(shape=len(totals), depth=self._rows, init=[], attrs=attrs)
        write = sums.write_port()
        m.d.comb += [write.addr.eq(self.fold), write.data.eq(totals), write.en.eq(enable)]
        if self._storage == "lutram":
            read = sums.read_port(domain="comb")
            m.d.comb += read.addr.eq(self.fold)
        else:
            read = sums.read_port()
            m.d.comb += [read.addr.eq(self.next_fold), read.en.eq(self.advance)]
        return read.data
