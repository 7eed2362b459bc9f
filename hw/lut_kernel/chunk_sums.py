"""The sums of all activations of a chunk, where they count apart from the entries that rows look up."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith.compressor import CompressorTree


class ChunkSums(Component):
    """Adds up the entries of tables that are each the sum of the table's activations, as they are written.

    Ports:
        ``enable`` in: ``entries``, one a table, are such sums.
        ``is_first`` in: they are the first ones of a chunk.
        ``bank`` in: of the chunk.
        ``sums`` out: of the chunks in the banks, a cycle later.

    Args:
        tables: filled side by side.
        low: the smallest entry.
        high: the largest.
        entry: its shape.
        sum_: shape of a sum.
        banks: chunks that are kept.
    """

    def __init__(self, *, tables: int, low: int, high: int, entry: Shape, sum_: Shape, banks: int) -> None:
        self._low, self._high = low, high
        super().__init__(
            {
                "enable": In(1),
                "is_first": In(1),
                "bank": In(range(banks)),
                "entries": In(data.ArrayLayout(entry, tables)),
                "sums": Out(data.ArrayLayout(sum_, banks)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        tables = len(self.entries)
        m.submodules.tree = tree = CompressorTree(terms=tables, low=self._low, high=self._high)
        for addend, entry in zip(tree.addends, self.entries, strict=True):
            m.d.comb += addend.eq(entry)
        before = Signal.like(self.sums[0])
        m.d.comb += before.eq(Mux(self.is_first, 0, self.sums[self.bank]))
        kept = Signal(self.sums.shape(), name="kept", reset_less=True)
        with m.If(self.enable):
            m.d.sync += kept[self.bank].eq(before + tree.sum)
        m.d.comb += self.sums.eq(kept)
        return m
