"""The sum of the entries that one row of the matrix looks up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import add_with_carry
from hw.arith.compressor import CompressorTree
from hw.lut_kernel.encoding import Encoding


class Lane(Component):
    """Adds the entries that a row looks up in a chunk: of all its planes at once, or in several passes.

    Ports: ``entries`` (an array of *groups* for each plane) and ``signs`` (where tables are mirrored) in;
    ``starts`` in: of the first pass, that of the highest planes; ``offset`` in: to be added in this pass;
    ``enable`` in: the entries count. ``sum`` out, a cycle later, complete after the last pass.

    Args:
        encoding: of the weights.
        groups: looked up a cycle, in each plane.
        planes: looked up a cycle.
        low: the smallest entry.
        high: the largest.
        entry: its shape.
        offset: its shape.
        total: shape of the sum.
    """

    def __init__(
        self,
        *,
        encoding: Encoding,
        groups: int,
        planes: int,
        low: int,
        high: int,
        entry: Shape,
        offset: Shape,
        total: Shape,
    ) -> None:
        self._encoding, self._groups, self._planes = encoding, groups, planes
        self._low, self._high = low, high
        lookups = groups * planes
        super().__init__(
            {
                "entries": In(data.ArrayLayout(entry, lookups)),
                "signs": In(lookups * encoding.is_mirrored),
                "starts": In(1),
                "offset": In(offset),
                "enable": In(1),
                "sum": Out(total),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        sums = [self._plane_sum(m, plane) for plane in range(self._planes)]
        # Twice the sum of the products where bits are signs; the lowest bit is then always zero.
        twice = self._encoding.has_signs
        kept = Signal(Shape(len(self.sum) + twice, signed=True), name="kept", reset_less=True)
        nodes = [_Node(value, plane) for plane, value in enumerate(sums)]
        nodes[-1] = _Node(sums[-1], self._planes - 1, self._negation())
        total = _weighted(m, nodes)
        if self._planes < self._encoding.planes:
            before = Mux(self.starts, 0, kept[: len(kept) - self._planes]).as_signed()
            total = _pair_sum(m, _Node(Cat(C(0, self._planes), before).as_signed(), 0), total, len(kept))
        value = total.positive(len(kept))
        if twice:
            value = add_with_carry(value, self.offset, C(0, 0), width=len(kept))
        with m.If(self.enable):
            m.d.sync += kept.eq(value)
        m.d.comb += self.sum.eq(kept[twice:].as_signed())
        return m

    def _negation(self) -> Value | None:
        """Whether the highest plane of this pass counts negative, where one does."""
        if self._encoding.factors[-1] > 0:
            return None
        return C(1, 1) if self._planes == self._encoding.planes else self.starts

    def _plane_sum(self, m: Module, plane: int) -> Value:
        is_mirrored = self._encoding.is_mirrored
        tree = CompressorTree(terms=self._groups, low=self._low, high=self._high, has_carry=is_mirrored)
        m.submodules[f"tree{plane}"] = tree
        for group in range(self._groups):
            lookup = plane * self._groups + group
            entry = self.entries[lookup]
            if is_mirrored:
                flips = self.signs[lookup]
                entry = Mux(flips, ~entry, entry)
                m.d.comb += tree.carries[group].eq(flips)
            m.d.comb += tree.addends[group].eq(entry)
        return tree.sum


@dataclass(frozen=True)
class _Node:
    """A signed sum that counts ``2**place``, negative where *negation* is set."""

    value: Value
    place: int
    negation: Value | None = None

    def positive(self, width: int) -> Value:
        """The sum with its sign, in so many bits."""
        return self.value if self.negation is None else _added(C(0, width), self, width)


def _weighted(m: Module, nodes: list[_Node]) -> _Node:
    """The sum of all nodes: pairs of neighbours first."""
    while len(nodes) > 1:
        pairs = [nodes[i : i + 2] for i in range(0, len(nodes), 2)]
        nodes = [pair[0] if len(pair) == 1 else _pair_sum(m, pair[0], pair[1]) for pair in pairs]
    return nodes[0]


def _pair_sum(m: Module, lower: _Node, upper: _Node, width: int | None = None) -> _Node:
    """Of *lower*, which is not negated, and *upper*; in *width* bits, or as many as they can need."""
    shift = upper.place - lower.place
    width = width or max(len(lower.value), len(upper.value) + shift) + 1
    total = Signal(Shape(width, signed=True), name=f"planes{lower.place}_{upper.place}")
    low = lower.value[:shift]
    m.d.comb += total.eq(Cat(low, _added(lower.value[shift:].as_signed(), upper, width - shift)))
    return _Node(total, lower.place)


def _added(value: Value, node: _Node, width: int) -> Value:
    if node.negation is None:
        return add_with_carry(value, node.value, C(0, 0), width=width)
    flipped = (node.value.as_unsigned() ^ node.negation.replicate(len(node.value))).as_signed()
    return add_with_carry(value, flipped, node.negation, width=width)
