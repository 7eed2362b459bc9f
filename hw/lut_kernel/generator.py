"""The adder that fills tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import accumulate
from hw.lut_kernel.walk import Step
from hw.mvu._counter import step


class TableGenerator(Component):
    """Writes the tables of a word of activations, an entry of each a cycle, with an adder a table.

    Ports:
        ``activations``: stream of words, *group* activations for each of *tables* tables, the first in the
        low bits. A word is taken in the cycle of its last entry.
        ``is_free`` in: the tables may be written from the next cycle on.
        ``is_last`` out: the next cycle writes the last entries of a word.
        ``write`` out: ``address`` and ``entries`` (one a table) are to be written in this cycle.

    A word takes :attr:`cycles` cycles, from the one in which it is first offered; its entries are written
    a cycle later.

    Args:
        activation: shape of an activation.
        group: activations that share a table.
        tables: filled side by side.
        entry: shape of an entry.
        walk: the entries, in their order.
        address: of an entry in its table.
        address_bits: of it.
    """

    def __init__(
        self,
        *,
        activation: Shape,
        group: int,
        tables: int,
        entry: Shape,
        walk: Sequence[Step],
        address: Callable[[Step], int],
        address_bits: int,
    ) -> None:
        self._group, self._walk, self._address = group, walk, address
        super().__init__(
            {
                "activations": In(stream.Signature(data.ArrayLayout(activation, group * tables))),
                "is_free": In(1),
                "write": Out(1),
                "is_last": Out(1),
                "address": Out(address_bits),
                "entries": Out(data.ArrayLayout(entry, tables)),
            }
        )

    @property
    def cycles(self) -> int:
        """Cycles a word."""
        return len(self._walk)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        position = Signal(range(self.cycles))
        selects = Signal()
        m.d.comb += [
            selects.eq(self.activations.valid & self.is_free),
            self.is_last.eq(step(m, position, self.cycles, selects)),
            self.activations.ready.eq(self.is_last),
        ]
        operand = Signal(range(self._group))
        is_negative, restarts = Signal(), Signal()
        following = [*self._walk[1:], self._walk[0]]
        m.d.comb += operand.eq(_chosen([s.operand for s in self._walk], position, len(operand)))
        m.d.sync += [
            self.write.eq(selects),
            self.address.eq(_chosen([self._address(s) for s in self._walk], position, len(self.address))),
            is_negative.eq(_chosen([int(s.is_negative) for s in self._walk], position, 1)),
            restarts.eq(selects & _chosen([int(s.restarts) for s in following], position, 1)),
        ]
        for table, entry in enumerate(self.entries):
            chosen = Signal(self._width, name=f"chosen{table}", reset_less=True)
            before = Signal(entry.shape(), name=f"before{table}")
            addend = (chosen ^ is_negative.replicate(self._width)).as_signed()
            m.d.sync += chosen.eq(self._activation(table, operand))
            m.d.comb += entry.eq(accumulate(before, addend, is_negative, width=len(entry)))
            with m.If(restarts):
                m.d.sync += before.eq(0)
            with m.Elif(self.write):
                m.d.sync += before.eq(entry)
        return m

    @property
    def _width(self) -> int:
        """One bit more than an activation has, so that its complement keeps its sign."""
        return Shape.cast(self.activations.payload.shape().elem_shape).width + 1

    def _activation(self, table: int, operand: Signal) -> Value:
        values = [self.activations.payload[table * self._group + j] for j in range(self._group)]
        return selected([_wide(value, self._width) for value in values], operand)


def _wide(value: Value, width: int) -> Value:
    fill = value[-1] if Value.cast(value).shape().signed else C(0, 1)
    return Cat(value, fill.replicate(width - len(value)))


def selected(values: Sequence[Value], index: Value) -> Value:
    """``values[index]``, as two-way multiplexers: four of them fit one LUT6, a decoded index does not."""
    if len(values) == 1:
        return values[0]
    pairs = [Mux(index[0], odd, even) for even, odd in zip(values[::2], values[1::2], strict=False)]
    return selected([*pairs, *values[len(pairs) * 2 :]], index[1:])


def _chosen(values: Sequence[int], position: Signal, width: int) -> Value:
    """``values[position]``, as logic of the bits of *position*."""
    bits = []
    size = 1 << len(position)
    for place in range(width):
        code = sum((value >> place & 1) << index for index, value in enumerate(values))
        bits.append(C(code, size).bit_select(position, 1))
    return Cat(*bits)
