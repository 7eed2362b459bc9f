"""The sum of the entries that one row of the matrix looks up."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import add_with_carry
from hw.arith.compressor import CompressorTree
from hw.lut_kernel.encoding import Encoding
from hw.lut_kernel.tables import LUTRAM


class Lane(Component):
    """Adds the entries of a cycle, then adds that sum to the row's.

    Ports: ``entries`` (an array of *groups* for each plane) and ``signs`` (where tables are mirrored) in;
    ``advance`` in: the pipeline moves on; ``fold``, ``is_first``, ``enable`` in, one cycle after the
    entries; ``total`` out in that cycle: the row's sum with the entries.

    Args:
        encoding: of the weights.
        groups: looked up a cycle, in each plane.
        low: the smallest entry.
        high: the largest.
        entry: its shape.
        rows: that the lane works on in turns.
        accumulator_bits: of the sums, which wrap.
    """

    def __init__(
        self,
        *,
        encoding: Encoding,
        groups: int,
        low: int,
        high: int,
        entry: Shape,
        rows: int,
        accumulator_bits: int,
    ) -> None:
        self._encoding, self._groups, self._rows = encoding, groups, rows
        self._low, self._high = low, high
        lookups = groups * encoding.planes
        super().__init__(
            {
                "entries": In(data.ArrayLayout(entry, lookups)),
                "signs": In(lookups * encoding.has_sign),
                "advance": In(1),
                "fold": In(Shape.cast(range(rows))),
                "is_first": In(1),
                "enable": In(1),
                "total": Out(signed(accumulator_bits)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        planes = [self._plane_sum(m, plane) for plane in range(self._encoding.planes)]
        combined = _weighted(m, planes, self._encoding.factors)
        kept = Signal.like(combined, reset_less=True, name="kept")
        with m.If(self.advance):
            m.d.sync += kept.eq(combined)
        running = self._running_sum(m)
        before = Mux(self.is_first, 0, running).as_signed()
        m.d.comb += self.total.eq(add_with_carry(before, kept, C(0, 0), width=len(self.total)))
        return m

    def _plane_sum(self, m: Module, plane: int) -> Value:
        has_sign = self._encoding.has_sign
        tree = CompressorTree(terms=self._groups, low=self._low, high=self._high, has_carry=has_sign)
        m.submodules[f"tree{plane}"] = tree
        for group in range(self._groups):
            lookup = plane * self._groups + group
            entry = self.entries[lookup]
            if has_sign:
                flips = self.signs[lookup]
                entry = Mux(flips, ~entry, entry)
                m.d.comb += tree.carries[group].eq(flips)
            m.d.comb += tree.addends[group].eq(entry)
        return tree.sum

    def _running_sum(self, m: Module) -> Value:
        """The row's sum so far."""
        enable = self.enable & self.advance
        if self._rows == 1:
            running = Signal.like(self.total, name="running", reset_less=True)
            with m.If(enable):
                m.d.sync += running.eq(self.total)
            return running
        m.submodules.sums = sums = memory.Memory(
            shape=self.total.shape(), depth=self._rows, init=[], attrs=LUTRAM
        )
        read, write = sums.read_port(domain="comb"), sums.write_port()
        m.d.comb += [
            read.addr.eq(self.fold),
            write.addr.eq(self.fold),
            write.data.eq(self.total),
            write.en.eq(enable),
        ]
        return read.data


def _weighted(m: Module, sums: list[Value], factors: tuple[int, ...]) -> Value:
    """``sum(factor * sum)`` of factors that are plus or minus 1, 2, 4, 8: pairs of neighbours first."""
    nodes = [(value, 1 if factor > 0 else -1, 0) for value, factor in zip(sums, factors, strict=True)]
    nodes = [(value, sign, place) for place, (value, sign, _) in enumerate(nodes)]
    while len(nodes) > 1:
        pairs = [nodes[i : i + 2] for i in range(0, len(nodes), 2)]
        nodes = [
            pair[0] if len(pair) == 1 else (_pair_sum(m, pair[0], pair[1]), 1, pair[0][2]) for pair in pairs
        ]
    [(value, sign, _)] = nodes
    return value if sign > 0 else -value


def _pair_sum(m: Module, lower: tuple[Value, int, int], upper: tuple[Value, int, int]) -> Value:
    shifted = upper[0] << (upper[2] - lower[2])
    exact = lower[0] + shifted if upper[1] > 0 else lower[0] - shifted
    total = Signal(exact.shape(), name=f"planes{lower[2]}_{upper[2]}")
    m.d.comb += total.eq(exact)
    return total
