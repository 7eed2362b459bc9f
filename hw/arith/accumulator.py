"""Exact fixed-point (Kulisch) accumulator."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, signed
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import accumulate, add_with_carry


class KulischAccumulator(Component):
    """Adds ``addend + carry`` to a register.

    U. Kulisch, "Very fast and exact accumulation of products", 2011: a register wide enough for every
    product and their sum, so that nothing is ever rounded. The addend of a
    :class:`hw.arith.addend.ProductAddend` shares the LUT of each carry position.

    Ports: ``addend``, ``carry`` in; ``enable``: add them; ``clear``: start again from zero (wins over
    ``enable``); ``total``: the register plus the addend of this cycle, combinational, so that a sum can be
    taken in the cycle of its last term. Sums wrap modulo ``2**bits``. One term a cycle.

    Args:
        bits: width of the register, of ``addend`` and of ``total`` (signed).
        is_registered: ``addend`` comes from a register, not from logic; then the carry is free.

    Raises:
        UsageError: *bits* is not positive.
    """

    def __init__(self, *, bits: int, is_registered: bool = False) -> None:
        check_positive("bits", bits)
        self._is_registered = is_registered
        super().__init__(
            {
                "addend": In(signed(bits)),
                "carry": In(1),
                "enable": In(1),
                "clear": In(1),
                "total": Out(signed(bits)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        register = Signal.like(self.total)
        if self._is_registered:
            total = add_with_carry(register, self.addend, self.carry, width=len(register))
        else:
            total = accumulate(register, self.addend, self.carry, width=len(register))
        m.d.comb += self.total.eq(total)
        with m.If(self.clear):
            m.d.sync += register.eq(0)
        with m.Elif(self.enable):
            m.d.sync += register.eq(self.total)
        return m
