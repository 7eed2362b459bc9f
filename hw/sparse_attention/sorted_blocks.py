"""The blocks of the largest scores, kept in a sorted row of registers: what :class:`TopBlocks` is measured
by."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data

from hw._component import Component
from hw.sparse_attention.top_blocks import check_list, list_ports


class SortedBlocks(Component):
    """The *topk* largest of a list of scores; of equal ones those that came first.

    A row of *topk* cells, each a score with its index, the largest first. A score that comes goes behind all
    that are at least as large; those behind it move on by one cell. Then every index is compared with those
    of all cells, so that the indices come out ascending.

    Ports: as of :class:`hw.sparse_attention.TopBlocks`. A list of n scores takes :meth:`cycles` cycles; the
    next is taken after its last index.

    Args:
        score: shape of a score, unsigned.
        max_blocks: scores of a list.
        topk: indices of a list at most.

    Raises:
        UsageError: an argument is of the wrong kind.
    """

    def __init__(self, *, score: Shape, max_blocks: int, topk: int) -> None:
        check_list(score, max_blocks, topk)
        self.score, self.max_blocks, self.topk = score, max_blocks, topk
        super().__init__(list_ports(score, max_blocks))

    def cycles(self, blocks: int) -> int:
        """From the first score of a list to the index of its last one, where that is taken and nothing waits
        outside."""
        return 2 * blocks + 2

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        item, blocks = self.scores.payload, self.blocks
        address = Signal(range(self.max_blocks))
        last = Signal.like(address, name="last", reset_less=True)
        takes_all, is_emitting = Signal(reset_less=True), Signal()
        taken, advance, ends = Signal(), Signal(), Signal()
        is_kept = self._add_cells(m, taken, address, is_emitting)
        takes, waits = Signal(), blocks.valid & ~blocks.ready
        is_marked, place = Signal(), Signal.like(address, name="place", reset_less=True)
        is_hit = Signal(reset_less=True)
        m.d.comb += [
            self.scores.ready.eq(~is_emitting & ~is_marked & ~blocks.valid),
            taken.eq(self.scores.valid & self.scores.ready),
            takes.eq(is_marked & (is_hit | takes_all)),
            advance.eq(~(takes & waits)),
            ends.eq(Mux(is_emitting, advance & (address == last), taken & item.is_last)),
        ]
        with m.If(taken | (is_emitting & advance)):
            m.d.sync += address.eq(Mux(ends, 0, address + 1))
        with m.If(ends):
            m.d.sync += is_emitting.eq(~is_emitting)
        with m.If(taken & item.is_last):
            m.d.sync += [last.eq(address), takes_all.eq(item.is_dense)]
        with m.If(advance):
            m.d.sync += [
                is_marked.eq(is_emitting),
                place.eq(address),
                is_hit.eq(is_kept),
            ]
        result = Signal.like(blocks.payload, reset_less=True)
        most = Mux(takes_all | (last < self.topk), last, self.topk - 1)
        count = Signal.like(last, name="count")
        is_last = count == most
        with m.If(takes & ~waits):
            m.d.sync += [
                result.index.eq(place),
                result.is_last.eq(is_last),
                count.eq(Mux(is_last, 0, count + 1)),
            ]
        m.d.sync += blocks.valid.eq(takes | waits)
        m.d.comb += blocks.payload.eq(result)
        return m

    def _add_cells(self, m: Module, taken: Value, address: Signal, is_emitting: Value) -> Value:
        """Whether the score at an address is in a cell."""
        cell = data.StructLayout({"score": self.score, "index": address.shape()})
        new = Signal(cell)
        m.d.comb += [new.score.eq(self.scores.payload.score), new.index.eq(address)]
        above_stays, above, is_above_used = C(1, 1), new, C(1, 1)
        hits: list[Value] = []
        for place in range(self.topk):
            kept = Signal(cell, name=f"cell{place}", reset_less=True)
            is_used, stays = Signal(name=f"is_used{place}"), Signal(name=f"stays{place}")
            m.d.comb += stays.eq(is_used & (kept.score >= new.score))
            with m.If(taken & (address == 0)):
                m.d.sync += is_used.eq(int(place == 0))
                m.d.sync += kept.eq(new)
            with m.Elif(taken & ~stays):
                m.d.sync += [kept.eq(Mux(above_stays, new, above)), is_used.eq(is_above_used)]
            hits.append(is_used & (kept.index == address))
            above_stays, above, is_above_used = stays, kept, is_used
        return Cat(*hits).any()
