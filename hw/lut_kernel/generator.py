"""The adder that fills tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import accumulate
from hw.arith.aligner import Aligner
from hw.arith.decoder import Decoder
from hw.lut_kernel.walk import Step
from hw.mvu._counter import step
from hw.reference.widths import largest_magnitude
from quantizers.formats import ScalarFormat


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
        activations: format of the codes.
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
        activations: ScalarFormat,
        group: int,
        tables: int,
        entry: Shape,
        walk: Sequence[Step],
        address: Callable[[Step], int],
        address_bits: int,
    ) -> None:
        self._format, self._group, self._walk, self._address = activations, group, walk, address
        super().__init__(
            {
                "activations": In(
                    stream.Signature(data.ArrayLayout(Shape(activations.bits), group * tables))
                ),
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
        operand, is_doubled = Signal(range(self._group)), Signal()
        is_negative, restarts = Signal(), Signal()
        following = [*self._walk[1:], self._walk[0]]
        m.d.comb += [
            operand.eq(_chosen([s.operand for s in self._walk], position, len(operand))),
            is_doubled.eq(_chosen([int(s.is_doubled) for s in self._walk], position, 1)),
        ]
        m.d.sync += [
            self.write.eq(selects),
            self.address.eq(_chosen([self._address(s) for s in self._walk], position, len(self.address))),
            is_negative.eq(_chosen([int(s.is_negative) for s in self._walk], position, 1)),
            restarts.eq(selects & _chosen([int(s.restarts) for s in following], position, 1)),
        ]
        for table, entry in enumerate(self.entries):
            before = Signal(entry.shape(), name=f"before{table}")
            code = selected(self._codes(table), operand)
            addend, negates = self._addend(m, table, code, is_doubled, is_negative)
            m.d.comb += entry.eq(accumulate(before, addend, negates, width=len(entry)))
            with m.If(restarts):
                m.d.sync += before.eq(0)
            with m.Elif(self.write):
                m.d.sync += before.eq(entry)
        return m

    def _codes(self, table: int) -> list[Value]:
        return [self.activations.payload[table * self._group + j] for j in range(self._group)]

    def _addend(
        self, m: Module, table: int, code: Value, is_doubled: Value, is_negative: Value
    ) -> tuple[Value, Value]:
        """What is added a cycle after *code*, in one's complement where the second value is set."""
        magnitude, sign = fixed_point(m, f"decoder{table}", code, self._format)
        shape = Shape.cast(magnitude.shape())
        has_doubles = any(step.is_doubled for step in self._walk)
        # One bit more than the number has, so that its complement keeps its sign.
        chosen = Signal(shape.width + 1 + has_doubles, name=f"chosen{table}", reset_less=True)
        wide = Signal(Shape(len(chosen), shape.signed), name=f"wide{table}")
        m.d.comb += wide.eq(magnitude)
        m.d.sync += chosen.eq(Mux(is_doubled, wide << 1, wide) if has_doubles else wide)
        negates = is_negative
        if len(sign):
            was_negative = Signal(name=f"sign{table}", reset_less=True)
            m.d.sync += was_negative.eq(sign)
            negates = is_negative ^ was_negative
        return (chosen ^ negates.replicate(len(chosen))).as_signed(), negates


def fixed_point(m: Module, name: str, code: Value, fmt: ScalarFormat) -> tuple[Value, Value]:
    """A code as a number of least significant bits, and its sign where that is apart, else no bits."""
    m.submodules[name] = decoder = Decoder(fmt)
    m.d.comb += decoder.code.eq(code)
    if not len(decoder.exponent):
        return decoder.significand, decoder.sign
    significand = decoder.significand
    m.submodules[f"{name}_shift"] = aligner = Aligner(
        product=Shape.cast(significand.shape()), shift_bits=len(decoder.exponent)
    )
    m.d.comb += [aligner.product.eq(significand), aligner.shift.eq(decoder.exponent)]
    # Exponents count from 1.
    return aligner.aligned[1 : 1 + largest_magnitude(fmt).bit_length()], decoder.sign


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
