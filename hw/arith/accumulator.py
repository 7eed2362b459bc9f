"""Exact fixed-point (Kulisch) accumulator."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Shape, Signal, Value, signed
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural, check_positive
from hw._component import Component
from hw.arith._shapes import check_shape


class KulischAccumulator(Component):
    """Adds ``(-1)**negate * (term << (select << stride_bits) >> discarded_bits)`` to a register.

    U. Kulisch, "Very fast and exact accumulation of products", 2011: a register wide enough for
    every product and their sum, so that nothing is ever rounded. The last, widest multiplexer of
    the shift lies here because it shares the LUT of each carry position with the addition.

    Ports: ``term``, ``negate`` (0 or 1 bit), ``select`` in; ``enable``: add the term; ``clear``:
    start again from zero (wins over ``enable``); ``total``: the register plus the term of this
    cycle, combinational, so that a sum can be taken in the cycle of its last term. Sums wrap modulo
    ``2**bits``. One term a cycle.

    Args:
        bits: width of the register and of ``total`` (signed).
        term: shape of ``term``.
        has_negate: whether the term may be subtracted.
        select_bits: width of ``select``.
        stride_bits: log2 of the shift that one step of ``select`` makes.
        discarded_bits: low bits of the shifted term that are always zero and left out.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        bits: int,
        term: Shape,
        has_negate: bool = False,
        select_bits: int = 0,
        stride_bits: int = 0,
        discarded_bits: int = 0,
    ) -> None:
        check_positive("bits", bits)
        check_shape("term", term)
        check_natural("select_bits", select_bits)
        check_natural("stride_bits", stride_bits)
        check_natural("discarded_bits", discarded_bits)
        self._bits = bits
        self._stride_bits = stride_bits
        self._discarded_bits = discarded_bits
        super().__init__(
            {
                "term": In(term),
                "negate": In(int(has_negate)),
                "select": In(select_bits),
                "enable": In(1),
                "clear": In(1),
                "total": Out(signed(bits)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        register = Signal(signed(self._bits))
        addend = Cat(*(self._addend_bit(position) for position in range(self._bits)))
        if len(self.negate):
            addend = addend ^ self.negate.replicate(self._bits)
        # register + addend + negate, written as a difference: of a sum Yosys may take either operand as
        # the data input of the carry chain, and only the register comes there without LUTs of its own.
        # The position below the lowest one makes the carry input: a carry leaves it if negate is set.
        carry_in = self.negate if len(self.negate) else C(0, 1)
        m.d.comb += self.total.eq((Cat(carry_in, register) - Cat(C(1, 1), ~addend))[1:])
        with m.If(self.clear):
            m.d.sync += register.eq(0)
        with m.Elif(self.enable):
            m.d.sync += register.eq(self.total)
        return m

    def _addend_bit(self, position: int) -> Value:
        bit: Value = C(0, 1)
        for step in range(1 << len(self.select)):
            source = _extended_bit(position + self._discarded_bits - (step << self._stride_bits), self.term)
            if source is not None:
                bit = bit | (source & (self.select == step))
        return bit


def _extended_bit(index: int, term: Value) -> Value | None:
    """Bit *index* of a term that is extended without end: ``None`` where it is always zero."""
    if index < 0:
        return None
    if index < len(term):
        return term[index]
    return term[-1] if term.shape().signed else None
